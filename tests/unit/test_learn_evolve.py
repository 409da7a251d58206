"""The loop without gradients: what moves and what does not, how it goes on, and who is asked beside it."""

import json
import multiprocessing
import os
import signal

import pytest
import torch

import evolving
from evolving import method, policy, searched, touched, world_of
from paretune.credit.aggregate import WeightedSum
from paretune.credit.keep import KeepBest
from paretune.credit.order import Lexicographic
from paretune.credit.step import chain
from paretune.credit.worst import Chebyshev
from paretune.errors import ConfigError, ResourceError, Stopped, TrainingGuard, WiringError
from paretune.files import read_jsonl
from paretune.learn.candidates import Candidates, Judged, priced
from paretune.learn.check import check
from paretune.learn.evolve import GUESS, Found, calibrated, generation
from paretune.learn.progress import Budget
from paretune.learn.spread import Spread, dealt
from paretune.models.singular import SingularLora
from paretune.rundir import Run
from toy import Cut, graded, stop_after

OBJECTIVES = ("even", "high")
QUICK = {"sigma": 0.3, "population": 4, "max_new": 4}


def lines(folder):
    return read_jsonl(folder / "metrics.jsonl")


def state(found):
    return [found.offsets, *found.seeker.state().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(state(one), state(other), strict=True))


def test_only_singular_values_move_and_nothing_has_a_gradient(tmp_path):
    world = touched()
    before = {k: v.detach().clone() for k, v in world.models.policy.named_parameters()}
    found, _ = searched(tmp_path, method(**QUICK), world, steps=2)
    after = dict(world.models.policy.named_parameters())
    moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert moved == set(found.knobs.factors)
    assert all("lora_" in name for name in moved)
    assert all(v.grad is None for v in after.values())
    torch.testing.assert_close(
        found.knobs.read(world.models.policy).double(), found.offsets, atol=1e-5, rtol=0
    )
    for name, factor in found.knobs.factors.items():
        q = found.knobs.moves[name]
        turned = factor.u.T @ after[name].detach() @ factor.vh.T
        assert float((turned - turned.diag().diag()).abs().max()) < 1e-5, "singular vectors stay"
        assert q == len(factor.s)


def test_every_line_has_what_a_search_shows_and_the_ledger_no_gradient(tmp_path):
    searched(tmp_path, method(**QUICK), steps=2)
    first, second = lines(tmp_path)
    assert first["search/moved"] > 0
    assert second["fitness/best"] >= second["fitness/mean"]
    for key in (
        "fitness/std",
        "fitness/incumbent",
        "fitness/ties",
        "search/sigma",
        "search/flipped",
        "kl/k3",
    ):
        assert key in second
    for name in OBJECTIVES:
        assert {f"score/{name}/mean", f"candidates/{name}/mean"} <= second.keys()
    for line in read_jsonl(tmp_path / "timing.jsonl"):
        assert line["trained_tokens"] == 0
        assert line["reward_calls"] == (4 + 1) * 16
        assert line["rollout_tokens"] >= line["reward_calls"]
        assert min(line[phase] for phase in ("sample", "score", "measure")) > 0
        parts = sum(line[phase] for phase in ("sample", "score", "measure", "learn", "idle"))
        assert parts == pytest.approx(line["seconds"])
        spoken = line["tokens_per_second/sample"] * line["sample"]
        assert spoken == pytest.approx(line["rollout_tokens"])
        assert min(line["flops/sample"], line["flops/measure"]) > 0


@pytest.mark.parametrize("search", ["cma", "isotropic"])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, search):
    evolution = method(**QUICK, search=search)
    whole, metrics = searched(tmp_path / "whole", evolution, steps=5, every=2)
    with pytest.raises(Cut):
        searched(tmp_path / "cut", evolution, steps=5, every=2, on_step=stop_after(4))
    world = touched()
    again, lines_again = searched(tmp_path / "cut", evolution, world, steps=5, every=2)
    assert same(whole, again)
    assert lines_again == metrics
    assert [e["kind"] for e in read_jsonl(tmp_path / "cut" / "events.jsonl")] == ["go_on"]
    with pytest.raises(ConfigError, match="recipe: the checkpoint was made with"):
        searched(tmp_path / "cut", method(**QUICK, search=search, kl=0.1), steps=5)


