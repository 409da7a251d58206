"""Kinds of reward heads: the protocol, ordinal heads, and a kind of one's own from docs/reward-heads.md."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import fitting_task as task
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from pages import ROOT
from paretune.core.errors import DataError, WiringError
from paretune.data.raters import joined_rating, separate_votes
from paretune.data.records import PreferencePair, Prompt, Rating, Sample
from paretune.models.critic import critic_from_classifier
from paretune.report.reward_model import reward_model_table
from paretune.reward.baselines import baseline_metrics
from paretune.reward.checkpoint import load_reward_model, reward_model_from_lm, save_reward_model
from paretune.reward.evaluation import reward_report
from paretune.reward.export import export_reward_model
from paretune.reward.heads import LinearHead, bradley_terry, calibrated, huber, mse
from paretune.reward.losses import BradleyTerryLoss, RegressionLoss
from paretune.reward.model import RewardModelScorer
from paretune.reward.ordinal import Ordinal
from paretune.reward.training import (
    RewardTask,
    fit_reward_model,
    kinds_from_labels,
    label_scale_and_offset,
)
from paretune.training.optimizer import OptimizerConfig
from paretune.training.supervised import SupervisedConfig

LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)
NONE = torch.zeros(0)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def fitted(*labels, levels=()):
    return Ordinal(levels=levels).from_labels(tensor(*labels), tensor(*labels))


def shares(kind, logit=0.0):
    return kind.probabilities(tensor(logit), torch.zeros(kind.num_parameters))[0].tolist()


def test_logit_0_has_the_frequencies_of_the_training_labels_and_their_mean():
    kind = fitted(*[1] * 2, *[2] * 1, *[4] * 5, *[5] * 2)
    assert kind.levels == (1.0, 2.0, 4.0, 5.0)
    assert shares(kind) == pytest.approx([0.2, 0.1, 0.5, 0.2])
    assert float(kind.to_score(tensor(0.0), torch.zeros(3))) == pytest.approx(3.4)


def test_level_without_labels_counts_half_a_label():
    kind = fitted(1, 1, 3, 3, levels=(1.0, 2.0, 3.0))
    assert shares(kind) == pytest.approx([2 / 4.5, 0.5 / 4.5, 2 / 4.5])


def test_probabilities_are_differences_of_sigmoids_and_the_score_their_mean():
    kind = Ordinal(levels=(0.0, 1.0, 5.0), thresholds=(-1.0, 2.0))
    logits = torch.linspace(-6, 6, 50, dtype=torch.float64)
    above = torch.sigmoid(logits[:, None] - tensor(-1.0, 2.0))
    expected = torch.stack([1 - above[:, 0], above[:, 0] - above[:, 1], above[:, 1]], 1)
    zeros = torch.zeros(2)
    torch.testing.assert_close(kind.probabilities(logits, zeros), expected)
    torch.testing.assert_close(kind.to_score(logits, zeros), expected @ tensor(0.0, 1.0, 5.0))
    loss = kind.rating_loss(logits[:3], tensor(5.0, math.nan, 1.0), zeros)
    assert loss.tolist() == pytest.approx([-math.log(expected[0, 2]), 0.0, -math.log(expected[2, 1])])


@pytest.mark.parametrize("size", [1e3, 1e30, -1e3, -1e30])
def test_loss_and_gradient_are_finite_for_any_logit_and_missing_labels_have_none(size):
    kind = Ordinal(levels=LEVELS, thresholds=(-1.0, 0.0, 0.5, 2.0))
    logits = torch.full((6,), size, requires_grad=True)
    parameters = torch.zeros(4, requires_grad=True)
    loss = kind.rating_loss(logits, torch.tensor([*LEVELS, math.nan]), parameters)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert parameters.grad.isfinite().all()
    assert logits.grad.isfinite().all()
    assert (loss[-1], logits.grad[-1]) == (0.0, 0.0)


@pytest.mark.parametrize("parameters", [(0.0, 0.0, 0.0, 0.0), (9.0, -3.0, 2.0, 0.5), (-4.0, 5.0, -5.0, 1.0)])
def test_thresholds_increase_and_the_score_increases_in_the_logit_for_any_parameters(parameters):
    kind = Ordinal(levels=LEVELS, thresholds=(-1.0, 0.0, 0.5, 2.0))
    learned = tensor(*parameters)
    assert (kind.shifted_thresholds(learned).diff() > 0).all()
    scores = kind.to_score(torch.linspace(-9, 9, 99, dtype=torch.float64), learned)
    assert (scores.diff() > 0).all()
    assert scores.min() > 1
    assert scores.max() < 5


def test_loss_is_least_at_the_maximum_likelihood_of_an_independent_implementation():
    """One binary feature: two logits, of which one is 0, and the thresholds."""
    rng = np.random.default_rng(0)
    feature = rng.integers(0, 2, 400)
    latent = 1.5 * feature + rng.logistic(size=400)
    index = np.searchsorted([-1.0, 1.0], latent)

    def negative_log_likelihood(x):
        below = 1 / (1 + np.exp(-(np.sort(x[1:])[None] - (x[0] * feature)[:, None])))
        cdf = np.concatenate([np.zeros((400, 1)), below, np.ones((400, 1))], 1)
        return -np.log(np.diff(cdf)[np.arange(400), index]).mean()

    best = minimize(negative_log_likelihood, [0.0, -1.0, 1.0], method="Nelder-Mead", tol=1e-10)
    labels = tensor(*(index + 1.0))
    kind = Ordinal().from_labels(labels, labels)
    slope, parameters = torch.zeros(1, requires_grad=True), torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([slope, parameters], max_iter=100, tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        loss = kind.rating_loss(slope.double() * torch.tensor(feature), labels, parameters).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(closure().detach()) == pytest.approx(best.fun, abs=1e-6)
    assert slope.item() == pytest.approx(best.x[0], abs=2e-3)
    assert kind.shifted_thresholds(parameters).tolist() == pytest.approx(sorted(best.x[1:]), abs=2e-3)


@pytest.mark.parametrize(
    ("labels", "votes", "levels", "problem"),
    [
        ((2.0, 2.0), None, (), "two or more levels, and there is 2;"),
        (range(21), None, (), "21 levels"),
        ((1.0, 3.5, 4.0), (1.0, 3.0, 4.0), (), "3.5 is none of the levels 1, 3, 4; fix: name all"),
        ((1.0, 6.0, 7.0), None, (1.0, 2.0), "6 and 1 more labels are none of the levels 1, 2; fix: name all"),
        ((0.1, 0.3, 0.25), None, (0.1, 0.2, 0.3), "0.25 is none"),
    ],
)  # fmt: skip
def test_labels_that_are_no_levels_are_refused(labels, votes, levels, problem):
    with pytest.raises(DataError, match=re.escape(problem)):
        Ordinal(levels=levels).from_labels(tensor(*labels), tensor(*(labels if votes is None else votes)))


def test_rounding_is_no_difference_from_a_level():
    kind = fitted(0.1, 3 * 0.1, 0.2, levels=(0.1, 0.2, 0.3))
    assert shares(kind) == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"levels": (1.0,)}, "two or more"),
        ({"levels": (1.0, 1.0)}, "do not increase"),
        ({"levels": (1.0, 2.0), "thresholds": (0.0, 1.0)}, "one fewer than levels"),
        ({"levels": (1.0, 2.0, 3.0), "thresholds": (1.0, 1.0)}, "increasing"),
    ],
)
def test_levels_and_thresholds_must_increase(arguments, problem):
    with pytest.raises(WiringError, match=problem):
        Ordinal(**arguments)


def level_of(response):
    """Level 1 to 5, by the last letter."""
    return 1.0 + round(4 * task.truth(response)["ending"])


def likert(count, seed):
    """Two votes per response, each one off its level with a probability of 1/4 on either side."""
    rng = np.random.default_rng(seed)
    records = []
    for record in task.ratings(count, seed):
        votes = np.clip(level_of(record.response) + rng.choice([-1, 0, 0, 1], 2), 1, 5).tolist()
        both = {"quality": votes, "same": votes}
        records.append(joined_rating(record.prompt, record.response, both, "separate"))
    return records


NAMES = ("quality", "same")


@pytest.fixture(scope="module")
def trained():
    train, test = list(separate_votes(likert(300, 1))), likert(150, 11)
    kinds = kinds_from_labels(train, {"quality": Ordinal(), "same": mse()}, test)
    scale, offset = label_scale_and_offset(train, NAMES, kinds)
    new = reward_model_from_lm(task.language(layers=1), NAMES, scale, offset, kinds=kinds)
    baselines = baseline_metrics(new, train, test)
    config = SupervisedConfig(
        num_train_epochs=3,
        batch_size=32,
        optim_config=OptimizerConfig(learning_rate=5e-3, warmup_ratio=0.05, lr_scheduler_type="cosine"),
    )
    fit_reward_model(new, train, config, seed=0)
    return new, test, reward_report(new, test, train=train, baselines=baselines)


def test_untrained_ordinal_head_is_its_constant_baseline(trained):
    train, test = list(separate_votes(likert(300, 1))), likert(150, 11)
    kinds = kinds_from_labels(train, {"quality": Ordinal()})
    model = reward_model_from_lm(task.language(layers=1), ("quality",), (1.0,), (0.0,), kinds=kinds)
    head = reward_report(model, test)["objectives"]["quality"]
    constant = trained[2]["objectives"]["quality"]["baselines"]["constant"]
    for key in ("log_loss", "brier", "accuracy"):
        assert head["kind_metrics"][key] == pytest.approx(constant["kind_metrics"][key], rel=1e-6)
    assert head["rmse"] == pytest.approx(constant["rmse"], rel=1e-5)
    frequencies = np.bincount([int(r.labels["quality"]) for r in train])[1:] / len(train)
    levels = head["kind_metrics"]["levels"]
    assert [level["probability"] for level in levels] == pytest.approx(frequencies.tolist(), rel=1e-5)


def test_ordinal_head_beats_its_baseline_and_ranks_as_squared_error_does(trained):
    heads = trained[2]["objectives"]
    own, constant = (
        heads["quality"]["kind_metrics"],
        heads["quality"]["baselines"]["constant"]["kind_metrics"],
    )
    assert own["log_loss"] < constant["log_loss"] - 0.1
    assert own["brier"] < constant["brier"]
    assert own["accuracy"] > constant["accuracy"] + 0.05
    assert heads["quality"]["spearman"] > heads["same"]["spearman"] - 0.05
    assert heads["quality"]["beats_baselines"]["constant"] is True
    assert "kind" not in heads["same"]
    json.dumps(trained[2], allow_nan=False)
    moved = trained[0].head_parameters(0)
    assert (moved != 0).all(), "the thresholds are learned"
    names = [name for name, p in trained[0].named_parameters() if p.requires_grad]
    assert names[-1] == "parameter_weights.0", "and are in the checkpoints of the fit"


def test_report_page_shows_the_metrics_of_the_kind_and_its_levels(trained):
    tables = reward_model_table("Reward model", trained[2])["kinds"]
    assert [table["title"] for table in tables] == ["ordinal"]
    assert tables[0]["columns"] == ["log loss", "brier", "accuracy"]
    assert [row["model"] for row in tables[0]["rows"]] == ["fitted", "constant"]
    assert [row["level"] for row in tables[0]["levels"]] == ["1", "2", "3", "4", "5"]


def test_scores_are_the_same_after_saving_and_loading(trained, tmp_path):
    model, test, _ = trained
    samples = [Sample(prompt=r.prompt, response=r.response) for r in test[:40]]
    expected = RewardModelScorer(model)(samples)
    save_reward_model(model, tmp_path / "rm")
    loaded = load_reward_model(str(tmp_path / "rm"))
    torch.testing.assert_close(RewardModelScorer(loaded)(samples), expected, atol=1e-6, rtol=1e-6)
    assert (loaded.kinds[0].name, loaded.kinds[0].levels) == ("ordinal", LEVELS)
    metadata = json.loads((tmp_path / "rm" / "config.json").read_text())["paretune"]
    assert list(metadata["heads"]) == ["quality"], "linear heads need no entry"
    save_reward_model(loaded, tmp_path / "again")
    again = load_reward_model(str(tmp_path / "again"))
    torch.testing.assert_close(RewardModelScorer(again)(samples), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"kind": "probit", "levels": [1, 2]}, "the kind probit is none of ordinal; fix: pass its class"),
        ({"kind": "ordinal", "levels": [1, 2]}, r"is damaged .*thresholds"),
        ({"kind": "ordinal", "levels": [2, 1], "thresholds": [0.0]}, "do not increase"),
    ],
)
def test_saved_heads_that_cannot_be_read_are_refused(trained, tmp_path, entry, problem):
    save_reward_model(trained[0], tmp_path / "rm")
    path = tmp_path / "rm" / "config.json"
    config = json.loads(path.read_text())
    config["paretune"]["heads"]["quality"] = entry
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match=rf"config\.json: paretune\.heads\.quality: .*{problem}"):
        load_reward_model(str(tmp_path / "rm"))


def answer(record):
    return {"role": "assistant", "content": record.response}


def test_exported_page_says_that_logits_are_latent_and_converts_them(trained, tmp_path):
    model, test, _ = trained
    export_reward_model(model, tmp_path / "rm")
    page = (tmp_path / "rm" / "README.md").read_text(encoding="utf-8")
    assert "The logits of quality are not in the units of the labels" in page
    code = re.search(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE).group(1)
    names = {}
    exec(compile(code.replace('folder = "."', f"folder = {str(tmp_path / 'rm')!r}"), "page", "exec"), names)
    texts = [
        [*({"role": m.role, "content": m.content} for m in r.prompt.messages), answer(r)] for r in test[:5]
    ]
    expected = RewardModelScorer(model)([Sample(prompt=r.prompt, response=r.response) for r in test[:5]])
    torch.testing.assert_close(names["scores"](texts), expected, atol=1e-5, rtol=1e-5)


def test_slope_is_the_derivative_of_the_score_and_initializes_a_critic_in_label_units(trained):
    model = trained[0]
    kind, parameters = model.kinds[0], model.head_parameters(0).detach()
    step = 1e-3
    ends = kind.to_score(torch.tensor([-step, step], dtype=torch.float64), parameters)
    assert model.slopes[0] == pytest.approx(float(ends.diff()) / (2 * step), rel=1e-4)
    assert model.slopes[1] == model.scale[1], "that of a linear head is its scale, to the last bit"
    critic = critic_from_classifier(model.network, torch.diag(torch.tensor(model.slopes)))
    weight = critic.network.score.weight
    torch.testing.assert_close(weight[0], model.network.score.weight[0] * model.slopes[0])


def test_pairs_may_accompany_ratings_and_have_the_bradley_terry_loss_of_the_logits():
    records = [
        Rating(prompt=Prompt(messages=()), response=text, labels={"a": level})
        for text, level in (("ab", 1.0), ("abc", 2.0), ("a", 3.0))
    ]
    pair = PreferencePair(prompt=Prompt(messages=()), chosen="ab", rejected="abc", objective="a")
    kinds = kinds_from_labels(records, {"a": Ordinal()})
    model = reward_model_from_lm(task.language(layers=1), ("a",), (1.0,), (0.0,), kinds=kinds)
    with torch.no_grad():
        model.network.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    made = RewardTask(model, [*records, pair])
    rows = made.token_rows[3]
    margin = float(model.sequence_logits(rows)[:, 0].diff().neg())
    metrics = made.make_loss_fn([3])([0])[1]
    assert metrics["fit/a/loss"] == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-4)
    assert reward_report(model, [pair])["objectives"]["a"]["log_loss"] == pytest.approx(
        math.log1p(math.exp(-margin)), rel=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "rating_loss"),
    [(mse(), RegressionLoss()), (huber(0.5), RegressionLoss(loss_type="huber", delta=0.5)),
     (calibrated(), RegressionLoss()), (LinearHead(), RegressionLoss())],
    ids=lambda value: value.name if isinstance(value, LinearHead) else "",
)  # fmt: skip
def test_linear_kinds_have_the_losses_of_their_names_to_the_last_bit(kind, rating_loss):
    x, y = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    y[::7] = math.nan
    assert torch.equal(kind.rating_loss(x, y, NONE), rating_loss(x, y))
    assert torch.equal(kind.pair_loss(x, -x), BradleyTerryLoss()(x, -x))
    assert kind.to_score(x, NONE) is x
    labels = y[~y.isnan()].double()
    assert kind.scale_and_offset(labels) == (float(labels.std(correction=0)), float(labels.mean()))
    assert (kind.scale_and_offset(NONE), kind.metadata(NONE)) == ((1.0, 0.0), None)


def test_kinds_refuse_data_that_they_do_not_need():
    bare = Rating(prompt=Prompt(messages=()), response="ab", labels={"a": 1.0})
    records = [bare, replace(bare, labels={"a": 2.0})]
    pair = PreferencePair(prompt=Prompt(messages=()), chosen="ab", rejected="abc", objective="b")

    def new(**kinds):
        return reward_model_from_lm(task.language(layers=1), ("a", "b"), (1.0, 1.0), (0.0, 0.0), kinds=kinds)

    RewardTask(new(a=huber(), b=bradley_terry()), [*records, pair])
    for kinds, problem in (({"a": bradley_terry()}, "data has ratings"), ({"b": mse()}, "only pairs")):
        with pytest.raises(WiringError, match=problem):
            RewardTask(new(**kinds), [*records, pair])
    with pytest.raises(WiringError, match='unknown objective "z"'):
        new(z=mse())


def test_example_of_a_kind_of_ones_own_learns_and_loads(tmp_path):
    page = (ROOT / "docs" / "reward-heads.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    exec(compile(blocks[0], "reward-heads.md", "exec"), names)
    records = [replace(r, labels={"loud": float("!" in r.response)}) for r in task.ratings(120, 3)]
    names |= {"lm": task.language(layers=1), "records": records[:100], "test": records[100:]}
    names["folder"] = str(Path(tmp_path) / "rm")
    exec(compile(blocks[1], "reward-heads.md", "exec"), names)
    head = names["report"]["objectives"]["loud"]
    assert head["kind"] == "probability"
    assert head["kind_metrics"]["log_loss"] < 0.5
    assert head["spearman"] > 0.5
