"""Training of one reward model on ratings and pairs with different labels, and its report."""

import json
import math
from dataclasses import replace

import fitting_task as task
import numpy as np
import pytest
import torch
from scipy import stats

from paretune.core.errors import DataError, WiringError
from paretune.data.records import PreferencePair, Prompt, Rating
from paretune.report.reward_model import reward_model_table
from paretune.reward.baselines import baseline_metrics
from paretune.reward.checkpoint import load_reward_model, reward_model_from_lm, save_reward_model
from paretune.reward.evaluation import (
    calibration,
    kendall,
    pair_metrics,
    pairwise_accuracy,
    rating_metrics,
    reward_report,
    spearman,
)
from paretune.reward.heads import huber
from paretune.reward.losses import RegressionLoss
from paretune.reward.training import (
    RewardTask,
    data_hash,
    fit_reward_model,
    label_matrix,
    label_scale_and_offset,
)
from paretune.training.optimizer import OptimizerConfig
from paretune.training.supervised import SupervisedConfig

NAMES = ("ending", "loud", "brief")
HERE = Prompt(messages=())


def rating(**labels):
    return Rating(prompt=HERE, response="abc", labels=labels)


def pair(objective):
    return PreferencePair(prompt=HERE, chosen="ab", rejected="abc", objective=objective)


@pytest.fixture(scope="module")
def trained():
    train = [*task.ratings(800, 1), *task.pairs(250, 2)]
    test = [*task.ratings(300, 11), *task.pairs(120, 12)]
    scale, offset = label_scale_and_offset(train, NAMES)
    policy = task.language(layers=1)
    baselines = baseline_metrics(reward_model_from_lm(policy, NAMES, scale, offset), train, test)
    model = reward_model_from_lm(policy, NAMES, scale, offset, kinds={"loud": huber(1.0)})
    config = SupervisedConfig(
        num_train_epochs=5,
        batch_size=32,
        optim_config=OptimizerConfig(learning_rate=5e-3, warmup_ratio=0.05, lr_scheduler_type="cosine"),
    )
    fit_reward_model(model, train, config, seed=0)
    return model, train, test, reward_report(model, test, train=train, baselines=baselines)


def test_one_model_learns_ratings_and_pairs_with_different_labels(trained):
    heads = trained[3]["objectives"]
    assert heads["ending"]["spearman"] > 0.8
    assert heads["loud"]["spearman"] > 0.93
    assert heads["loud"]["mae"] < 2, "in the label's own units, whose levels are 5 apart"
    assert heads["brief"]["pair_accuracy"] > 0.85
    assert heads["brief"]["num_ratings"] == 0


def test_trained_model_beats_constant_and_ridge(trained):
    for head in trained[3]["objectives"].values():
        assert head["beats_baselines"] == {"constant": True, "ridge": True}
    ending = trained[3]["objectives"]["ending"]["baselines"]
    assert ending["ridge"]["rmse"] < ending["constant"]["rmse"]


def test_head_with_pairs_only_is_centered(trained):
    model, train, _, _ = trained
    chosen = [record for record in train if isinstance(record, PreferencePair)]
    rows = [model.encode(r.prompt, text) for r in chosen for text in (r.chosen, r.rejected)]
    assert model.scale[2] == 1.0
    assert abs(float(model.score_sequences(rows)[:, 2].mean())) < 1e-4


def test_report_is_json_without_nan_and_equal_for_the_loaded_model(trained, tmp_path):
    model, _, test, report = trained
    text = json.dumps(report, allow_nan=False)
    assert json.loads(text)["train"] == {
        "ratings": 800,
        "pairs": sum(isinstance(r, PreferencePair) for r in trained[1]),
    }
    save_reward_model(model, tmp_path / "rm")
    loaded = reward_report(load_reward_model(str(tmp_path / "rm")), test)
    assert loaded["objectives"]["loud"]["rmse"] == pytest.approx(report["objectives"]["loud"]["rmse"])
    assert loaded["provenance"] == model.provenance


def test_label_matrix_is_nan_without_a_label():
    records = [rating(a=1.0), rating(b=math.nan, c=3.0), pair("b")]
    labels = label_matrix(records, ("a", "b"))
    assert torch.equal(labels.nan_to_num(-9), torch.tensor([[1.0, -9], [-9, -9], [-9, 0.0]]).double())


def test_scale_and_offset_are_std_and_mean_of_known_labels():
    scale, offset = label_scale_and_offset(
        [rating(a=1.0), rating(a=5.0), rating(a=math.nan), pair("b")], ("a", "b")
    )
    assert (scale, offset) == ((2.0, 1.0), (3.0, 0.0))


def test_objectives_without_data_or_with_constant_labels_are_all_reported():
    with pytest.raises(DataError) as raised:
        label_scale_and_offset([rating(a=1.0), rating(a=1.0), rating(b=1.0), rating(b=2.0)], ("a", "b", "c"))
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == ["objectives.a", "objectives.c"]


def test_pair_with_unknown_objective_is_rejected_and_unlabelled_rating_ignored():
    model = reward_model_from_lm(task.language(layers=1), ("a",), (1.0,), (0.0,))
    with pytest.raises(WiringError, match='"b"'):
        RewardTask(model, [pair("b")])
    assert len(RewardTask(model, [rating(a=1.0), rating(b=2.0), rating(a=math.nan)]).records) == 1


