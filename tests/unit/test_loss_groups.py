"""Parts that compare the responses of a group: what they refuse, what they log, that they learn."""

import math

import pytest
import torch

from paretune.core.batch import Outputs
from paretune.core.errors import WiringError
from paretune.core.reductions import token_weights
from paretune.credit.base import chain
from paretune.credit.selection import BestOfN
from paretune.loss.auxiliary import BestOfNSft, SftLoss
from paretune.loss.base import WeightedLoss, required_outputs
from paretune.loss.kl import FullKl
from paretune.loss.listwise import PreferenceRanking, best_worst_pairs
from paretune.loss.pairwise import Dpo, ModpoMargin, PairLoss, Tdpo
from paretune.models.model_passes import RefLogprobs
from paretune.rl.algorithm_spec import LossAggregation
from paretune.rl.loop import train
from paretune.rl.metrics import StepMetrics
from paretune.rl.validate import check_spec
from paretune.run.folder import Run
from paretune.run.metrics import find_metric
from toy import advance, graded, toy_recipe, toy_world

BOTH = ModpoMargin("k0", {"k0": 0.5, "k1": 0.5})


def ready(scores=((2.0,), (0.0,), (1.0,), (1.0,)), group=(0, 0, 1, 1)):
    batch = graded([list(row) for row in scores], list(group), lengths=[1, 2, 3, 1])
    weight = token_weights(batch.response_mask, "seq_mean_token_mean")
    return batch.replace(loss_weights=weight, ref_logprobs=-1.0 * batch.response_mask)


def out_of(batch, logp=-0.5):
    x = (logp * batch.response_mask).requires_grad_()
    return Outputs(logprobs=x, ref_policy_kl=-0.1 * x)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Dpo(0.0), r"beta of a loss on pairs is 0\.0"),
        (lambda: Dpo(math.inf), "beta of a loss on pairs is inf"),
        (lambda: Tdpo(1, -1.0), r"beta of a loss on pairs is -1\.0"),
        (lambda: Dpo(label_smoothing=0.5), r"label_smoothing is 0\.5.*\[0, 0\.5\)"),
        (
            lambda: Dpo(loss_type="ipo", label_smoothing=0.1),
            r'loss_type "ipo" has no label smoothing.*sigmoid, robust, exo_pair',
        ),
        (lambda: Dpo(loss_type="exo_pair"), "takes the log of label_smoothing"),
        (lambda: Tdpo(1, alpha=0.5), r"variant 1 of Tdpo has no alpha.*0\.5; fix: variant=2"),
        (lambda: Tdpo(2, alpha=-0.5), "must not be negative"),
        (lambda: ModpoMargin("k2", {"k0": 1.0, "k1": 1.0}), 'by "k2" and has weights of k0, k1'),
        (lambda: ModpoMargin("k0", {"k0": 1.0}), "at least one more"),
        (
            lambda: ModpoMargin("k0", {"k0": 0.0, "k1": 1.0}),
            r'divides by the weight of .*"k0", which is 0\.0; fix',
        ),
        (lambda: ModpoMargin("k0", {"k0": 1.0, "k1": math.nan}), "not finite"),
        (lambda: BestOfN(0), "keeps 0 responses"),
    ],
)
def test_invalid_settings_raise(make, match):
    with pytest.raises(WiringError, match=match):
        make()


@pytest.mark.parametrize(
    ("loss", "change", "match"),
    [
        (Dpo(), {"ref_logprobs": None}, r"batch\.ref_logprobs"),
        (Dpo(), {"loss_weights": None}, r"batch\.loss_weights"),
        (Dpo(), {"rewards": torch.ones(4, 2)}, "Dpo needs one reward per response and got 2 objectives"),
        (
            PreferenceRanking(),
            {"rewards": torch.ones(4, 2)},
            "PreferenceRanking needs one reward per response and got 2 objectives",
        ),
        (
            BestOfNSft(),
            {"rewards": torch.ones(4, 2)},
            "BestOfNSft needs one reward per response and got 2 objectives",
        ),
        (Dpo(margin=BOTH), {"objectives": ("k0", "k1")}, "ModpoMargin needs one reward per objective"),
        (Dpo(margin=BOTH), {"objectives": ("k0",)}, 'no objective "k1"; the objectives are k0'),
    ],
)
def test_invalid_wiring_raises(loss, change, match):
    batch = ready()
    with pytest.raises(WiringError, match=match):
        loss(out_of(batch), batch.replace(**change))


