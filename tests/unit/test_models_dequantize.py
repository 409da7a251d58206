"""Models with quantized layers: dense copies, reward heads on top, and the packages that they need."""

import pytest
import torch
from torch import nn

from paretune.core.errors import MissingDependencyError
from paretune.models.critic import critic_from_policy
from paretune.models.dequantize import dense_copy, is_quantized
from paretune.models.load import ModelSpec, load_policy, save_model
from paretune.models.lora import LoraSpec, add_lora
from paretune.models.packages import missing_package, missing_package_error
from support.tiny_models import tiny_model, tiny_tokenizer

SIZE = 101


class PackedLinear(nn.Module):
    """Weights in int8 with one scale, as the layers of quantization packages."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = float(linear.weight.detach().abs().max()) / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def quantized(kind="qwen2"):
    """A model whose MLPs are packed; attention stays as it is, so that peft can adapt it."""
    model = tiny_model(kind, SIZE, initial=0.3)
    for layer in model.model.layers:
        layer.mlp.up_proj = PackedLinear(layer.mlp.up_proj)
    model.hf_quantizer = object()
    return model


INPUT_IDS = torch.arange(12)[None]


@torch.no_grad()
def test_a_dense_copy_computes_what_the_quantized_model_with_its_adapter_does(tmp_path):
    model = add_lora(quantized(), LoraSpec(r=2, target_modules=("q_proj", "v_proj")), seed=0)
    for p in model.parameters():
        if p.requires_grad:
            p.add_(0.05)
    expected = model(INPUT_IDS).logits
    assert torch.allclose(dense_copy(model)(INPUT_IDS).logits, expected, atol=1e-4)
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    plain = load_policy(ModelSpec(path=str(tmp_path / "m"))).model
    assert not is_quantized(plain)
    assert type(plain.model.layers[0].mlp.up_proj) is nn.Linear
    assert torch.allclose(plain(INPUT_IDS).logits, expected, atol=1e-4)
    assert torch.equal(model(INPUT_IDS).logits, expected), "the model itself is unchanged"


def test_a_critic_copies_the_packed_body_and_trains_adapter_and_heads():
    policy = quantized()
    critic = critic_from_policy(policy, 2, lora=LoraSpec(r=2, target_modules=("q_proj",)))
    base = critic.network.get_base_model()
    assert isinstance(base.model.layers[0].mlp.up_proj, PackedLinear)
    assert base.model.layers[0].mlp.up_proj is not policy.model.layers[0].mlp.up_proj
    values = critic(INPUT_IDS, torch.ones_like(INPUT_IDS, dtype=torch.bool))
    assert values.shape == (1, 12, 2)
    assert not values.any()
    trained = [name for name, p in critic.named_parameters() if p.requires_grad]
    assert all("lora_" in name or ".score." in name for name in trained)


@pytest.mark.parametrize(
    ("message", "package"),
    [
        ("requires bitsandbytes: `pip install -U bitsandbytes>=0.46.1`", "bitsandbytes"),
        ("Loading needs (`pip install 'auto-round>=0.5'`)", "auto-round"),
        ("MarianTokenizer requires the SentencePiece library but it was not found", "sentencepiece"),
        ("`tiktoken` is required. Install it with `pip install tiktoken`.", "tiktoken"),
        ("Please install it with `pip install aqlm[gpu,cpu]`", "aqlm[gpu,cpu]"),
        ("something else", ""),
    ],
)
def test_the_package_is_read_from_the_message_of_the_library(message, package):
    assert missing_package(ImportError(message)) == package


def test_a_module_that_cannot_be_imported_is_named():
    error = ModuleNotFoundError("No module named 'causal_conv1d'", name="causal_conv1d.ops")
    problem = missing_package_error("model", error)
    assert isinstance(problem, MissingDependencyError)
    assert str(problem).endswith("fix: pip install -U causal_conv1d")
