"""Operations that a pass has to do: worked by hand, and held against what torch counts while it computes."""

import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from paretune.learn.clock import Clock
from paretune.learn.effort import asked_by, drawn, learnt, measured
from paretune.learn.recipe import CriticStart
from paretune.models.adapt import AdapterOff, Lora, add_lora
from paretune.models.critic import new_critic
from paretune.models.flops import (
    Reading,
    Work,
    apart,
    asked,
    continued,
    forward_flops,
    gradient_flops,
    written,
)
from paretune.models.forward import hidden_states, token_logp
from paretune.models.measure import Behaviour, ImplicitReward, Models, Reference, Undecided, Values
from paretune.models.tiny import tiny_model
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
    return batch.set(group=torch.tensor([0, 0 if same else 1]))


def counted(ask):
    """Operations of matrix products outside attention that torch saw."""
    with FlopCounterMode(display=False) as counter:
        ask()
    found = counter.get_flop_counts()["Global"]
    return sum(n for op, n in found.items() if str(op) in {"aten.mm", "aten.addmm"})


def without_attention(work):
    return Work(**{f: getattr(work, f) for f in Work.__dataclass_fields__} | {"width": 0})


@pytest.mark.parametrize("count", [asked, written])
@pytest.mark.parametrize(("same", "tokens", "pairs"), [(True, 3 + 1 + 3, 6 + 4 + 15), (False, 10, 10 + 21)])
def test_a_prompt_counts_once_and_the_last_token_never(count, same, tokens, pairs):
    """Prompt 1 + 2 + 3 pairs; then queries that see 4, and 4, 5, 6 keys. Each token of a response asks."""
    reading = count(two(same))
    assert (reading.tokens, reading.pairs(None), reading.asked) == (tokens, pairs, 6)
    forward = 2 * LINEAR * tokens + 2 * (4 * 8 * pairs) + 2 * HEAD * 6
    assert forward_flops(model_of(), reading) == forward
    assert gradient_flops(model_of(), reading) == 3 * forward


def test_rows_are_counted_once_however_often_they_were_drawn():
    batch = two(same=True)
    again = batch.rows(torch.tensor([0, 0, 1, 1]))
    assert asked(again).tokens == asked(batch).tokens
    assert asked(again).asked == 2 * asked(batch).asked


def test_a_reward_model_reads_to_the_end_of_each_row_and_is_asked_there():
    """Prompts of 3 and 2 tokens; two responses to the first and one to the second."""
    reading = continued([3, 2], [(3, 2), (3, 4), (2, 1)])
    assert (reading.tokens, reading.asked) == (3 + 2 + 2 + 4 + 1, 3)
    assert reading.pairs(None) == (6 + 3) + (4 + 5) + (4 + 5 + 6 + 7) + 3


def test_a_window_hides_keys():
    """Queries 1 to 5 of a row see 1, 2, 3, 3, 3 keys; the last two of them stand behind three others."""
    reading = Reading(np.array([0, 3]), np.array([5, 2]), 1)
    assert reading.pairs(3) == 12 + 6
    assert reading.pairs(100) == reading.pairs(None) == 15 + 4 + 5


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
    assert Work.of(model_of(kind, **more)).layers == layers


def test_the_head_is_counted_whether_or_not_it_is_tied():
    assert Work.of(model_of()) == Work.of(model_of(tie_word_embeddings=False))


def test_a_critic_asks_its_own_head_and_other_families_nobody_can_count(monkeypatch):
    critic = new_critic(model_of(), 3)
    assert Work.of(critic) == Work(
        trained=LINEAR, frozen=0, width=8, layers={None: 2}, head=3 * 8, head_learns=True
    )
    monkeypatch.setattr("paretune.models.attention.FAMILIES", frozenset())
    assert Work.of(critic) is None
    assert math.isnan(forward_flops(critic, asked(two(same=True))))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_linear_layers_of_the_padded_path_are_what_torch_counts(kind):
    """Rows of equal length without anything in common, so that nothing is padded."""
    model, tokens = model_of(kind), torch.randint(2, 10, (3, 6), generator=torch.Generator().manual_seed(0))
    work = without_attention(Work.of(model))
    body = counted(lambda: hidden_states(model, tokens, torch.ones_like(tokens).bool()))
    assert body == work.forward(apart([7, 7, 7], 0))


