"""Tiny random models of many transformers families, built from their configuration classes."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

VOCAB = 512
EOS, PAD = 2, 0

# Families initialize their weights to almost uniform distributions; a wrong cache would hardly show.
WEIGHT_SCALE = 4.0
# Decay rates, time steps and gates of recurrent layers, and selection biases, are no weights of a product.
_UNSCALED = ("A_log", "dt_bias", "dt_proj", "time_", "_bias", "lambda", "rg_lru", "x_proj")

_VOCAB_FIELDS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": PAD}
_SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
_GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
_WINDOW = {"sliding_window": 6}
_DELTA_NET = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_d_conv": 4}


@dataclass(frozen=True, slots=True)
class Family:
    """A family as the tests build it."""

    name: str
    """The name in tables."""
    model_type: str
    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of the configuration in addition to `_SIZE`, which other families name differently."""
    sized: bool = True
    """The configuration has the usual names of sizes."""

    def config(self, **changes: Any) -> PretrainedConfig:
        """The tiny configuration."""
        fields = _VOCAB_FIELDS | (_SIZE if self.sized else {}) | self.fields | changes
        return AutoConfig.for_model(self.model_type, **fields)

    def model(self, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
        """A float32 model with random weights, large enough that distributions are far from uniform."""
        config = self.config(**changes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Only eager attention of transformers knows soft caps.
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() > 1 and not any(part in name for part in _UNSCALED):
                    weight.mul_(WEIGHT_SCALE)
        return model.eval()


FAMILIES = (
    Family("Llama 3", "llama", {"rope_theta": 500000.0, "tie_word_embeddings": False}),
    Family("Qwen2.5", "qwen2", {"tie_word_embeddings": True}),
    Family("Qwen3", "qwen3", {"head_dim": 8}),
    Family("Mistral (sliding window)", "mistral", _WINDOW),
    Family("Gemma", "gemma", {"head_dim": 8}),
    Family(
        "Gemma 2",
        "gemma2",
        {"head_dim": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0, **_WINDOW},
    ),
    Family("Gemma 3", "gemma3_text", {"head_dim": 8, **_WINDOW}),
    Family("Phi-3, Phi-4", "phi3"),
    Family("OLMo 2", "olmo2"),
    Family("Granite", "granite", {"logits_scaling": 4.0, "residual_multiplier": 0.5}),
    Family("SmolLM3", "smollm3"),
    Family("GPT-2", "gpt2", _GPT2, sized=False),
    Family("GPT-NeoX", "gpt_neox", {"num_key_value_heads": 4}),
    Family("Qwen3-MoE", "qwen3_moe", {"head_dim": 8, **_MOE}),
    Family("Mixtral", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("Phi-3.5-MoE", "phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("Falcon", "falcon", {"num_key_value_heads": 1, "ffn_hidden_size": 64}),
    Family("Phi-2", "phi", {"num_key_value_heads": 4}),
    Family("Cohere", "cohere"),
    Family("StableLM", "stablelm"),
    Family(
        "GPT-OSS", "gpt_oss", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, **_WINDOW}
    ),
    Family("GLM-4", "glm4", {"head_dim": 8}),
    Family("OLMo 3", "olmo3", _WINDOW),
    Family("DeepSeek-V2", "deepseek_v2", _MLA | {"topk_method": "greedy", "n_shared_experts": 1}),
    Family("DeepSeek-V3", "deepseek_v3", _MLA | {"n_shared_experts": 1}),
    Family("BLOOM (ALiBi)", "bloom", {"n_layer": 2, "n_head": 4, "hidden_size": 32}, sized=False),
    Family(
        "MPT (ALiBi)", "mpt", {"n_layers": 2, "n_heads": 4, "d_model": 32, "max_seq_len": 256}, sized=False
    ),
    Family("OPT", "opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    Family("Qwen3.5", "qwen3_5_text", _DELTA_NET),
    Family("Qwen3-Next", "qwen3_next", _DELTA_NET | _MOE | {"shared_expert_intermediate_size": 32}),
    Family("LFM2", "lfm2", {"full_attn_idxs": [1], "block_multiple_of": 8}),
    Family("Mamba", "mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}, sized=False),
    Family(
        "Mamba 2",
        "mamba2",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 1,
        },
        sized=False,
    ),
    Family("Falcon-Mamba", "falcon_mamba", {"hidden_size": 32, "num_hidden_layers": 2}, sized=False),
    Family(
        "Jamba",
        "jamba",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "num_experts": 2,
            "use_mamba_kernels": False,
        },
    ),
    Family("Bamba", "bamba", _MAMBA2 | {"attn_layer_indices": [1]}),
    Family("Falcon-H1", "falcon_h1", _MAMBA2 | {"mamba_d_ssm": 64, "head_dim": 8}),
    Family(
        "Granite 4 (hybrid)",
        "granitemoehybrid",
        _MAMBA2
        | {
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "shared_intermediate_size": 32,
        },
    ),
    Family(
        "Zamba2",
        "zamba2",
        {
            "num_key_value_heads": 4,
            "n_mamba_heads": 8,
            "mamba_d_state": 8,
            "mamba_ngroups": 1,
            "layers_block_type": ["mamba", "hybrid"],
            "num_mem_blocks": 1,
            "use_mem_rope": True,
        },
    ),
    Family(
        "RecurrentGemma",
        "recurrent_gemma",
        {"attention_window_size": 16, "lru_width": 32, "block_types": ["recurrent", "attention"]},
    ),
    Family(
        "RWKV",
        "rwkv",
        {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 256},
        sized=False,
    ),
)


def random_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and response mask of rows of lengths 21, 14, 9 and 9, two with one prompt."""
    lengths, starts = torch.tensor([21, 14, 9, 9]), torch.tensor([12, 3, 5, 5])
    input_ids = torch.randint(3, VOCAB, (4, 21), generator=torch.Generator().manual_seed(0))
    input_ids[3, :5] = input_ids[2, :5]
    position = torch.arange(21)
    attention_mask = position < lengths[:, None]
    response_mask = attention_mask & (position >= starts[:, None])
    return input_ids.masked_fill(~attention_mask, PAD), attention_mask, response_mask
