"""Goals of objectives: training with lower or target equals that with scores negated by hand, bit for bit."""

import pytest
import torch

from paretune.algorithms import ALGORITHMS
from paretune.algorithms.aggregators import orient_scores
from paretune.core.errors import WiringError
from paretune.core.goals import HIGHER, Goal
from paretune.credit.aggregation import Gate, Lexicographic, WeightedSum
from paretune.credit.base import chain
from paretune.credit.constraints import Constraint, Lagrangian
from paretune.credit.scalarization import Chebyshev, HypervolumeGuidedWeighting
from paretune.credit.score_transforms import OrientScores, Threshold
from support.toy import ToyScorer
from toy import WEIGHTS, advance, algorithm, graded, toy_world, trained

LOWER, TARGET = Goal("lower"), Goal("target", 0.3)
SCORES = torch.rand(8, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
GROUP = [0, 0, 0, 0, 1, 1, 1, 1]
NAMES = ("even", "high")


def batch_of(scores):
    return graded(scores, group=torch.tensor(GROUP), objectives=NAMES)


def raw_of(goal):
    """Scores whose orientation by this goal is `SCORES - 1` in the first column."""
    raw = SCORES.clone()
    raw[:, 0] = 1 - SCORES[:, 0] if goal.kind == "lower" else goal.target + (1 - SCORES[:, 0])
    return raw


def oriented(goal):
    """The same as a scorer whose numbers were negated by hand gives it."""
    scores = raw_of(goal).to(torch.get_default_dtype())
    scores[:, 0] = -scores[:, 0] if goal.kind == "lower" else -(scores[:, 0] - goal.target).abs()
    return scores


@pytest.mark.parametrize("goal", [LOWER, TARGET], ids=lambda goal: goal.kind)
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "ppo_c"])
def test_rewards_of_every_algorithm_are_those_of_scores_negated_by_hand(name, goal):
    own = {"safe_rlhf", "lagrangian_grpo"}  # elsewhere there is no such argument
    spec = algorithm(name, **({"constraints": (Constraint("high", 0.5),)} if name in own else {}))
    ours, _ = advance(orient_scores(spec, {"even": goal}).reward_steps, batch_of(raw_of(goal)))
    theirs, _ = advance(spec.reward_steps, batch_of(oriented(goal)))
    assert torch.equal(ours.rewards, theirs.rewards)
    assert torch.equal(ours.input_ids, theirs.input_ids), "the same rows were selected"
    rows = {tuple(row) for row in batch_of(raw_of(goal)).scores.tolist()}
    assert {tuple(row) for row in ours.scores.tolist()} <= rows, "raw scores stay raw"


STEPS = {
    "lagrangian, mean": (Lagrangian(WEIGHTS, (Constraint("even", 0.4),)), -0.4),
    "lagrangian, quantile": (Lagrangian(WEIGHTS, (Constraint("even", 0.4, "quantile", 0.2),)), -0.4),
    "lagrangian, rate": (Lagrangian(WEIGHTS, (Constraint("even", 0.5, "rate", 0.4),)), -0.4),
    "lexicographic": (Lexicographic((("even", 0.4), ("high", None))), -0.4),
    "chebyshev": (Chebyshev(WEIGHTS, ideal_point={"even": 0.1, "high": 1.0}), -0.1),
    "chebyshev, best so far": (Chebyshev(WEIGHTS), None),
    "cap": (chain(Threshold("even", 0.4), WeightedSum(WEIGHTS)), -0.4),
    "pass or fail": (chain(Threshold("even", 0.4, "binary"), WeightedSum(WEIGHTS)), -0.4),
    "fallback": (chain(Gate("even", "high", 0.5, 0.9), WeightedSum(WEIGHTS)), -0.9),
    "hypervolume": (chain(HypervolumeGuidedWeighting(NAMES), WeightedSum(WEIGHTS)), None),
}