@pytest.mark.parametrize("loss", [Tdpo(), FullKl()], ids=repr)
def test_full_kl_is_a_required_output(loss):
    batch = ready()
    with pytest.raises(WiringError, match="which the forward pass did not compute"):
        loss(Outputs(logprobs=out_of(batch).logprobs), batch)
    assert required_outputs((WeightedLoss(1.0, loss),)) == {"ref_policy_kl"}


def test_pair_loss_without_override_raises():
    batch = ready()
    with pytest.raises(WiringError, match="does not implement implicit_rewards"):
        PairLoss()(out_of(batch), batch)


def test_best_worst_pairs_skip_unscored_rows_and_ties():
    """Unscored rows are in no pair; of equally good ones the first, of equally bad ones the last."""
    signal = torch.tensor([[math.nan], [0.5], [0.9], [0.9], [0.5], [0.4], [math.nan], [1.0]])
    pairs = best_worst_pairs(signal, torch.tensor([0, 0, 0, 0, 0, 1, 1, 2]))
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([2], [4])
    assert pairs.missing.tolist() == [False, True, True]
    nobody = best_worst_pairs(torch.full((2, 1), math.nan), torch.tensor([0, 0]))
    assert (len(nobody.chosen), nobody.missing.tolist()) == (0, [True])


def test_modpo_pairs_skip_responses_with_a_missing_score():
    batch = ready([(2.0, math.nan), (1.0, 0.4), (0.0, 0.1), (3.0, 1.0)], (0, 0, 0, 1))
    pairs = Dpo(margin=BOTH).make_pairs(batch)
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([1], [2])
    zero = ModpoMargin("k0", {"k0": 1.0, "k1": 0.0})
    assert Dpo(margin=zero).make_pairs(batch).chosen.tolist() == [0]


def test_dpo_without_reference_reads_no_ref_logprobs():
    batch = ready()
    out = out_of(batch)
    bare = Dpo(reference="none")(out, batch.replace(ref_logprobs=None))
    zero = Dpo()(out, batch.replace(ref_logprobs=torch.zeros_like(out.logprobs)))
    assert torch.equal(bare, zero)


def test_metrics_of_pairs_and_rankings():
    batch = ready()
    out = out_of(batch, torch.tensor([[-0.5], [-2.0], [-0.5], [-0.5]]))
    seen = StepMetrics()
    terms = (
        WeightedLoss(1.0, Tdpo(1, 1.0)),
        WeightedLoss(1.0, PreferenceRanking()),
        WeightedLoss(1.0, FullKl()),
    )
    for rows in (torch.tensor([2, 3]), torch.tensor([0, 1])):
        part = Outputs(logprobs=out.logprobs[rows], ref_policy_kl=out.ref_policy_kl[rows])
        seen.add_forward_pass(terms, part, batch.select(rows))
    got = seen.metrics()
    # Reward of row 0: -0.5 + 1 + 0.05, of row 1: -4 + 2 + 0.4; the second group is a tie.
    want = {
        "pairs/missing": 0.5,
        "pairs/chosen/logprob": -0.5,
        "pairs/rejected/logprob": -4.0,
        "pairs/chosen/length": 1.0,
        "pairs/rejected/length": 2.0,
        "pairs/margin": 0.55 + 1.6,
        "pairs/accuracy": 1.0,
        "pairs/chosen/kl": 0.05,
        "pairs/rejected/kl": 0.4,
        "ranking/missing": 0.0,
        "ranking/ties": 0.5,
        "ranking/accuracy": 1.0,
        "kl/full": (0.05 + 0.4 + 0.15 + 0.05) / 7,
    }
    assert {key: got[key] for key in want} == pytest.approx(want)
    assert all(find_metric(key) for key in got)


