"""The loop without gradients: what moves and what does not, how it goes on, and who is asked beside it."""

import json
import multiprocessing
import os
import signal

import pytest
import torch

import evolving
from evolving import method, policy, searched, touched, world_of
from paretune.core.errors import ConfigError, NonFiniteError, ResourceError, RunInterrupted, WiringError
from paretune.credit.aggregation import Lexicographic, WeightedSum
from paretune.credit.base import chain
from paretune.credit.scalarization import Chebyshev
from paretune.credit.selection import BestOfN
from paretune.models.lora_svd import LoraSvd
from paretune.rl.evolution.loop import INITIAL_SIGMA_GUESS, SearchProgress, calibrate_sigma, run_generation
from paretune.rl.evolution.workers import (
    CandidateEvaluator,
    CandidateScore,
    WorkerPool,
    kl_penalized_rewards,
    partition,
)
from paretune.rl.state import Budget
from paretune.rl.validate import check_spec
from paretune.run.folder import Run
from paretune.run.io import read_jsonl
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
    assert moved == set(found.lora_svd.factors)
    assert all("lora_" in name for name in moved)
    assert all(v.grad is None for v in after.values())
    torch.testing.assert_close(
        found.lora_svd.read_offsets(world.models.policy).double(), found.incumbent, atol=1e-5, rtol=0
    )
    for name, factor in found.lora_svd.factors.items():
        q = found.lora_svd.trainable_counts[name]
        turned = factor.u.T @ after[name].detach() @ factor.vh.T
        assert float((turned - turned.diag().diag()).abs().max()) < 1e-5, "singular vectors stay"
        assert q == len(factor.s)


def test_every_line_has_what_a_search_shows_and_the_ledger_no_gradient(tmp_path):
    searched(tmp_path, method(**QUICK), steps=2)
    first, second = lines(tmp_path)
    assert first["search/distance"] > 0
    assert second["fitness/best"] >= second["fitness/mean"]
    for key in (
        "fitness/std",
        "fitness/incumbent",
        "fitness/ties",
        "search/sigma",
        "search/sign_flips",
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
    evolution = evolution.replace(reward_steps=chain(Chebyshev(evolving.WEIGHTS)))
    whole, metrics = searched(tmp_path / "whole", evolution, steps=4, every=1)
    with pytest.raises(Cut):
        searched(tmp_path / "cut", evolution, steps=4, every=1, on_step=stop_after(2))
    again, lines_again = searched(tmp_path / "cut", evolution, steps=4, every=1)
    assert same(whole, again)
    assert lines_again == metrics


def test_a_budget_ends_it(tmp_path):
    budget = Budget(resource="reward_calls", limit=3 * 5 * 16)
    found, _ = searched(tmp_path, method(**QUICK), steps=9, budget=budget)
    assert found.step == 3
    assert lines(tmp_path)[-1]["budget/used"] == 1.0


def test_the_incumbent_is_kept_and_not_the_luckiest(tmp_path):
    world, evolution = touched(), method(**QUICK)
    found, _ = searched(tmp_path, evolution, world, steps=2)
    own = CandidateEvaluator(evolution, world, found.lora_svd, 0)
    seen = own.rollout(found.incumbent, 4, 9, found.reward_state)
    evolved = own.rollout(found.lora_svd.read_offsets(world.models.policy).double(), 4, 9, found.reward_state)
    assert seen.score == evolved.score


def test_candidates_meet_the_same_chance_unless_each_is_to_have_its_own():
    zero = torch.zeros(3, LoraSvd.from_model(touched().models.policy).num_params, dtype=torch.float64)
    for noise, distinct in (("common", 1), ("fresh", 3)):
        world, evolution = touched(), method(**QUICK, noise=noise)
        own = CandidateEvaluator(evolution, world, LoraSvd.from_model(world.models.policy), 0)
        assert (
            len({j.fitness for j in own(zero, [0, 1, 2], 5, evolution.reward_steps.init_state())}) == distinct
        )


def test_the_price_of_divergence_by_hand():
    batch = graded([1.0, float("nan"), 0.5], lengths=[2, 2, 1])
    batch = batch.replace(
        rollout_logprobs=torch.tensor([[0.0, -1.0, -2.0], [0.0, -1.0, -1.0], [0.0, -0.5, -9.0]]),
        ref_logprobs=torch.tensor([[0.0, -2.0, -2.5], [0.0, -9.0, -9.0], [0.0, -0.25, 0.0]]),
    )
    torch.testing.assert_close(
        kl_penalized_rewards(batch, 0.0), torch.tensor([1.0, 0.5], dtype=torch.float64)
    )
    want = torch.tensor([1.0 - 0.1 * 1.5, 0.5 - 0.1 * -0.25], dtype=torch.float64)
    torch.testing.assert_close(kl_penalized_rewards(batch, 0.1), want)


def test_a_price_lowers_the_fitness_of_what_has_left_the_start(tmp_path):
    world = touched()
    knobs = LoraSvd.from_model(world.models.policy)
    free, dear = (
        CandidateEvaluator(method(**QUICK, kl=kl), world, knobs, 0).rollout(
            torch.zeros(knobs.num_params).double(), 4, 0, (None,)
        )
        for kl in (0.0, 1.0)
    )
    assert dear.score.objective_means == free.score.objective_means
    assert dear.score.fitness < free.score.fitness


def test_step_sizes_that_are_given_or_found(tmp_path):
    world = touched()
    knobs, run = LoraSvd.from_model(world.models.policy), Run(tmp_path)
    given, tried = calibrate_sigma(CandidateEvaluator(method(sigma=0.3), world, knobs, 0), run)
    assert given == pytest.approx(0.3 * knobs.mean_singular_value)
    assert tried == []
    found, tried = calibrate_sigma(CandidateEvaluator(method(), world, knobs, 0), run)
    factor = found / (INITIAL_SIGMA_GUESS * knobs.mean_singular_value)
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
        (chain(WeightedSum(evolving.WEIGHTS), BestOfN(1)), "KeepBest leaves out responses"),
    ],
)
def test_worths_that_say_nothing_of_a_candidate(worth, wrong):
    evolution = method(n=2)
    with pytest.raises(WiringError, match=wrong):
        check_spec(evolution.replace(reward_steps=worth, phases=evolution.phases), OBJECTIVES)