def test_head_without_labels_has_no_gradient():
    model = reward_model_from_lm(task.language(layers=1), ("a", "b"), (1.0, 1.0), (0.0, 0.0))
    loss_fn = RewardTask(model, [rating(a=1.0), rating(a=2.0), pair("a")]).make_loss_fn([0, 1, 2])
    loss, metrics = loss_fn([0, 1, 2])
    loss.backward()
    gradient = model.network.score.weight.grad
    assert gradient[0].abs().max() > 0
    assert (gradient[1] == 0).all()
    assert metrics == {"fit/a/loss": pytest.approx((1 + 4 + math.log(2)) / 3, rel=1e-5)}


def test_regression_converges_to_an_exact_linear_head():
    """Frozen features (1, 0), (0, 1), (1, 1) with labels that a linear head fits exactly."""
    features = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
    label = torch.tensor([[1.0, 0.2], [0.0, 0.8], [1.0, 1.0]], dtype=torch.float64)
    weight = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        RegressionLoss()(features @ weight.T, label).mean().backward()
        optimizer.step()
    assert torch.allclose(weight, torch.tensor([[1.0, 0.0], [0.2, 0.8]], dtype=torch.float64), atol=1e-6)


def test_data_hash_depends_on_all_content_and_order():
    records = [rating(a=1.0), pair("b")]
    assert data_hash(records) == data_hash(list(records))
    assert len({data_hash(r) for r in (records, records[::-1], [rating(a=2.0), pair("b")], records[:1])}) == 4


def test_rating_and_pair_metrics_by_hand():
    metrics = rating_metrics(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0]))
    assert metrics["mae"] == pytest.approx(1.0)
    assert metrics["rmse"] == pytest.approx(math.sqrt(5 / 3))
    assert metrics["r2"] == pytest.approx(1 - 5 / 2)
    assert metrics["spearman"] == pytest.approx(0.5)
    assert metrics["kendall"] == pytest.approx(1 / 3), "two pairs in order, one not"
    assert metrics["pair_accuracy"] == pytest.approx(2 / 3)
    ties, order = np.array([1.0, 2.0, 2.0, 3.0]), np.arange(4.0)
    assert spearman(ties, order) == pytest.approx(4.5 / math.sqrt(4.5 * 5)), "ranks 1, 2.5, 2.5, 4"
    assert kendall(ties, order) == pytest.approx(5 / math.sqrt(5 * 6)), "a tie is in no order"
    assert rating_metrics(np.zeros(0), np.zeros(0)) == {"num_ratings": 0}
    assert rating_metrics(np.array([1.0]), np.array([1.0]))["r2"] is None
    margins = pair_metrics(np.array([2.0, -1.0, 0.0]))
    assert margins["pair_accuracy"] == pytest.approx(0.5)
    assert margins["log_loss"] == pytest.approx(np.mean([np.log1p(np.exp(-m)) for m in (2, -1, 0)]))


def test_rank_correlations_equal_scipy_and_are_none_when_undefined():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 300).astype(float), rng.integers(0, 5, 300).astype(float)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
    assert kendall(x, np.ones(300)) is None
    assert kendall(x[:2], y[:2]) is None
    assert spearman(np.ones(300), y) is None
    label = rng.normal(size=200)
    predicted = label + rng.normal(size=200)
    tau = stats.kendalltau(predicted, label).statistic
    assert pairwise_accuracy(predicted, label, 0.0) == pytest.approx((tau + 1) / 2)


def test_calibration_recovers_slope_and_intercept():
    x = np.linspace(0, 1, 100)
    result = calibration(x, 2 * x + 1)
    assert (result["slope"], result["intercept"]) == (pytest.approx(2), pytest.approx(1))
    assert result["error"] == pytest.approx((x + 1).mean())
    assert len(result["bins"]) == 10
    assert calibration(x, x)["error"] == pytest.approx(0)
    assert calibration(np.ones(5), x[:5]) is None


def test_heads_are_reported_per_prompt_category(trained):
    model, _, test, report = trained
    categories = ("harmful", "", "harmful", "benign")
    sliced = [
        replace(
            r, prompt=replace(r.prompt, category=categories[i % 4] if isinstance(r, Rating) else "benign")
        )
        for i, r in enumerate(test)
    ]
    heads = reward_report(model, sliced)["objectives"]
    assert all(head["categories"] == {} for head in report["objectives"].values())
    loud, brief = heads["loud"]["categories"], heads["brief"]["categories"]
    assert list(loud) == ["other", "benign", "harmful"]
    assert sum(metrics["num_ratings"] for metrics in loud.values()) == heads["loud"]["num_ratings"]
    squares = sum(metrics["num_ratings"] * metrics["rmse"] ** 2 for metrics in loud.values())
    assert squares / heads["loud"]["num_ratings"] == pytest.approx(heads["loud"]["rmse"] ** 2)
    assert list(brief) == ["benign"]
    assert brief["benign"]["pair_accuracy"] == heads["brief"]["pair_accuracy"]
    assert any(
        row["model"] == "fitted, on harmful prompts"
        for row in reward_model_table("x", {"objectives": heads})["rows"]
    )


def test_redundant_heads_are_reported():
    model = reward_model_from_lm(task.language(layers=1), ("a", "b"), (1.0, 3.0), (0.0, 1.0))
    with torch.no_grad():
        model.network.score.weight[:] = torch.randn(model.network.score.weight.shape[1])
    records = [Rating(prompt=HERE, response=r, labels={"a": 0.0}) for r in ("a", "bc", "dddd", "e!")]
    report = reward_report(model, records)
    assert [(c["a"], c["b"]) for c in report["redundant_heads"]] == [("a", "b")]
    assert report["objectives"]["b"]["rmse"] is None
