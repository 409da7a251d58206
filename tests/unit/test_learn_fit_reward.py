"""One reward model from rated data and preference pairs with different label sets, and its report."""

import json
import math
from dataclasses import replace

import fitting_task as task
import numpy as np
import pytest
import torch

from paretune.core.errors import DataError, WiringError
from paretune.data.records import PreferencePair, Prompt, Rating
from paretune.report.reward_model import reward_model_table
from paretune.reward.baselines import baseline_metrics
from paretune.reward.checkpoint import load_reward_model, reward_model_from_lm, save_reward_model
from paretune.reward.evaluation import (
    average_ranks,
    calibration,
    kendall,
    pair_metrics,
    pairwise_accuracy,
    rating_metrics,
    reward_report,
    spearman,
)
from paretune.reward.losses import BradleyTerryLoss, RegressionLoss
from paretune.reward.training import (
    RewardTask,
    data_hash,
    fit_reward_model,
    head_losses,
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
def learnt():
    train = [*task.ratings(800, 1), *task.pairs(250, 2)]
    test = [*task.ratings(300, 11), *task.pairs(120, 12)]
    scale, offset = label_scale_and_offset(train, NAMES)
    words = task.language(layers=1)
    beside = baseline_metrics(reward_model_from_lm(words, NAMES, scale, offset), train, test)
    model = reward_model_from_lm(words, NAMES, scale, offset)
    how = SupervisedConfig(
        num_train_epochs=5,
        batch_size=32,
        optim_config=OptimizerConfig(learning_rate=5e-3, warmup_ratio=0.05, lr_scheduler_type="cosine"),
    )
    fit_reward_model(model, train, how, losses={"loud": RegressionLoss(loss_type="huber", delta=1.0)}, seed=0)
    return model, train, test, reward_report(model, test, train=train, baselines=beside)


def test_one_fit_learns_ratings_and_pairs_with_different_labels(learnt):
    heads = learnt[3]["objectives"]
    assert heads["ending"]["spearman"] > 0.8
    assert heads["loud"]["spearman"] > 0.93
    assert heads["loud"]["mae"] < 2, "in the label's own units, whose levels are 5 apart"
    assert heads["brief"]["pair_accuracy"] > 0.85
    assert heads["brief"]["n"] == 0


def test_it_beats_the_constant_and_the_ridge(learnt):
    for head in learnt[3]["objectives"].values():
        assert head["beats"] == {"constant": True, "ridge": True}
    ending = learnt[3]["objectives"]["ending"]["baselines"]
    assert ending["ridge"]["rmse"] < ending["constant"]["rmse"]


def test_a_head_that_only_pairs_speak_of_is_centred(learnt):
    model, train, _, _ = learnt
    chosen = [record for record in train if isinstance(record, PreferencePair)]
    rows = [model.encode(r.prompt, text) for r in chosen for text in (r.chosen, r.rejected)]
    assert model.scale[2] == 1.0
    assert abs(float(model.scores(rows)[:, 2].mean())) < 1e-4


def test_the_report_is_json_without_nan_and_survives_a_round_trip(learnt, tmp_path):
    model, _, test, report = learnt
    text = json.dumps(report, allow_nan=False)
    assert json.loads(text)["train"] == {
        "ratings": 800,
        "pairs": sum(isinstance(r, PreferencePair) for r in learnt[1]),
    }
    save_reward_model(model, tmp_path / "rm")
    again = reward_report(load_reward_model(str(tmp_path / "rm")), test)
    assert again["objectives"]["loud"]["rmse"] == pytest.approx(report["objectives"]["loud"]["rmse"])
    assert again["data"] == model.data


def test_labels_by_name_nan_where_nobody_was_asked():
    records = [rating(a=1.0), rating(b=math.nan, c=3.0), pair("b")]
    found = label_matrix(records, ("a", "b"))
    assert torch.equal(found.nan_to_num(-9), torch.tensor([[1.0, -9], [-9, -9], [-9, 0.0]]).double())


def test_scale_and_offset_are_those_of_the_known_labels():
    scale, offset = label_scale_and_offset(
        [rating(a=1.0), rating(a=5.0), rating(a=math.nan), pair("b")], ("a", "b")
    )
    assert (scale, offset) == ((2.0, 1.0), (3.0, 0.0))


def test_objectives_without_data_or_with_one_label_are_all_named():
    with pytest.raises(DataError) as found:
        label_scale_and_offset([rating(a=1.0), rating(a=1.0), rating(b=1.0), rating(b=2.0)], ("a", "b", "c"))
    assert [line.split(":")[0] for line in str(found.value).splitlines()] == ["objectives.a", "objectives.c"]


def test_losses_must_fit_the_data():
    labels = label_matrix([rating(a=1.0), rating(a=2.0), pair("b"), pair("a")], ("a", "b"))
    pairs = torch.tensor([False, False, True, True])
    assert head_losses(("a", "b"), labels, pairs, {}) == [(RegressionLoss(), BradleyTerryLoss())] * 2
    chosen = {"a": RegressionLoss(loss_type="huber"), "b": BradleyTerryLoss(margin=0.5)}
    assert head_losses(("a", "b"), labels, pairs, chosen) == [
        (RegressionLoss(loss_type="huber"), BradleyTerryLoss()),
        (RegressionLoss(), BradleyTerryLoss(margin=0.5)),
    ]
    for wrong, said in (
        ({"a": BradleyTerryLoss()}, "holds ratings"),
        ({"b": RegressionLoss()}, "only pairs"),
        ({"z": RegressionLoss()}, '"z"'),
    ):
        with pytest.raises(WiringError, match=said):
            head_losses(("a", "b"), labels, pairs, wrong)


def test_a_pair_of_an_unknown_objective_is_refused_and_a_silent_rating_left_out():
    model = reward_model_from_lm(task.language(layers=1), ("a",), (1.0,), (0.0,))
    with pytest.raises(WiringError, match='"b"'):
        RewardTask(model, [pair("b")], {})
    assert len(RewardTask(model, [rating(a=1.0), rating(b=2.0), rating(a=math.nan)], {}).records) == 1


def test_a_label_that_is_hidden_gives_its_head_no_gradient():
    model = reward_model_from_lm(task.language(layers=1), ("a", "b"), (1.0, 1.0), (0.0, 0.0))
    part = RewardTask(model, [rating(a=1.0), rating(a=2.0), pair("a")], {}).make_loss_fn([0, 1, 2])
    loss, shares = part([0, 1, 2])
    loss.backward()
    gradient = model.network.score.weight.grad
    assert gradient[0].abs().max() > 0
    assert (gradient[1] == 0).all()
    assert shares == {"fit/a/loss": pytest.approx((1 + 4 + math.log(2)) / 3, rel=1e-5)}


def test_an_exact_linear_head_is_reached():
    """Frozen features (1, 0), (0, 1), (1, 1) with labels that a linear head fits exactly."""
    features = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
    label = torch.tensor([[1.0, 0.2], [0.0, 0.8], [1.0, 1.0]], dtype=torch.float64)
    weight = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([weight], lr=0.5)
    for _ in range(300):
        optimiser.zero_grad()
        RegressionLoss()(features @ weight.T, label).mean().backward()
        optimiser.step()
    assert torch.allclose(weight, torch.tensor([[1.0, 0.0], [0.2, 0.8]], dtype=torch.float64), atol=1e-6)


def test_the_data_hash_reads_everything():
    records = [rating(a=1.0), pair("b")]
    assert data_hash(records) == data_hash(list(records))
    assert len({data_hash(r) for r in (records, records[::-1], [rating(a=2.0), pair("b")], records[:1])}) == 4


def test_metrics_by_hand():
    found = rating_metrics(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0]))
    assert found["mae"] == pytest.approx(1.0)
    assert found["rmse"] == pytest.approx(math.sqrt(5 / 3))
    assert found["r2"] == pytest.approx(1 - 5 / 2)
    assert found["spearman"] == pytest.approx(0.5)
    assert found["kendall"] == pytest.approx(1 / 3), "two pairs in order, one not"
    assert found["pair_accuracy"] == pytest.approx(2 / 3)
    assert average_ranks(np.array([5.0, 1.0, 5.0])).tolist() == [2.5, 1.0, 2.5]
    assert rating_metrics(np.zeros(0), np.zeros(0)) == {"n": 0}
    assert rating_metrics(np.array([1.0]), np.array([1.0]))["r2"] is None
    margins = pair_metrics(np.array([2.0, -1.0, 0.0]))
    assert margins["pair_accuracy"] == pytest.approx(0.5)
    assert margins["log_loss"] == pytest.approx(np.mean([np.log1p(np.exp(-m)) for m in (2, -1, 0)]))


