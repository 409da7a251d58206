"""FLOP counts: by hand, and against what torch counts while it computes."""

import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from paretune.models.critic import critic_from_policy
from paretune.models.flops import (
    ForwardShape,
    ModelFlops,
    forward_backward_flops,
    forward_flops,
    generation_shape,
    independent_rows_shape,
    response_shape,
    shared_prefix_shape,
)
from paretune.models.forward.logprobs import compute_logprobs, hidden_states
from paretune.models.lora import AdapterDisabledModel, LoraSpec, add_lora
from paretune.models.model_passes import (
    CriticValues,
    ImplicitReward,
    Models,
    OldLogprobs,
    PolicyEntropy,
    RefLogprobs,
)
from paretune.rl.algorithm_spec import CriticConfig
from paretune.rl.metrics import PhaseTimer
from paretune.rl.throughput import (
    models_in_pass,
    record_model_pass_flops,
    record_rollout_flops,
    record_update_flops,
)
from support.tiny_models import tiny_model
from tinyrows import VOCAB, batch_of, rows
from toy import algorithm, toy_recipe

TINY = {"width": 8, "layers": 2, "heads": 4}
LINEAR = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16)
"""Two layers with half as many key heads as query heads: q, k and v, o, and the three of the MLP."""
HEAD = 10 * 8


def small_model(kind="llama", **options):
    return tiny_model(kind, 10, **(TINY | options))


def two_rows(same_prompt):
    """Responses of 2 and 4 tokens to prompts of 3 tokens."""
    input_ids = torch.tensor([[2, 3, 4, 5, 6, 0, 0], [2, 3, 4, 7, 6, 5, 4]])
    if not same_prompt:
        input_ids[1, 0] = 9
    position = torch.arange(7)
    attention_mask = position < torch.tensor([[5], [7]])
    batch = batch_of(input_ids, attention_mask, attention_mask & (position >= 3))
    return batch.replace(group=torch.tensor([0, 0 if same_prompt else 1]))


def torch_flops(compute):
    """FLOPs of matrix products outside attention, as counted by torch."""
    with FlopCounterMode(display=False) as counter:
        compute()
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if str(op) in {"aten.mm", "aten.addmm"})


def without_attention(model_flops):
    return ModelFlops(
        **{f: getattr(model_flops, f) for f in ModelFlops.__dataclass_fields__} | {"attention_width": 0}
    )


@pytest.mark.parametrize("shape_of", [response_shape, generation_shape])
@pytest.mark.parametrize(
    ("same_prompt", "num_tokens", "pairs"), [(True, 3 + 1 + 3, 6 + 4 + 15), (False, 10, 10 + 21)]
)
def test_a_shared_prompt_counts_once_and_last_tokens_never(shape_of, same_prompt, num_tokens, pairs):
    """Prompt 1 + 2 + 3 pairs; then queries that attend to 4, and 4, 5, 6 keys. 6 response tokens."""
    shape = shape_of(two_rows(same_prompt))
    assert (shape.num_tokens, shape.attention_pairs(None), shape.num_predictions) == (num_tokens, pairs, 6)
    forward = 2 * LINEAR * num_tokens + 2 * (4 * 8 * pairs) + 2 * HEAD * 6
    assert forward_flops(small_model(), shape) == forward
    assert forward_backward_flops(small_model(), shape) == 3 * forward


def test_duplicate_rows_are_counted_once():
    batch = two_rows(same_prompt=True)
    duplicated = batch.select(torch.tensor([0, 0, 1, 1]))
    assert response_shape(duplicated).num_tokens == response_shape(batch).num_tokens
    assert response_shape(duplicated).num_predictions == 2 * response_shape(batch).num_predictions


def test_a_reward_model_makes_one_prediction_at_the_end_of_each_row():
    """Prompts of 3 and 2 tokens; two responses to the first and one to the second."""
    shape = shared_prefix_shape([3, 2], [(3, 2), (3, 4), (2, 1)])
    assert (shape.num_tokens, shape.num_predictions) == (3 + 2 + 2 + 4 + 1, 3)
    assert shape.attention_pairs(None) == (6 + 3) + (4 + 5) + (4 + 5 + 6 + 7) + 3


def test_a_window_limits_attention_pairs():
    """Tokens 1 to 5 of a row attend to 1, 2, 3, 3, 3 keys; the second segment are the last two of them."""
    shape = ForwardShape(np.array([0, 3]), np.array([5, 2]), 1)
    assert shape.attention_pairs(3) == 12 + 6
    assert shape.attention_pairs(100) == shape.attention_pairs(None) == 15 + 4 + 5


@pytest.mark.parametrize(
    ("kind", "options", "layers"),
    [
        ("llama", {}, {None: 2}),
        ("gpt2", {}, {None: 2}),
        ("mistral", {"sliding_window": 7}, {7: 2}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}, {None: 1, 7: 1}),
    ],
)
def test_layers_are_counted_by_window(kind, options, layers):
    assert ModelFlops.from_model(small_model(kind, **options)).layers_by_window == layers


def test_tied_and_untied_heads_count_the_same():
    assert ModelFlops.from_model(small_model()) == ModelFlops.from_model(
        small_model(tie_word_embeddings=False)
    )


