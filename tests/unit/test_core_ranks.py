"""Division of work over ranks, and what one process does without them."""

import json
from dataclasses import asdict

import pytest
import torch
from torch.distributed import TCPStore

from paretune.core import ranks
from paretune.core.errors import ConfigError, WiringError
from paretune.core.launch import PROCESS, ProcessInfo
from toy import graded


@pytest.fixture
def three_ranks():
    vars(PROCESS).update(rank=1, world_size=3)
    yield
    vars(PROCESS).update(asdict(ProcessInfo()))


@pytest.mark.parametrize("costs", [[5, 1, 1, 1, 1, 1], [1] * 7, [9], [], [3, 3, 2, 2, 2]])
def test_every_unit_goes_to_one_rank_and_none_has_much_more(three_ranks, costs):
    parts = ranks.partition(costs)
    assert sorted(unit for part in parts for unit in part) == list(range(len(costs)))
    work = [sum(costs[unit] for unit in part) for part in parts]
    assert max(work) <= min(work) + max(costs, default=0)


def test_groups_stay_whole_and_a_rank_may_have_none(three_ranks):
    batch = graded(torch.rand(6), group=[0, 0, 0, 4, 4, 4])
    parts = ranks.partition_rows(batch)
    assert sorted(map(sorted, parts)) == [[], [0, 1, 2], [3, 4, 5]]


def test_without_further_ranks_nothing_is_divided_or_sent():
    assert ranks.partition([3, 1]) == [[0, 1]]
    assert ranks.gather_json({"a": [1, None]}) == [{"a": [1, None]}]
    x = torch.rand(3, 2, requires_grad=True)
    assert ranks.gather_rows([[0, 1, 2]], x) is x
    ranks.add_([x.detach()])
    assert ranks.any_flags([True, False]) == [True, False]
    with pytest.raises(ValueError, match="own"), ranks.fail_together("work"):
        raise ValueError("own")
    assert ranks.on_first(lambda: 7, "work") == 7


def test_value_of_the_first_rank_is_json():
    value = ranks.from_first({"step": 1})
    assert json.dumps(value) == '{"step": 1}'


def test_launcher_without_an_address_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="no RANK, MASTER_ADDR, MASTER_PORT"), ranks.joined():
        pass


def test_an_error_made_from_one_that_the_others_know_is_told_once(three_ranks, monkeypatch):
    exchanged = []
    monkeypatch.setattr(ranks, "_exchange_failure", lambda code: exchanged.append(code) or (1, code))

    def fail():
        try:
            with ranks.fail_together("gradients"):
                raise ValueError("a part of the user's own")
        except ValueError as error:
            raise WiringError("Part raised ValueError") from error

    with pytest.raises(WiringError) as caught, ranks.fail_together("run"):
        fail()
    assert exchanged == [1]
    assert caught.value.first_failed_rank == 1


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"WORLD_SIZE": "abc"}, 'WORLD_SIZE="abc"'),
        ({"WORLD_SIZE": "2", "RANK": "x"}, 'RANK="x"'),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "port"}, 'MASTER_PORT="port"'),
        ({"WORLD_SIZE": "2", "RANK": "5"}, "RANK=5 and WORLD_SIZE=2"),
    ],
)
def test_odd_variables_of_a_launcher_are_refused(monkeypatch, variables, name):
    for key in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match=name), ranks.joined():
        pass


def test_timeout_is_restored(three_ranks):
    ranks.set_timeout(5.0)
    with ranks.timeout(9.0):
        assert PROCESS.timeout == 9.0
    assert PROCESS.timeout == 5.0


@pytest.mark.parametrize(("first_message", "tells"), [("of all", False), ("of rank 0", True)])
def test_an_error_before_joining_is_told_once_and_never_lost(monkeypatch, first_message, tells):
    store = TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setattr(ranks, "TELL_SECONDS", 0.5)
    for name, value in (("WORLD_SIZE", 2), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", store.port)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("RANK", "0")
    assert ranks.is_first_to_tell(first_message)
    monkeypatch.setenv("RANK", "1")
    assert ranks.is_first_to_tell("of all") is tells


def test_without_a_store_every_rank_tells_its_error(monkeypatch):
    monkeypatch.setattr(ranks, "TELL_SECONDS", 0.1)
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_ADDR", ""), ("MASTER_PORT", "x")):
        monkeypatch.setenv(name, value)
    assert ranks.is_first_to_tell("any")
