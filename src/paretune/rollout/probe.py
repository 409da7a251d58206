"""A trial of the sampler: a few sampled tokens against plain forward passes of the model.

No cache and no packed pass is trusted untried: a family that reads one in another way would sample from a
wrong distribution without any error.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from paretune.core.errors import WiringError
from paretune.models.forward.length_batching import pad_sequences
from paretune.models.forward.lm_head import lm_head_of
from paretune.models.forward.logprobs import compute_logprobs, device_of
from paretune.models.load import PolicyModel
from paretune.models.lora import unwrap_model_for_forward
from paretune.rollout.decoding import decode

PROMPT_LENGTHS = (3, 9)
"""Different lengths, so that padding or neighbors that reach into a row show; one is shorter than the
convolutions of recurrent layers."""
NUM_TOKENS = 4
"""Sampled tokens per prompt; the cache is read from the second one on."""

# A wrong cache moves log-probabilities by tenths of a nat or more; rounding in float32 by 1e-6.
TOLERANCE = 1e-3
# Rounding errors at the size of the largest logit, for half precision.
MAX_ROUNDING_ERRORS = 8


@torch.no_grad()
def probe_sampler(policy: PolicyModel) -> None:
    """Sample a few tokens, and compare their log-probabilities with a plain forward pass of each row.

    The log-probabilities that training computes are compared too. Nothing is drawn from a random generator.

    Args:
        policy: In evaluation mode, with or without an adapter.

    Raises:
        WiringError: The sampler or the training pass disagrees with the model, or the family is refused.
    """
    if device_of(policy.model).type == "meta":
        return
    num_ids = lm_head_of(policy.model).weight.shape[0]
    # Ids from all over the vocabulary, the same in every run.
    prompts = [[(37 * i + 11 * n + 3) % num_ids for i in range(n)] for n in PROMPT_LENGTHS]
    uniform = np.linspace(0.1, 0.9, len(prompts) * NUM_TOKENS).reshape(len(prompts), NUM_TOKENS)
    sampled = decode(
        policy.model,
        prompts,
        range(len(prompts)),
        uniform,
        eos_ids=(num_ids,),  # an id that is never sampled: responses do not end early
        temperature=1.0,
        pad_id=policy.pad_id,
    )
    rows = [prompt + response for prompt, response in zip(prompts, sampled.token_ids, strict=True)]
    expected, rounding = _plain_logprobs(policy, rows)
    input_ids, attention_mask = pad_sequences(rows)
    is_response = attention_mask & (torch.arange(input_ids.shape[1]) >= torch.tensor(PROMPT_LENGTHS)[:, None])
    trained = compute_logprobs(policy.model, input_ids, attention_mask, is_response)[is_response]
    for part, logprobs in (
        ("the sampler", torch.from_numpy(np.concatenate(sampled.logprobs))),
        ("the training pass", trained.cpu()),
    ):
        gap = float((logprobs.double() - expected).abs().max())
        # `not <=` also catches NaN.
        if not gap <= TOLERANCE + rounding:
            with unwrap_model_for_forward(policy.model) as base:
                family = base.config.model_type
            raise WiringError(
                f"{family}: {part} and the model's own forward pass disagree by up to {gap:.3g} nats in the "
                "log-probability of a token; fix: use another model, or another version of transformers"
            )


def _plain_logprobs(policy: PolicyModel, rows: Sequence[Sequence[int]]) -> tuple[Tensor, float]:
    """Log-probabilities of the last `NUM_TOKENS` tokens of each row, and the rounding error to allow.

    From the model's own logits, one unpadded row at a time and without a cache.
    """
    num_ids, device = lm_head_of(policy.model).weight.shape[0], device_of(policy.model)
    logprobs, rounding = [], 0.0
    with unwrap_model_for_forward(policy.model) as base:
        for row in rows:
            logits = base(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0]
            logits = logits[-NUM_TOKENS - 1 : -1, :num_ids].cpu()
            eps = max(torch.finfo(logits.dtype).eps, torch.finfo(base.dtype).eps)
            rounding = max(rounding, MAX_ROUNDING_ERRORS * eps * float(logits.abs().max()))
            if getattr(base, "is_loaded_in_8bit", False):
                # LLM.int8 rounds activations to 127 levels, and which columns it keeps depends on the batch.
                rounding = max(rounding, float(logits.abs().max()) / 127)
            tokens = torch.tensor(row[-NUM_TOKENS:])
            logprobs.append(logits.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0])
    return torch.cat(logprobs), rounding
