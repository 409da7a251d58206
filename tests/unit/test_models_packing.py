"""Rounding of the number of rows in half precision."""

import pytest
import torch

from paretune.models.forward.logprobs import flat_hidden_states
from paretune.models.forward.packing import is_half_on_cpu, round_up, round_up_rows
from support.tiny_models import tiny_model
from tinyrows import VOCAB, rows

HALF = torch.zeros(1, dtype=torch.bfloat16)


@pytest.mark.parametrize(("n", "rounded"), [(1, 8), (8, 8), (9, 16), (128, 128), (129, 192), (1000, 1024)])
def test_half_precision_on_a_cpu_uses_few_numbers_of_rows(n, rounded):
    assert round_up_rows(n, HALF) == rounded
    assert round_up_rows(n, HALF.half()) == rounded


def test_full_precision_and_accelerators_are_not_rounded():
    assert round_up_rows(129, HALF.float()) == 129
    assert round_up_rows(129, HALF.to("meta")) == 129
    assert not is_half_on_cpu(HALF.to("meta"))


def test_round_up():
    assert [round_up(n, 16) for n in (0, 1, 16, 17)] == [0, 16, 16, 32]


def test_packed_rows_are_padded_in_half_precision():
    """Otherwise each new length costs a kernel compilation, and memory that is not freed."""
    model = tiny_model("llama", VOCAB, initial=0.3).to(torch.bfloat16)
    input_ids, attention_mask, _ = rows(lengths=(9, 6, 3))
    layer, lengths = model.model.layers[0].mlp.up_proj, list[int]()
    layer.register_forward_hook(lambda module, args, out: lengths.append(args[0].shape[1]))
    half = flat_hidden_states(model, input_ids, attention_mask)
    full = flat_hidden_states(model.float(), input_ids, attention_mask)
    assert lengths == [24, 18], "18 tokens are real"
    index = half.index[attention_mask]
    assert torch.allclose(half.flat[index].float(), full.flat[full.index[attention_mask]], atol=0.05)