def with_number(step, old, new):
    """The step with this number in its fields replaced."""
    text = repr(step).replace(f"{old}", f"{new}") if old is not None else repr(step)
    return eval(text, globals() | {"Chain": lambda steps: chain(*steps)})


@pytest.mark.parametrize("name", STEPS)
def test_numbers_of_a_step_are_in_the_units_of_the_score(name):
    step, negated = STEPS[name]
    plain = with_number(step, None if negated is None else -negated, negated)
    state_a = state_b = None
    for seed in range(2):  # twice: some steps have a state
        raw = batch_of(torch.rand(8, 2, generator=torch.Generator().manual_seed(seed)))
        hand = raw.scores * torch.tensor([-1.0, 1.0])
        ours_step = chain(OrientScores(lower=("even",)), step)
        state_a = ours_step.init_state() if state_a is None else state_a
        state_b = plain.init_state() if state_b is None else state_b
        rng = torch.Generator()
        ours, state_a, _ = ours_step.apply_stateful(raw, state_a, rng)
        theirs, state_b, _ = plain.apply_stateful(batch_of(hand), state_b, rng)
        assert torch.equal(ours.rewards, theirs.rewards), seed


def test_gates_are_on_the_score_as_it_is():
    batch = batch_of([[0.1, 0.5], [0.3, 0.5], [0.5, 0.5], [0.2, 0.5]] * 2)
    steps = chain(OrientScores(lower=("even",)), Gate("high", "even", 0.2, 0.0, "<="))
    rewards = advance(steps, batch)[0].rewards
    assert rewards[:4, 1].tolist() == [0.5, 0.0, 0.0, 0.5]
    assert rewards[:4, 0].tolist() == pytest.approx([-0.1, -0.3, -0.5, -0.2])


def test_nothing_changes_without_a_goal():
    spec = algorithm("grpo")
    assert orient_scores(spec, {"even": HIGHER}) is spec


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (OrientScores(lower=("evil",)), 'OrientScores names the objective "evil"'),
        (chain(OrientScores(lower=("even",)), OrientScores(lower=("high",))), "comes twice"),
        (chain(WeightedSum(WEIGHTS), OrientScores(lower=("even",))), "after another aggregator"),
    ],
)
def test_orientation_that_cannot_be_is_refused(step, message):
    with pytest.raises(WiringError, match=message):
        advance(step, batch_of(SCORES))


class Negated(ToyScorer):
    """The toy's scores, the first with its sign changed."""

    def __call__(self, samples):
        return super().__call__(samples) * torch.tensor([-1.0, 1.0])


@pytest.mark.parametrize(("name", "settings"), [("gdpo", {}), ("dpo", {"response_source": "on_policy"})])
def test_weights_after_training_are_those_of_scores_negated_by_hand(tmp_path, name, settings):
    spec = algorithm(name, num_generations=4, max_new_tokens=6, **settings)
    ours = orient_scores(spec, {"even": LOWER})
    negated = trained(tmp_path / "a", toy_world(scorers=(Negated(),)), ours, steps=2)
    plain = trained(tmp_path / "b", toy_world(), spec, steps=2)
    assert negated[0] == plain[0]
    assert b'"score/even/mean":-' in negated[1].replace(b" ", b""), "raw in the metrics"


@pytest.mark.parametrize(
    ("value", "goal"),
    [
        ("lower", LOWER),
        (0.3, TARGET),
        (None, HIGHER),
        ({"goal": "target", "target": 0.3}, TARGET),
        (LOWER, LOWER),
    ],
)
def test_goals_are_read_from_what_people_write(value, goal):
    assert Goal.of(value) == goal
    assert Goal.of(goal.entry()) == goal


@pytest.mark.parametrize("value", ["down", "target", "", {"goal": "target"}])
def test_other_words_are_no_goals(value):
    with pytest.raises(WiringError):
        Goal.of(value)
