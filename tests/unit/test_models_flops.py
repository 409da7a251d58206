"""Operations that a pass has to do: worked by hand, and held against what torch counts while it computes."""

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
"""Two layers with half as many keys as queries: q, k and v, o, and the three of the MLP."""
HEAD = 10 * 8


def model_of(kind="llama", **more):
    return tiny_model(kind, 10, **(TINY | more))


def two(same):
    """Responses of 2 and of 4 tokens to prompts of 3."""
    tokens = torch.tensor([[2, 3, 4, 5, 6, 0, 0], [2, 3, 4, 7, 6, 5, 4]])
    if not same:
        tokens[1, 0] = 9
    place = torch.arange(7)
    attend = place < torch.tensor([[5], [7]])
    batch = batch_of(tokens, attend, attend & (place >= 3))
    return batch.replace(group=torch.tensor([0, 0 if same else 1]))


def counted(ask):
    """Operations of matrix products outside attention that torch saw."""
    with FlopCounterMode(display=False) as counter:
        ask()
    found = counter.get_flop_counts()["Global"]
    return sum(n for op, n in found.items() if str(op) in {"aten.mm", "aten.addmm"})


def without_attention(work):
    return ModelFlops(**{f: getattr(work, f) for f in ModelFlops.__dataclass_fields__} | {"width": 0})


@pytest.mark.parametrize("count", [response_shape, generation_shape])
@pytest.mark.parametrize(("same", "tokens", "pairs"), [(True, 3 + 1 + 3, 6 + 4 + 15), (False, 10, 10 + 21)])
def test_a_prompt_counts_once_and_the_last_token_never(count, same, tokens, pairs):
    """Prompt 1 + 2 + 3 pairs; then queries that see 4, and 4, 5, 6 keys. Each token of a response asks."""
    reading = count(two(same))
    assert (reading.tokens, reading.pairs(None), reading.asked) == (tokens, pairs, 6)
    forward = 2 * LINEAR * tokens + 2 * (4 * 8 * pairs) + 2 * HEAD * 6
    assert forward_flops(model_of(), reading) == forward
    assert forward_backward_flops(model_of(), reading) == 3 * forward


def test_rows_are_counted_once_however_often_they_were_drawn():
    batch = two(same=True)
    again = batch.select(torch.tensor([0, 0, 1, 1]))
    assert response_shape(again).num_tokens == response_shape(batch).num_tokens
    assert response_shape(again).num_predictions == 2 * response_shape(batch).num_predictions


def test_a_reward_model_reads_to_the_end_of_each_row_and_is_asked_there():
    """Prompts of 3 and 2 tokens; two responses to the first and one to the second."""
    reading = shared_prefix_shape([3, 2], [(3, 2), (3, 4), (2, 1)])
    assert (reading.num_tokens, reading.num_predictions) == (3 + 2 + 2 + 4 + 1, 3)
    assert reading.attention_pairs(None) == (6 + 3) + (4 + 5) + (4 + 5 + 6 + 7) + 3


def test_a_window_hides_keys():
    """Queries 1 to 5 of a row see 1, 2, 3, 3, 3 keys; the last two of them stand behind three others."""
    reading = ForwardShape(np.array([0, 3]), np.array([5, 2]), 1)
    assert reading.attention_pairs(3) == 12 + 6
    assert reading.attention_pairs(100) == reading.attention_pairs(None) == 15 + 4 + 5


@pytest.mark.parametrize(
    ("kind", "more", "layers"),
    [
        ("llama", {}, {None: 2}),
        ("gpt2", {}, {None: 2}),
        ("mistral", {"sliding_window": 7}, {7: 2}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}, {None: 1, 7: 1}),
    ],
)
def test_layers_are_counted_by_their_window(kind, more, layers):
    assert ModelFlops.from_model(model_of(kind, **more)).layers_by_window == layers


def test_the_head_is_counted_whether_or_not_it_is_tied():
    assert ModelFlops.from_model(model_of()) == ModelFlops.from_model(model_of(tie_word_embeddings=False))


def test_a_critic_asks_its_own_head_and_other_families_nobody_can_count(monkeypatch):
    critic = critic_from_policy(model_of(), 3)
    assert ModelFlops.from_model(critic) == ModelFlops(
        trainable_params=LINEAR,
        frozen_params=0,
        attention_width=8,
        layers_by_window={None: 2},
        head_params=3 * 8,
        head_trainable=True,
    )
    monkeypatch.setattr("paretune.models.forward.attention.FAMILIES", frozenset())
    assert ModelFlops.from_model(critic) is None
    assert math.isnan(forward_flops(critic, response_shape(two(same=True))))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_linear_layers_of_the_padded_path_are_what_torch_counts(kind):
    """Rows of equal length without anything in common, so that nothing is padded."""
    model, tokens = model_of(kind), torch.randint(2, 10, (3, 6), generator=torch.Generator().manual_seed(0))
    work = without_attention(ModelFlops.from_model(model))
    body = counted(lambda: hidden_states(model, tokens, torch.ones_like(tokens).bool()))
    assert body == work.forward(independent_rows_shape([7, 7, 7], 0))