def test_the_state_of_the_aggregation_is_learnt_from_the_incumbent(tmp_path):
    """Chebyshev remembers the best scores seen: the candidates' luck is not among them."""
    evolution = method(**QUICK)
    evolution = evolution.but(worth=chain(Chebyshev(evolving.WEIGHTS)))
    whole, metrics = searched(tmp_path / "whole", evolution, steps=4, every=1)
    with pytest.raises(Cut):
        searched(tmp_path / "cut", evolution, steps=4, every=1, on_step=stop_after(2))
    again, lines_again = searched(tmp_path / "cut", evolution, steps=4, every=1)
    assert same(whole, again)
    assert lines_again == metrics


def test_a_budget_ends_it(tmp_path):
    budget = Budget(currency="reward_calls", amount=3 * 5 * 16)
    found, _ = searched(tmp_path, method(**QUICK), steps=9, budget=budget)
    assert found.step == 3
    assert lines(tmp_path)[-1]["budget/spent"] == 1.0


def test_the_incumbent_is_kept_and_not_the_luckiest(tmp_path):
    world, evolution = touched(), method(**QUICK)
    found, _ = searched(tmp_path, evolution, world, steps=2)
    own = Candidates(evolution, world, found.knobs, 0)
    seen = own.rollout(found.offsets, 4, 9, found.worth)
    evolved = own.rollout(found.knobs.read(world.models.policy).double(), 4, 9, found.worth)
    assert seen.judged == evolved.judged


def test_candidates_meet_the_same_chance_unless_each_is_to_have_its_own():
    zero = torch.zeros(3, SingularLora.of(touched().models.policy).size, dtype=torch.float64)
    for noise, distinct in (("common", 1), ("fresh", 3)):
        world, evolution = touched(), method(**QUICK, noise=noise)
        own = Candidates(evolution, world, SingularLora.of(world.models.policy), 0)
        assert len({j.fitness for j in own(zero, [0, 1, 2], 5, evolution.worth.start())}) == distinct


def test_the_price_of_divergence_by_hand():
    batch = graded([1.0, float("nan"), 0.5], lengths=[2, 2, 1])
    batch = batch.set(
        sampler_logp=torch.tensor([[0.0, -1.0, -2.0], [0.0, -1.0, -1.0], [0.0, -0.5, -9.0]]),
        reference_logp=torch.tensor([[0.0, -2.0, -2.5], [0.0, -9.0, -9.0], [0.0, -0.25, 0.0]]),
    )
    torch.testing.assert_close(priced(batch, 0.0), torch.tensor([1.0, 0.5], dtype=torch.float64))
    want = torch.tensor([1.0 - 0.1 * 1.5, 0.5 - 0.1 * -0.25], dtype=torch.float64)
    torch.testing.assert_close(priced(batch, 0.1), want)


def test_a_price_lowers_the_fitness_of_what_has_left_the_start(tmp_path):
    world = touched()
    knobs = SingularLora.of(world.models.policy)
    free, dear = (
        Candidates(method(**QUICK, kl=kl), world, knobs, 0).rollout(
            torch.zeros(knobs.size).double(), 4, 0, (None,)
        )
        for kl in (0.0, 1.0)
    )
    assert dear.judged.means == free.judged.means
    assert dear.judged.fitness < free.judged.fitness


