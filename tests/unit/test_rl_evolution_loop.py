"""The evolution loop: which weights change, resume, budgets, calibration and worker processes."""

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
from paretune.rl.evolution.loop import (
    INITIAL_SIGMA_GUESS,
    EvolutionLearner,
    calibrate_sigma,
    run_generation,
)
from paretune.rl.evolution.workers import (
    CandidateEvaluator,
    CandidateScore,
    WorkerPool,
    kl_penalized_rewards,
    partition,
)
from paretune.rl.state import Budget, TrainState
from paretune.rl.validate import check_spec
from paretune.run.folder import Run
from paretune.run.io import read_jsonl
from toy import Cut, graded, stop_after

OBJECTIVES = ("even", "high")
QUICK = {"initial_sigma": 0.3, "population_size": 4, "max_new_tokens": 4}


def lines(folder):
    return read_jsonl(folder / "metrics.jsonl")


def state(learner):
    return [learner.incumbent, *learner.search_state.state_dict().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(state(one), state(other), strict=True))


def test_only_singular_values_change_and_nothing_has_a_gradient(tmp_path):
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


def test_metrics_and_timing_of_every_generation(tmp_path):
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
        assert min(line[phase] for phase in ("rollout", "score", "model_passes")) > 0
        parts = sum(line[phase] for phase in ("rollout", "score", "model_passes", "update", "other"))
        assert parts == pytest.approx(line["seconds"])
        tokens = line["tokens_per_second/rollout"] * line["rollout"]
        assert tokens == pytest.approx(line["rollout_tokens"])
        assert min(line["flops/rollout"], line["flops/model_passes"]) > 0


@pytest.mark.parametrize("strategy", ["cma", "isotropic"])
def test_resume_is_bit_exact(tmp_path, strategy):
    evolution = method(**QUICK, strategy=strategy)
    whole, metrics = searched(tmp_path / "whole", evolution, steps=5, every=2)
    with pytest.raises(Cut):
        searched(tmp_path / "cut", evolution, steps=5, every=2, on_step=stop_after(4))
    world = touched()
    again, lines_again = searched(tmp_path / "cut", evolution, world, steps=5, every=2)
    assert same(whole, again)
    assert lines_again == metrics
    assert [e["type"] for e in read_jsonl(tmp_path / "cut" / "events.jsonl")] == ["resumed_from_checkpoint"]
    with pytest.raises(ConfigError, match="algorithm: the checkpoint was made with"):
        searched(tmp_path / "cut", method(**QUICK, strategy=strategy, kl_coef=0.1), steps=5)


def test_reward_state_is_updated_by_the_incumbent_only(tmp_path):
    """Chebyshev keeps the best scores seen: those of the candidates are not among them."""
    evolution = method(**QUICK)
    evolution = evolution.replace(reward_steps=chain(Chebyshev(evolving.WEIGHTS)))
    whole, metrics = searched(tmp_path / "whole", evolution, steps=4, every=1)
    with pytest.raises(Cut):
        searched(tmp_path / "cut", evolution, steps=4, every=1, on_step=stop_after(2))
    again, lines_again = searched(tmp_path / "cut", evolution, steps=4, every=1)
    assert same(whole, again)
    assert lines_again == metrics


def test_budget_ends_the_search(tmp_path):
    budget = Budget(resource="reward_calls", limit=3 * 5 * 16)
    searched(tmp_path, method(**QUICK), steps=9, budget=budget)
    assert len(lines(tmp_path)) == 3
    assert lines(tmp_path)[-1]["budget/used"] == 1.0


def test_policy_gets_the_incumbent_not_the_best_candidate(tmp_path):
    world, evolution = touched(), method(**QUICK)
    found, _ = searched(tmp_path, evolution, world, steps=2)
    evaluator = CandidateEvaluator(evolution, world, found.lora_svd, 0)
    seen = evaluator.rollout(found.incumbent, 4, 9, evolution.reward_steps.init_state())
    evolved = evaluator.rollout(
        found.lora_svd.read_offsets(world.models.policy).double(), 4, 9, evolution.reward_steps.init_state()
    )
    assert seen.score == evolved.score


def test_common_and_independent_random_numbers():
    zero = torch.zeros(3, LoraSvd.from_model(touched().models.policy).num_params, dtype=torch.float64)
    for random_numbers, distinct in (("common", 1), ("independent", 3)):
        world, evolution = touched(), method(**QUICK, random_numbers=random_numbers)
        evaluator = CandidateEvaluator(evolution, world, LoraSvd.from_model(world.models.policy), 0)
        assert (
            len({j.fitness for j in evaluator(zero, [0, 1, 2], 5, evolution.reward_steps.init_state())})
            == distinct
        )


def test_kl_penalized_rewards_match_hand_computation():
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


def test_kl_penalty_lowers_the_fitness_only(tmp_path):
    world = touched()
    lora_svd = LoraSvd.from_model(world.models.policy)
    free, penalized = (
        CandidateEvaluator(method(**QUICK, kl_coef=kl_coef), world, lora_svd, 0).rollout(
            torch.zeros(lora_svd.num_params).double(), 4, 0, (None,)
        )
        for kl_coef in (0.0, 1.0)
    )
    assert penalized.score.objective_means == free.score.objective_means
    assert penalized.score.fitness < free.score.fitness