def test_a_pass_and_its_way_back_are_what_torch_counts_where_all_is_packed():
    """The gradient of the head's weight is added in place, which torch leaves out."""
    tokens, attend, respond = rows()
    tokens[:, 0] = torch.arange(2, 5)  # so little in common is not worth packing
    model, batch = tiny_model("llama", VOCAB), batch_of(tokens, attend, respond)
    reading, work = response_shape(batch), ModelFlops.from_model(model)

    def back():
        compute_logprobs(model, batch.input_ids, batch.attention_mask, batch.response_mask).sum().backward()

    left_out = 2 * work.head_params * reading.num_predictions
    assert counted(back) == without_attention(work).forward_backward(reading) - left_out


def test_an_adapter_learns_and_what_it_is_put_on_costs_no_gradient_of_weights():
    """The lowest queries, keys and values, and their A, go on to no gradient: 2 a weight and token less."""
    model, batch = add_lora(model_of(), LoraSpec(r=2), 0), two(same=True)
    reading, work = response_shape(batch), ModelFlops.from_model(model)
    small = 2 * 2 * (2 * 16 + 2 * 12 + 3 * 24)
    assert (work.trainable_params, work.frozen_params, work.head_trainable) == (small, LINEAR, False)
    off = ModelFlops.from_model(AdapterDisabledModel(model))
    assert (off.trainable_params, off.frozen_params) == (0, LINEAR)

    def back():
        compute_logprobs(model, batch.input_ids, batch.attention_mask, batch.response_mask).sum().backward()

    lowest = (8 * 8 + 2 * 8 * 4) + 3 * 2 * 8
    assert (
        counted(back) == without_attention(work).forward_backward(reading) - 2 * lowest * reading.num_tokens
    )


def test_every_measurement_says_whom_it_asks():
    policy, start, tuned = model_of(), model_of(), model_of()
    critic = critic_from_policy(policy, 1)
    models = Models(policy=policy, critic=critic, frozen={"reference": start, "dpo": tuned})
    assert models_in_pass(OldLogprobs(), models) == ()
    assert models_in_pass(OldLogprobs(source="trainer"), models) == (policy,)
    assert models_in_pass(RefLogprobs(), models) == (start,)
    assert models_in_pass(ImplicitReward(), models) == (tuned, start)
    assert models_in_pass(PolicyEntropy(), models) == (policy,)
    assert models_in_pass(CriticValues(), models) == (critic,)


def test_a_phase_with_a_part_that_nobody_knows_has_no_count():
    batch, models, clock = two(same=True), Models(policy=model_of()), PhaseTimer()
    one = forward_flops(models.policy, response_shape(batch))
    record_model_pass_flops(clock, [OldLogprobs(), PolicyEntropy(), PolicyEntropy()], models, batch)
    assert clock.read_and_reset(1.0)["flops/measure"] == 2 * one
    record_model_pass_flops(clock, [PolicyEntropy(), lambda *given: batch], models, batch)
    assert "flops/measure" not in clock.read_and_reset(1.0)
    record_model_pass_flops(clock, [OldLogprobs()], models, batch)
    assert "flops/measure" not in clock.read_and_reset(1.0)


def test_learning_counts_everybody_who_is_asked_with_a_gradient_or_without():
    """While the critic learns alone, the policy is only asked; another divergence asks the reference too."""
    batch, policy, start = two(same=True), model_of(), model_of(layers=1)
    models = Models(policy=policy, critic=critic_from_policy(policy, 1), frozen={"reference": start})
    forward, back = (
        forward_flops(policy, response_shape(batch)),
        forward_backward_flops(policy, response_shape(batch)),
    )
    critic = forward_backward_flops(models.critic, response_shape(batch))
    reference = forward_flops(start, response_shape(batch))

    def told(recipe, step=0):
        clock = PhaseTimer()
        record_update_flops(clock, recipe, models, batch, step)
        clock.seconds["learn"] = 0.5
        found = clock.read_and_reset(1.0)
        assert found["tokens_per_second/learn"] == 12 / 0.5
        return found["flops/learn"]

    assert told(toy_recipe()) == back
    ppo = algorithm("ppo").replace(critic=CriticConfig(warmup_steps=1))
    assert told(ppo, step=0) == forward + critic
    assert told(ppo, step=1) == back + critic
    assert told(algorithm("tdpo")) == back + reference


def test_what_was_drawn_is_told_with_its_tokens():
    batch, models, clock = two(same=True), Models(policy=model_of()), PhaseTimer()
    record_rollout_flops(clock, lambda *given, **how: None, models, batch)
    clock.seconds["sample"] = 0.5
    found = clock.read_and_reset(1.0)
    assert found["tokens_per_second/sample"] == 6 / 0.5
    assert found["flops/sample"] == forward_flops(models.policy, generation_shape(batch))