def test_step_sizes_that_are_given_or_found(tmp_path):
    world = touched()
    knobs, run = SingularLora.of(world.models.policy), Run(tmp_path)
    given, tried = calibrated(Candidates(method(sigma=0.3), world, knobs, 0), run)
    assert given == pytest.approx(0.3 * knobs.scale)
    assert tried == []
    found, tried = calibrated(Candidates(method(), world, knobs, 0), run)
    factor = found / (GUESS * knobs.scale)
    assert factor in {2.0**power for power in range(-4, 5)}
    assert len(tried) == 1 + 4 * (len(tried) // 4)
    assert read_jsonl(tmp_path / "events.jsonl")[-1]["kind"] == "calibrated"


def test_an_adapter_that_was_never_fitted_is_refused(tmp_path):
    with pytest.raises(WiringError, match="was never trained"):
        searched(tmp_path, world=world_of(policy()))


@pytest.mark.parametrize(
    ("worth", "wrong"),
    [
        (chain(Lexicographic((("even", None), ("high", None)))), "Lexicographic only compare the responses"),
        (chain(), r"a candidate has 2 signals \(even, high\) and needs one"),
        (chain(WeightedSum(evolving.WEIGHTS), KeepBest(1)), "KeepBest leaves out responses"),
    ],
)
def test_worths_that_say_nothing_of_a_candidate(worth, wrong):
    evolution = method(n=2)
    with pytest.raises(WiringError, match=wrong):
        check(evolution.but(worth=worth, before=evolution.before), OBJECTIVES)


def test_settings_out_of_bounds_are_refused():
    with pytest.raises(WiringError, match=r'"essa" got share=0, kl=0 and sigma=None; the share must'):
        method(share=0.0)


def test_a_dry_run_says_what_it_needs():
    plan = check(method(), OBJECTIVES)
    assert (plan.frozen_roles, plan.critic_heads) == (("reference",), 0)
    lines = method().explained()
    assert lines[0] == "algorithm  essa"
    assert lines[-1] == "search     Cma(population=8), sigma=calibrated"


# --- several processes -------------------------------------------------------------------------


class Two(Spread):
    """Two workers with a model each and half of the candidates each; their answers are put together."""

    def __init__(self, evolution, knobs):
        self.own, other = (Candidates(evolution, touched(), knobs, 0) for _ in range(2))
        self.workers = (self.own, other)

    def __call__(self, points, step, worth):
        shares, found = dealt(len(points), 2), {}
        for worker, share in reversed(list(zip(self.workers, shares, strict=True))):
            found |= zip(share, worker(points[share], share, step, worth), strict=True)
        return [found[i] for i in range(len(points))]


def test_two_workers_end_where_one_does(tmp_path):
    evolution = method(**QUICK)
    one, _ = searched(tmp_path, evolution, steps=3)
    knobs = SingularLora.of(touched().models.policy)
    seeker = evolution.search.begin(knobs.size, 0.3 * knobs.scale)
    now, tried = Found(knobs, seeker, evolution.worth.start()), Two(evolution, knobs)
    for _ in range(3):
        generation(evolution, now, tried, 0)
    assert same(one, now)


def test_a_process_of_its_own_says_the_same(tmp_path):
    evolution = evolving.method()
    one, metrics = searched(tmp_path / "one", evolution, steps=1)
    two, lines_of_two = searched(tmp_path / "two", evolution, steps=1, hire=evolving.hire, workers=2)
    assert same(one, two)
    assert lines_of_two == metrics


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (None, ResourceError, "a process that tries candidates has ended; fix: give the same command again"),
        ({"error": "TrainingGuard", "text": "step 3: bad"}, TrainingGuard, "step 3: bad"),
    ],
)
def test_what_goes_wrong_elsewhere_is_told_here(reply, error, text):
    world = touched()
    knobs = SingularLora.of(world.models.policy)
    near, far = multiprocessing.Pipe()
    if reply is None:
        far.close()
    else:
        far.send_bytes(json.dumps(reply).encode())
    with Spread(Candidates(method(**QUICK), world, knobs, 0)) as spread:
        spread.wires.append(near)
        with pytest.raises(error, match=text):
            spread(torch.zeros(2, knobs.size, dtype=torch.float64), 0, (None,))
    assert dealt(5, 2) == [[0, 2, 4], [1, 3]]


def test_numbers_travel_to_the_bit():
    judged = Judged(0.1 + 0.2, (1 / 3, float("nan")), 7, 2)
    fitness, means, *_ = json.loads(
        json.dumps([judged.fitness, list(judged.means), judged.tokens, judged.rows])
    )
    assert fitness == judged.fitness
    assert means[0] == judged.means[0]
    assert means[1] != means[1]


def test_a_signal_is_obeyed_after_a_checkpoint(tmp_path):
    def struck(step, *rest):
        os.kill(os.getpid(), signal.SIGTERM)

    evolution = method(**QUICK)
    with pytest.raises(Stopped, match="after step 1 of 3"):
        searched(tmp_path, evolution, steps=3, every=9, on_step=struck)
    assert (tmp_path / "checkpoints" / "step-000001").is_dir()
