"""How many rows a product is given."""

import pytest
import torch

from paretune.models.forward.logprobs import flat_hidden_states
from paretune.models.forward.packing import is_half_on_cpu, round_up, round_up_rows
from support.tiny_models import tiny_model
from tinyrows import VOCAB, rows

HALF = torch.zeros(1, dtype=torch.bfloat16)


@pytest.mark.parametrize(("n", "made"), [(1, 8), (8, 8), (9, 16), (128, 128), (129, 192), (1000, 1024)])
def test_half_precision_on_a_cpu_knows_few_numbers_of_rows(n, made):
    assert round_up_rows(n, HALF) == made
    assert round_up_rows(n, HALF.half()) == made


def test_full_precision_and_accelerators_get_what_is_asked():
    assert round_up_rows(129, HALF.float()) == 129
    assert round_up_rows(129, HALF.to("meta")) == 129
    assert not is_half_on_cpu(HALF.to("meta"))


def test_a_multiple():
    assert [round_up(n, 16) for n in (0, 1, 16, 17)] == [0, 16, 16, 32]


def test_a_model_in_half_precision_reads_rows_of_few_lengths():
    """Else each new length costs a compilation, and memory that stays."""
    model = tiny_model("llama", VOCAB, initial=0.3).to(torch.bfloat16)
    tokens, attend, _ = rows(lengths=(9, 6, 3))
    layer, seen = model.model.layers[0].mlp.up_proj, list[int]()
    layer.register_forward_hook(lambda module, given, out: seen.append(given[0].shape[1]))
    found = flat_hidden_states(model, tokens, attend)
    whole = flat_hidden_states(model.float(), tokens, attend)
    assert seen == [24, 18], "18 tokens are real"
    at = found.index[attend]
    assert torch.allclose(found.flat[at].float(), whole.flat[whole.index[attend]], atol=0.05)