def test_a_pass_and_its_way_back_are_what_torch_counts_where_all_is_packed():
    """The gradient of the head's weight is added in place, which torch leaves out."""
    tokens, attend, respond = rows()
    tokens[:, 0] = torch.arange(2, 5)  # so little in common is not worth packing
    model, batch = tiny_model("llama", VOCAB), batch_of(tokens, attend, respond)
    reading, work = asked(batch), Work.of(model)

    def back():
        token_logp(model, batch.tokens, batch.attend, batch.respond).sum().backward()

    left_out = 2 * work.head * reading.asked
    assert counted(back) == without_attention(work).gradient(reading) - left_out


def test_an_adapter_learns_and_what_it_is_put_on_costs_no_gradient_of_weights():
    """The lowest queries, keys and values, and their A, go on to no gradient: 2 a weight and token less."""
    model, batch = add_lora(model_of(), Lora(r=2), 0), two(same=True)
    reading, work = asked(batch), Work.of(model)
    small = 2 * 2 * (2 * 16 + 2 * 12 + 3 * 24)
    assert (work.trained, work.frozen, work.head_learns) == (small, LINEAR, False)
    off = Work.of(AdapterOff(model))
    assert (off.trained, off.frozen) == (0, LINEAR)

    def back():
        token_logp(model, batch.tokens, batch.attend, batch.respond).sum().backward()

    lowest = (8 * 8 + 2 * 8 * 4) + 3 * 2 * 8
    assert counted(back) == without_attention(work).gradient(reading) - 2 * lowest * reading.tokens


def test_every_measurement_says_whom_it_asks():
    policy, start, tuned = model_of(), model_of(), model_of()
    critic = new_critic(policy, 1)
    models = Models(policy=policy, critic=critic, frozen={"reference": start, "dpo": tuned})
    assert asked_by(Behaviour(), models) == ()
    assert asked_by(Behaviour(by="trainer"), models) == (policy,)
    assert asked_by(Reference(), models) == (start,)
    assert asked_by(ImplicitReward(), models) == (tuned, start)
    assert asked_by(Undecided(), models) == (policy,)
    assert asked_by(Values(), models) == (critic,)


def test_a_phase_with_a_part_that_nobody_knows_has_no_count():
    batch, models, clock = two(same=True), Models(policy=model_of()), Clock()
    one = forward_flops(models.policy, asked(batch))
    measured(clock, [Behaviour(), Undecided(), Undecided()], models, batch)
    assert clock.reading(1.0)["flops/measure"] == 2 * one
    measured(clock, [Undecided(), lambda *given: batch], models, batch)
    assert "flops/measure" not in clock.reading(1.0)
    measured(clock, [Behaviour()], models, batch)
    assert "flops/measure" not in clock.reading(1.0)


def test_learning_counts_everybody_who_is_asked_with_a_gradient_or_without():
    """While the critic learns alone, the policy is only asked; another divergence asks the reference too."""
    batch, policy, start = two(same=True), model_of(), model_of(layers=1)
    models = Models(policy=policy, critic=new_critic(policy, 1), frozen={"reference": start})
    forward, back = forward_flops(policy, asked(batch)), gradient_flops(policy, asked(batch))
    critic = gradient_flops(models.critic, asked(batch))
    reference = forward_flops(start, asked(batch))

    def told(recipe, step=0):
        clock = Clock()
        learnt(clock, recipe, models, batch, step)
        clock.seconds["learn"] = 0.5
        found = clock.reading(1.0)
        assert found["tokens_per_second/learn"] == 12 / 0.5
        return found["flops/learn"]

    assert told(toy_recipe()) == back
    ppo = algorithm("ppo").but(critic=CriticStart(alone=1))
    assert told(ppo, step=0) == forward + critic
    assert told(ppo, step=1) == back + critic
    assert told(algorithm("tdpo")) == back + reference


def test_what_was_drawn_is_told_with_its_tokens():
    batch, models, clock = two(same=True), Models(policy=model_of()), Clock()
    drawn(clock, lambda *given, **how: None, models, batch)
    clock.seconds["sample"] = 0.5
    found = clock.reading(1.0)
    assert found["tokens_per_second/sample"] == 6 / 0.5
    assert found["flops/sample"] == forward_flops(models.policy, written(batch))
