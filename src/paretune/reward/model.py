"""A transformer with one named regression head for each objective, and the scorer made of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paretune.core.errors import WiringError
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat import encode_prompt, encode_response
from paretune.data.records import Prompt, Sample
from paretune.models.flops import forward_flops, shared_prefix_shape
from paretune.models.forward.length_batching import batches_by_length, pad_sequences
from paretune.models.forward.logprobs import device_of, flat_hidden_states, supports_packing
from paretune.models.forward.prefix_sharing import find_prefix_groups, plan_passes
from paretune.models.load import context_length
from paretune.models.lora import unwrap_model_for_forward

PREFIX_SEARCH_WINDOW = 1024
"""Rows among which common beginnings are looked for: the responses to a prompt stand beside each other."""


class RewardModel(nn.Module):
    """K named scores of a response, read at the last token of the row."""

    def __init__(
        self,
        network: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_id: int,
        scale: Sequence[float],
        offset: Sequence[float],
        provenance: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.tokenizer, self.eos_id = network, tokenizer, eos_id
        self.provenance: Mapping[str, Sequence[str]] = dict(provenance or {})
        """Hashes that tell what the model was fitted on, in lists by name; empty: nobody knows."""
        with unwrap_model_for_forward(network) as base:
            self.objectives = tuple(base.config.id2label[i] for i in range(base.config.num_labels))
            self.max_length = context_length(base)
            """Most tokens of a row."""
        self.set_label_scaling(scale, offset)
        self.eval()

    def set_label_scaling(self, scale: Sequence[float], offset: Sequence[float]) -> None:
        """Set what turns the K logits into the units of the labels."""
        if not len(self.objectives) == len(scale) == len(offset):
            raise WiringError(
                f"{len(self.objectives)} heads got {len(scale)} scales and {len(offset)} offsets"
            )
        self.scale, self.offset = tuple(map(float, scale)), tuple(map(float, offset))

    def forward(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B K"]:
        """Logits, in standard deviations of the labels; float32 heads whatever the body is.

        They are read at the last position that `attention_mask` marks, never by comparing tokens with a padding
        id: a model whose padding token also ends responses would otherwise be read one token early.
        """
        found = flat_hidden_states(self.network, input_ids, attention_mask)
        last = attention_mask.shape[1] - 1 - attention_mask.flip(1).int().argmax(1)
        at = found.flat[found.index.gather(1, last[:, None].to(found.index.device)).squeeze(1)]
        with unwrap_model_for_forward(self.network) as base:
            return base.score(at.to(torch.promote_types(at.dtype, torch.float32)))

    def to_label_units(self, logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """What the raters would have said."""
        return logits * logits.new_tensor(self.scale) + logits.new_tensor(self.offset)

    def encode(self, prompt: Prompt, response: str) -> list[int]:
        """The row of a response, as the policy writes it, with the token that ends it."""
        ids = encode_response(self.tokenizer, response, eos_id=self.eos_id)
        return encode_prompt(self.tokenizer, prompt) + ids

    @torch.inference_mode()
    def score_sequences(
        self, sequences: Sequence[Sequence[int]], *, max_tokens_per_pass: int = 4096
    ) -> Float[Tensor, "B K"]:
        """Scores of token rows in label units, on the CPU; a row does not notice what stands beside it.

        Rows longer than the model can read get NaN. Each forward pass reads at most `max_tokens_per_pass` tokens; what
        rows begin with in common counts once, and a pass may hold three times as much where that is long.
        """
        result = torch.full((len(sequences), len(self.objectives)), torch.nan)
        fits = [i for i, row in enumerate(sequences) if 0 < len(row) <= self.max_length]
        for index in self._forward_batches(sequences, fits, max_tokens_per_pass):
            ids, attend = pad_sequences([sequences[i] for i in index], device=device_of(self.network))
            result[index] = self.to_label_units(self(ids, attend)).cpu().to(result.dtype)
        return result

    def _forward_batches(
        self, sequences: Sequence[Sequence[int]], indices: Sequence[int], max_tokens_per_pass: int
    ) -> Iterator[list[int]]:
        """Numbers of rows that are read in one pass."""
        if not supports_packing(self.network):
            for part in batches_by_length([len(sequences[i]) for i in indices], max_tokens_per_pass):
                yield [indices[i] for i in part]
            return
        for start in range(0, len(indices), PREFIX_SEARCH_WINDOW):
            near = indices[start : start + PREFIX_SEARCH_WINDOW]
            lengths = [len(sequences[i]) for i in near]
            for part in plan_passes(
                lengths,
                max_tokens_per_pass,
                find_prefix_groups(*pad_sequences([sequences[i] for i in near])),
                strict_token_limit=False,
            ):
                yield [near[i] for i in part]


@dataclass
class RewardModelScorer:
    """A reward model as a scorer: text in, one column of label units for each of its objectives."""

    model: RewardModel
    max_tokens_per_pass: int = 4096
    """Most padded tokens of a forward pass."""
    names: tuple[str, ...] = field(init=False)
    """The objectives of the columns."""
    total_flops: float = field(default=0.0, init=False, repr=False, compare=False)
    """Floating-point operations that all answers so far had to take; NaN where nobody can say."""

    def __post_init__(self) -> None:
        self.names = self.model.objectives

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """Scores in label units; NaN where the text is too long for the model.

        A response that ran into the length limit is scored as a rater would read it: a text that breaks off,
        and ends there. What truncation should cost is a choice of the recipe, not of the scorer.
        """
        prompts: dict[Prompt, list[int]] = {}
        rows, sizes = [], []
        for sample in samples:
            if sample.prompt not in prompts:
                prompts[sample.prompt] = encode_prompt(self.model.tokenizer, sample.prompt)
            ids = encode_response(self.model.tokenizer, sample.response, eos_id=self.model.eos_id)
            rows.append(prompts[sample.prompt] + ids)
            if len(rows[-1]) <= self.model.max_length:
                sizes.append((len(prompts[sample.prompt]), len(ids)))
        read = shared_prefix_shape([len(prompt) for prompt in prompts.values()], sizes)
        self.total_flops += forward_flops(self.model.network, read)
        return self.model.score_sequences(rows, max_tokens_per_pass=self.max_tokens_per_pass)