def test_settings_out_of_bounds_are_refused():
    with pytest.raises(WiringError, match=r'"essa" got share=0, kl=0 and sigma=None; the share must'):
        method(share=0.0)


def test_a_dry_run_says_what_it_needs():
    plan = check_spec(method(), OBJECTIVES)
    assert (plan.frozen_roles, plan.num_critic_heads) == (("reference",), 0)
    lines = method().describe()
    assert lines[0] == "algorithm  essa"
    assert lines[-1] == "search     Cma(population=8), sigma=calibrated"


# --- several processes -------------------------------------------------------------------------


class Two(WorkerPool):
    """Two workers with a model each and half of the candidates each; their answers are put together."""

    def __init__(self, evolution, knobs):
        self.own, other = (CandidateEvaluator(evolution, touched(), knobs, 0) for _ in range(2))
        self.workers = (self.own, other)

    def __call__(self, points, step, worth):
        shares, found = partition(len(points), 2), {}
        for worker, share in reversed(list(zip(self.workers, shares, strict=True))):
            found |= zip(share, worker(points[share], share, step, worth), strict=True)
        return [found[i] for i in range(len(points))]


def test_two_workers_end_where_one_does(tmp_path):
    evolution = method(**QUICK)
    one, _ = searched(tmp_path, evolution, steps=3)
    knobs = LoraSvd.from_model(touched().models.policy)
    seeker = evolution.strategy.init_state(knobs.num_params, 0.3 * knobs.mean_singular_value)
    now, tried = SearchProgress(knobs, seeker, evolution.reward_steps.init_state()), Two(evolution, knobs)
    for _ in range(3):
        run_generation(evolution, now, tried, 0)
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
        ({"error": "TrainingGuard", "text": "step 3: bad"}, NonFiniteError, "step 3: bad"),
    ],
)
def test_what_goes_wrong_elsewhere_is_told_here(reply, error, text):
    world = touched()
    knobs = LoraSvd.from_model(world.models.policy)
    near, far = multiprocessing.Pipe()
    if reply is None:
        far.close()
    else:
        far.send_bytes(json.dumps(reply).encode())
    with WorkerPool(CandidateEvaluator(method(**QUICK), world, knobs, 0)) as spread:
        spread.connections.append(near)
        with pytest.raises(error, match=text):
            spread(torch.zeros(2, knobs.num_params, dtype=torch.float64), 0, (None,))
    assert partition(5, 2) == [[0, 2, 4], [1, 3]]


def test_numbers_travel_to_the_bit():
    judged = CandidateScore(0.1 + 0.2, (1 / 3, float("nan")), 7, 2)
    fitness, means, *_ = json.loads(
        json.dumps(
            [judged.fitness, list(judged.objective_means), judged.num_response_tokens, judged.num_responses]
        )
    )
    assert fitness == judged.fitness
    assert means[0] == judged.objective_means[0]
    assert means[1] != means[1]


def test_a_signal_is_obeyed_after_a_checkpoint(tmp_path):
    def struck(step, *rest):
        os.kill(os.getpid(), signal.SIGTERM)

    evolution = method(**QUICK)
    with pytest.raises(RunInterrupted, match="after step 1 of 3"):
        searched(tmp_path, evolution, steps=3, every=9, on_step=struck)
    assert (tmp_path / "checkpoints" / "step-000001").is_dir()