def test_rank_metrics_equal_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 300).astype(float), rng.integers(0, 5, 300).astype(float)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
    assert kendall(x, np.ones(300)) is None
    assert kendall(x[:2], y[:2]) is None
    distinct = rng.normal(size=200)
    other = distinct + rng.normal(size=200)
    tau = stats.kendalltau(other, distinct).statistic
    assert pairwise_accuracy(other, distinct, 0.0) == pytest.approx((tau + 1) / 2)


def test_calibration_finds_a_stretch_and_a_shift():
    x = np.linspace(0, 1, 100)
    found = calibration(x, 2 * x + 1)
    assert (found["slope"], found["intercept"]) == (pytest.approx(2), pytest.approx(1))
    assert found["error"] == pytest.approx((x + 1).mean())
    assert len(found["bins"]) == 10
    assert calibration(x, x)["error"] == pytest.approx(0)
    assert calibration(np.ones(5), x[:5]) is None


def test_heads_are_reported_for_each_kind_of_prompt(learnt):
    model, _, test, whole = learnt
    kinds = ("harmful", "", "harmful", "benign")
    sliced = [
        replace(r, prompt=replace(r.prompt, kind=kinds[i % 4] if isinstance(r, Rating) else "benign"))
        for i, r in enumerate(test)
    ]
    heads = reward_report(model, sliced)["objectives"]
    assert all(head["kinds"] == {} for head in whole["objectives"].values())
    loud, brief = heads["loud"]["kinds"], heads["brief"]["kinds"]
    assert list(loud) == ["other", "benign", "harmful"]
    assert sum(part["n"] for part in loud.values()) == heads["loud"]["n"]
    squares = sum(part["n"] * part["rmse"] ** 2 for part in loud.values())
    assert squares / heads["loud"]["n"] == pytest.approx(heads["loud"]["rmse"] ** 2)
    assert list(brief) == ["benign"]
    assert brief["benign"]["pair_accuracy"] == heads["brief"]["pair_accuracy"]
    assert any(
        row["model"] == "fitted, on harmful prompts"
        for row in reward_model_table("x", {"objectives": heads})["rows"]
    )


def test_two_heads_that_say_the_same_are_named():
    model = reward_model_from_lm(task.language(layers=1), ("a", "b"), (1.0, 3.0), (0.0, 1.0))
    with torch.no_grad():
        model.network.score.weight[:] = torch.randn(model.network.score.weight.shape[1])
    records = [Rating(prompt=HERE, response=r, labels={"a": 0.0}) for r in ("a", "bc", "dddd", "e!")]
    report = reward_report(model, records)
    assert [(c["a"], c["b"]) for c in report["copies"]] == [("a", "b")]
    assert report["objectives"]["b"]["rmse"] is None