def test_no_pair_metrics_without_pairs():
    batch = ready(((1.0,),) * 4)
    seen = StepMetrics()
    seen.add_forward_pass((WeightedLoss(1.0, Dpo()),), out_of(batch), batch)
    assert {key for key in seen.metrics() if key.startswith("pairs/")} == {"pairs/missing"}


def test_single_response_has_no_ranking():
    batch = ready(((1.0,), (math.nan,), (2.0,), (1.0,)))
    out = out_of(batch)
    slope = torch.autograd.grad(PreferenceRanking()(out, batch), out.logprobs)[0]
    assert (slope[:2] == 0).all()
    assert (slope[2:] != 0).any()
    assert PreferenceRanking().group_metrics(out, batch)["ranking/missing"].tolist() == [1.0, 0.0]


def test_best_of_n_sft_has_the_weight_of_the_group():
    batch = ready(((1.0,), (2.0,), (math.nan,), (math.nan,)))
    out = out_of(batch, torch.tensor([[-0.5], [-2.0], [-0.5], [-0.5]]))
    assert float(BestOfNSft()(out, batch).detach()) == pytest.approx(2.0 / 2)
    assert float(BestOfNSft("sum")(out, batch).detach()) == pytest.approx(4.0 / 2)


def test_best_of_n_keeps_row_order():
    batch = graded([0.1, 0.9, 0.3, -1.0, -2.0, math.nan, 5.0], [0, 0, 0, 1, 1, 2, 3], lengths=[1] * 7)
    respond = batch.response_mask.clone()
    respond[6] = False  # an empty response cannot be kept, however good
    batch = batch.replace(response_mask=respond)
    for k, rows in ((1, [1, 3]), (2, [1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])):
        left, metrics = advance(BestOfN(k), batch)
        assert left.rewards[:, 0].tolist() == pytest.approx(batch.rewards[rows, 0].tolist())
        assert metrics == {"responses/kept": pytest.approx(len(rows) / 7)}
        assert all(find_metric(key) for key in metrics)


def test_best_of_n_needs_one_reward():
    with pytest.raises(WiringError, match="BestOfN needs one reward per response and got 2 objectives"):
        advance(BestOfN(), graded([[1.0, 2.0], [0.0, 1.0]]))


def test_best_of_n_keeps_an_unscored_batch():
    batch = graded([math.nan, math.nan])
    left, metrics = advance(BestOfN(), batch)
    assert left is batch
    assert metrics == {"responses/kept": 1.0}


def test_best_of_one_is_the_identity():
    batch = graded([0.3, 0.1], [0, 1], lengths=[1, 3])
    left, _ = advance(BestOfN(), batch)
    assert all(
        torch.equal(getattr(left, name), getattr(batch, name))
        for name in ("input_ids", "response_mask", "group")
    )


@pytest.mark.parametrize(
    ("losses", "credit", "key"),
    [
        ((WeightedLoss(1.0, Dpo()),), chain(), "pairs/accuracy"),
        ((WeightedLoss(1.0, Tdpo()),), chain(), "pairs/chosen/kl"),
        (
            (WeightedLoss(1.0, PreferenceRanking()), WeightedLoss(0.5, BestOfNSft("sum"))),
            chain(),
            "ranking/accuracy",
        ),
        ((WeightedLoss(1.0, SftLoss()), WeightedLoss(0.3, FullKl())), chain(BestOfN()), "kl/full"),
    ],
    ids=["dpo", "tdpo", "ranking", "likelihood"],
)
def test_group_losses_train_on_own_samples(tmp_path, losses, credit, key):
    recipe = toy_recipe().replace(
        model_passes=(RefLogprobs(),),
        credit=credit,
        losses=losses,
        loss_aggregation=LossAggregation("seq_mean_token_mean"),
        minibatch_size=24,
    )
    check_spec(recipe, ("even", "high"))
    run = Run(tmp_path)
    train(recipe, toy_world(), max_steps=2, seed=0, run=run, save_steps=2)
    assert key in (tmp_path / "metrics.jsonl").read_text()