def test_critics_have_their_own_head_and_unsupported_families_no_count(monkeypatch):
    critic = critic_from_policy(small_model(), 3)
    assert ModelFlops.from_model(critic) == ModelFlops(
        trainable_params=LINEAR,
        frozen_params=0,
        attention_width=8,
        layers_by_window={None: 2},
        head_params=3 * 8,
        head_trainable=True,
    )
    monkeypatch.setattr("paretune.models.forward.attention.SUPPORTED_MODEL_TYPES", frozenset())
    assert ModelFlops.from_model(critic) is None
    assert math.isnan(forward_flops(critic, response_shape(two_rows(same_prompt=True))))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_linear_layers_of_padded_rows_match_torch(kind):
    """Rows of equal length without common prefix, so that nothing is padded."""
    model, input_ids = (
        small_model(kind),
        torch.randint(2, 10, (3, 6), generator=torch.Generator().manual_seed(0)),
    )
    model_flops = without_attention(ModelFlops.from_model(model))
    body = torch_flops(lambda: hidden_states(model, input_ids, torch.ones_like(input_ids).bool()))
    assert body == model_flops.forward(independent_rows_shape([7, 7, 7], 0))


def test_forward_and_backward_of_packed_rows_match_torch():
    """The gradient of the head's weight is added in place, which torch does not count."""
    input_ids, attention_mask, response_mask = rows()
    input_ids[:, 0] = torch.arange(2, 5)  # a common prefix that is too short to be shared
    model, batch = tiny_model("llama", VOCAB), batch_of(input_ids, attention_mask, response_mask)
    shape, model_flops = response_shape(batch), ModelFlops.from_model(model)

    def forward_backward():
        compute_logprobs(model, batch.input_ids, batch.attention_mask, batch.response_mask).sum().backward()

    uncounted = 2 * model_flops.head_params * shape.num_predictions
    assert torch_flops(forward_backward) == without_attention(model_flops).forward_backward(shape) - uncounted


def test_frozen_layers_under_an_adapter_cost_no_weight_gradients():
    """The inputs of the lowest q, k and v, and of their A, need no gradient: 2 per weight and token less."""
    model, batch = add_lora(small_model(), LoraSpec(r=2), 0), two_rows(same_prompt=True)
    shape, model_flops = response_shape(batch), ModelFlops.from_model(model)
    adapter_params = 2 * 2 * (2 * 16 + 2 * 12 + 3 * 24)
    assert (model_flops.trainable_params, model_flops.frozen_params, model_flops.head_trainable) == (
        adapter_params,
        LINEAR,
        False,
    )
    disabled = ModelFlops.from_model(AdapterDisabledModel(model))
    assert (disabled.trainable_params, disabled.frozen_params) == (0, LINEAR)

    def forward_backward():
        compute_logprobs(model, batch.input_ids, batch.attention_mask, batch.response_mask).sum().backward()

    lowest = (8 * 8 + 2 * 8 * 4) + 3 * 2 * 8
    assert (
        torch_flops(forward_backward)
        == without_attention(model_flops).forward_backward(shape) - 2 * lowest * shape.num_tokens
    )


def test_models_of_each_model_pass():
    policy, start, tuned = small_model(), small_model(), small_model()
    critic = critic_from_policy(policy, 1)
    models = Models(policy=policy, critic=critic, frozen={"reference": start, "dpo": tuned})
    assert models_in_pass(OldLogprobs(), models) == ()
    assert models_in_pass(OldLogprobs(source="policy"), models) == (policy,)
    assert models_in_pass(RefLogprobs(), models) == (start,)
    assert models_in_pass(ImplicitReward(), models) == (tuned, start)
    assert models_in_pass(PolicyEntropy(), models) == (policy,)
    assert models_in_pass(CriticValues(), models) == (critic,)


def test_a_phase_with_an_unknown_model_pass_has_no_flop_count():
    batch, models, timer = two_rows(same_prompt=True), Models(policy=small_model()), PhaseTimer()
    pass_flops = forward_flops(models.policy, response_shape(batch))
    record_model_pass_flops(timer, [OldLogprobs(), PolicyEntropy(), PolicyEntropy()], models, batch)
    assert timer.read_and_reset(1.0)["flops/model_passes"] == 2 * pass_flops
    record_model_pass_flops(timer, [PolicyEntropy(), lambda *args: batch], models, batch)
    assert "flops/model_passes" not in timer.read_and_reset(1.0)
    record_model_pass_flops(timer, [OldLogprobs()], models, batch)
    assert "flops/model_passes" not in timer.read_and_reset(1.0)


def test_update_flops_count_all_models_with_and_without_gradients():
    """During critic warmup the policy has no backward pass; an exact KL needs the reference too."""
    batch, policy, start = two_rows(same_prompt=True), small_model(), small_model(layers=1)
    models = Models(policy=policy, critic=critic_from_policy(policy, 1), frozen={"reference": start})
    forward, back = (
        forward_flops(policy, response_shape(batch)),
        forward_backward_flops(policy, response_shape(batch)),
    )
    critic = forward_backward_flops(models.critic, response_shape(batch))
    reference = forward_flops(start, response_shape(batch))

    def update_flops(spec, step=0):
        timer = PhaseTimer()
        record_update_flops(timer, spec, models, batch, step)
        timer.seconds["update"] = 0.5
        metrics = timer.read_and_reset(1.0)
        assert metrics["tokens_per_second/update"] == 12 / 0.5
        return metrics["flops/update"]

    assert update_flops(toy_recipe()) == back
    ppo = algorithm("ppo").replace(critic=CriticConfig(warmup_steps=1))
    assert update_flops(ppo, step=0) == forward + critic
    assert update_flops(ppo, step=1) == back + critic
    assert update_flops(algorithm("tdpo")) == back + reference


def test_sampling_is_recorded_with_flops_and_tokens():
    batch, models, timer = two_rows(same_prompt=True), Models(policy=small_model()), PhaseTimer()
    record_rollout_flops(timer, lambda *args, **kwargs: None, models, batch)
    timer.seconds["rollout"] = 0.5
    metrics = timer.read_and_reset(1.0)
    assert metrics["tokens_per_second/rollout"] == 6 / 0.5
    assert metrics["flops/rollout"] == forward_flops(models.policy, generation_shape(batch))