def test_sigma_is_taken_from_the_spec_or_calibrated(tmp_path):
    world = touched()
    lora_svd, run = LoraSvd.from_model(world.models.policy), Run(tmp_path)
    given, tried = calibrate_sigma(CandidateEvaluator(method(initial_sigma=0.3), world, lora_svd, 0), run)
    assert given == pytest.approx(0.3 * lora_svd.mean_singular_value)
    assert tried == []
    found, tried = calibrate_sigma(CandidateEvaluator(method(), world, lora_svd, 0), run)
    factor = found / (INITIAL_SIGMA_GUESS * lora_svd.mean_singular_value)
    assert factor in {2.0**power for power in range(-4, 5)}
    assert len(tried) == 1 + 4 * (len(tried) // 4)
    assert read_jsonl(tmp_path / "events.jsonl")[-1]["type"] == "sigma_calibrated"


def test_untrained_adapter_is_refused(tmp_path):
    with pytest.raises(WiringError, match="is untrained"):
        searched(tmp_path, world=world_of(policy()))


@pytest.mark.parametrize(
    ("reward_steps", "match"),
    [
        (chain(Lexicographic((("even", None), ("high", None)))), "Lexicographic only compares the responses"),
        (chain(), r"a candidate has 2 rewards \(even, high\) and needs one"),
        (chain(WeightedSum(evolving.WEIGHTS), BestOfN(1)), "BestOfN drops responses"),
    ],
)
def test_reward_steps_without_absolute_rewards_are_refused(reward_steps, match):
    evolution = method(num_generations=2)
    with pytest.raises(WiringError, match=match):
        check_spec(evolution.replace(reward_steps=reward_steps, phases=evolution.phases), OBJECTIVES)


def test_settings_out_of_bounds_are_refused():
    with pytest.raises(
        WiringError,
        match=r'"essa" got singular_value_fraction=0, kl_coef=0 and initial_sigma=None; sing.* must be in',
    ):
        method(singular_value_fraction=0.0)


def test_dry_run_requirements_and_description():
    requirements = check_spec(method(), OBJECTIVES)
    assert (requirements.frozen_roles, requirements.num_critic_heads) == (("reference",), 0)
    lines = method().describe()
    assert lines[0] == "algorithm        essa"
    assert lines[-1] == "strategy         CmaES(population_size=8), initial_sigma=calibrated"


# --- several processes -------------------------------------------------------------------------


class Two(WorkerPool):
    """Two workers with a model each, and half of the candidates each."""

    def __init__(self, evolution, lora_svd):
        self.local_evaluator, other = (
            CandidateEvaluator(evolution, touched(), lora_svd, 0) for _ in range(2)
        )
        self.workers = (self.local_evaluator, other)

    def __call__(self, offsets, step, reward_state):
        shares, scores = partition(len(offsets), 2), {}
        for worker, share in reversed(list(zip(self.workers, shares, strict=True))):
            scores |= zip(share, worker(offsets[share], share, step, reward_state), strict=True)
        return [scores[i] for i in range(len(offsets))]


def test_two_workers_give_the_result_of_one(tmp_path):
    evolution = method(**QUICK)
    one, _ = searched(tmp_path, evolution, steps=3)
    lora_svd = LoraSvd.from_model(touched().models.policy)
    search = evolution.strategy.init_state(lora_svd.num_params, 0.3 * lora_svd.mean_singular_value)
    learner, pool = EvolutionLearner(lora_svd, search), Two(evolution, lora_svd)
    progress = TrainState({}, tmp_path, learner, evolution.reward_steps.init_state())
    for _ in range(3):
        run_generation(evolution, progress, pool, 0)
    assert same(one, learner)


def test_worker_process_gives_the_same_result(tmp_path):
    evolution = evolving.method()
    one, metrics = searched(tmp_path / "one", evolution, steps=1)
    two, lines_of_two = searched(
        tmp_path / "two", evolution, steps=1, worker_factory=evolving.hire, num_workers=2
    )
    assert same(one, two)
    assert lines_of_two == metrics


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (None, ResourceError, "a worker process has ended; fix: repeat the command to resume"),
        ({"error": "NonFiniteError", "message": "step 3: bad"}, NonFiniteError, "step 3: bad"),
    ],
)
def test_worker_errors_are_raised_in_the_parent(reply, error, text):
    world = touched()
    lora_svd = LoraSvd.from_model(world.models.policy)
    near, far = multiprocessing.Pipe()
    if reply is None:
        far.close()
    else:
        far.send_bytes(json.dumps(reply).encode())
    with WorkerPool(CandidateEvaluator(method(**QUICK), world, lora_svd, 0)) as pool:
        pool.connections.append(near)
        with pytest.raises(error, match=text):
            pool(torch.zeros(2, lora_svd.num_params, dtype=torch.float64), 0, (None,))
    assert partition(5, 2) == [[0, 2, 4], [1, 3]]


def test_scores_survive_json_bit_for_bit():
    score = CandidateScore(0.1 + 0.2, (1 / 3, float("nan")), 7, 2)
    fitness, means, *_ = json.loads(
        json.dumps(
            [score.fitness, list(score.objective_means), score.num_response_tokens, score.num_responses]
        )
    )
    assert fitness == score.fitness
    assert means[0] == score.objective_means[0]
    assert means[1] != means[1]


def test_sigterm_stops_after_a_checkpoint(tmp_path):
    def send_sigterm(step, *rest):
        os.kill(os.getpid(), signal.SIGTERM)

    evolution = method(**QUICK)
    with pytest.raises(RunInterrupted, match="after step 1 of 3"):
        searched(tmp_path, evolution, steps=3, every=9, on_step=send_sigterm)
    assert (tmp_path / "checkpoints" / "step-000001").is_dir()
