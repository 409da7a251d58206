"""A transformer with one named regression head per objective, and its scorer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paretune.core.errors import WiringError
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat import encode_row, encode_rows
from paretune.data.records import Prompt, Sample
from paretune.models.flops import forward_flops, shared_prefix_shape
from paretune.models.forward.length_batching import batches_by_length, pad_sequences
from paretune.models.forward.logprobs import device_of, flat_hidden_states, supports_packing
from paretune.models.forward.prefix_sharing import find_prefix_groups, plan_passes
from paretune.models.load import context_length
from paretune.models.lora import unwrap_model_for_forward
from paretune.reward.heads import HeadKind, LinearHead

PREFIX_SEARCH_WINDOW = 1024
"""Rows that are searched for shared prefixes; the responses to a prompt are consecutive."""


class RewardModel(nn.Module):
    """K named scores of a response, computed from the hidden state of its last token."""

    def __init__(
        self,
        network: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_id: int,
        scale: Sequence[float],
        offset: Sequence[float],
        kinds: Mapping[str, HeadKind] | None = None,
        provenance: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Wrap a sequence classifier.

        Args:
            network: The classifier; `id2label` names its heads.
            tokenizer: Its tokenizer.
            eos_id: Token that ends a response.
            scale: Per head, from standard units to label units.
            offset: Per head, in label units.
            kinds: Objective -> kind of its head, as `kinds_from_labels` returns it; else its score is linear.
            provenance: Hashes of the training data.

        Raises:
            WiringError: Their number differs from the number of heads, or a kind is for an unknown objective.
        """
        super().__init__()
        self.network, self.tokenizer, self.eos_id = network, tokenizer, eos_id
        self.provenance: Mapping[str, Sequence[str]] = dict(provenance or {})
        """Hashes of the training data (`checkpoint.data_provenance`); empty: unknown."""
        with unwrap_model_for_forward(network) as base:
            self.objectives = tuple(base.config.id2label[i] for i in range(base.config.num_labels))
            self.max_length = context_length(base)
            """Maximum length of a sequence in tokens."""
            self.num_embeddings: int = base.get_input_embeddings().weight.shape[0]
            """Token ids that the model can read; a tokenizer may have more."""
            head_width: int = next(iter(base.score.parameters())).shape[-1]
        self.set_label_scaling(scale, offset)
        self.kinds = self._kinds_per_head(kinds or {})
        # A parameter is the sum of as many weights as a head has: it then moves as fast as a logit at any
        # learning rate, where a single number would move a thousand times less in a wide model.
        self.parameter_weights = nn.ParameterDict(
            {
                str(k): nn.Parameter(torch.zeros(kind.num_parameters, head_width, device=device_of(network)))
                for k, kind in enumerate(self.kinds)
                if kind.num_parameters
            }
        )
        # Dropout stays off in training too, so that training and scoring compute the same function.
        self.eval()

    def set_label_scaling(self, scale: Sequence[float], offset: Sequence[float]) -> None:
        """Set the K scales and offsets that convert logits to label units.

        Raises:
            WiringError: Their number differs from the number of heads.
        """
        if not len(self.objectives) == len(scale) == len(offset):
            raise WiringError(
                f"reward model: {len(self.objectives)} heads, {len(scale)} scales and {len(offset)} offsets; "
                "fix: pass one scale and one offset per head"
            )
        self.scale, self.offset = tuple(map(float, scale)), tuple(map(float, offset))

    def _kinds_per_head(self, kinds: Mapping[str, HeadKind]) -> tuple[HeadKind, ...]:
        if unknown := sorted(set(kinds) - set(self.objectives)):
            raise WiringError(
                f'reward model: a kind is given for the unknown objective "{unknown[0]}"; '
                f"fix: name one of {', '.join(self.objectives)}"
            )
        return tuple(kinds.get(name, LinearHead()) for name in self.objectives)

    def head_parameters(self, k: int) -> Float[Tensor, " P"]:
        """What head number `k` has learned beside its logit; zeros before the training."""
        key = str(k)
        return self.parameter_weights[key].sum(-1) if key in self.parameter_weights else torch.zeros(0)

    @property
    def slopes(self) -> tuple[float, ...]:
        """Per head, the derivative of the score in label units by the logit, at logit 0."""
        slopes = []
        with torch.inference_mode(False), torch.enable_grad():
            for k, (kind, scale) in enumerate(zip(self.kinds, self.scale, strict=True)):
                logit = torch.zeros(1, requires_grad=True)
                score = kind.to_score(logit, self.head_parameters(k).detach().to("cpu"))
                slopes.append(float(torch.autograd.grad(score.sum(), logit)[0]) * scale)
        return tuple(slopes)

    def forward(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B K"]:
        """Logits, in standard units where the head is linear; float32 heads whatever the dtype of the body.

        They belong to the last position of `attention_mask`, not to the last token that differs from the
        padding token: where padding and EOS are one token, that would be one token too early.
        """
        hidden = flat_hidden_states(self.network, input_ids, attention_mask)
        last = attention_mask.shape[1] - 1 - attention_mask.flip(1).int().argmax(1)
        last_hidden = hidden.flat[hidden.index.gather(1, last[:, None].to(hidden.index.device)).squeeze(1)]
        with unwrap_model_for_forward(self.network) as base:
            # bfloat16 logits have 8 significant bits: different responses would tie.
            return base.score(last_hidden.to(torch.promote_types(last_hidden.dtype, torch.float32)))

    def to_label_units(self, logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """The scores of these logits, in the units of the labels."""
        columns = zip(self.kinds, logits.unbind(1), strict=True)
        scores = [
            kind.to_score(column, self.head_parameters(k).to(column))
            for k, (kind, column) in enumerate(columns)
        ]
        return self.rescale(torch.stack(scores, 1))

    def rescale(self, scores: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """From standard units to label units."""
        return scores * scores.new_tensor(self.scale) + scores.new_tensor(self.offset)

    def encode(self, prompt: Prompt, response: str) -> list[int]:
        """Token ids of a prompt and a response: the chat template's rendering up to the end of the answer."""
        return encode_row(self.tokenizer, prompt, response, eos_id=self.eos_id).input_ids

    @torch.inference_mode()
    def score_sequences(
        self, sequences: Sequence[Sequence[int]], *, max_tokens_per_pass: int = 4096
    ) -> Float[Tensor, "B K"]:
        """Scores of token sequences in label units, on the CPU; a score does not depend on its batch.

        Sequences longer than `max_length`, or with a token that has no embedding, get NaN. A forward pass
        holds at most `max_tokens_per_pass` tokens; a shared prefix counts once, and a pass may hold three
        times as much where the prefix is long.
        """
        return self._evaluate(sequences, self.to_label_units, max_tokens_per_pass)

    @torch.inference_mode()
    def sequence_logits(
        self, sequences: Sequence[Sequence[int]], *, max_tokens_per_pass: int = 4096
    ) -> Float[Tensor, "B K"]:
        """Logits of token sequences, on the CPU; NaN as in `score_sequences`."""
        return self._evaluate(sequences, lambda logits: logits, max_tokens_per_pass)

    def _evaluate(
        self,
        sequences: Sequence[Sequence[int]],
        convert: Callable[[Float[Tensor, "B K"]], Float[Tensor, "B K"]],
        max_tokens_per_pass: int,
    ) -> Float[Tensor, "B K"]:
        results = torch.full((len(sequences), len(self.objectives)), torch.nan)
        scorable = [
            i
            for i, row in enumerate(sequences)
            if 0 < len(row) <= self.max_length and max(row) < self.num_embeddings
        ]
        for index in self._forward_batches(sequences, scorable, max_tokens_per_pass):
            input_ids, mask = pad_sequences([sequences[i] for i in index], device=device_of(self.network))
            results[index] = convert(self(input_ids, mask)).cpu().to(results.dtype)
        return results

    def _forward_batches(
        self, sequences: Sequence[Sequence[int]], indices: Sequence[int], max_tokens_per_pass: int
    ) -> Iterator[list[int]]:
        """Indices of the sequences of each forward pass."""
        if not supports_packing(self.network):
            for batch in batches_by_length([len(sequences[i]) for i in indices], max_tokens_per_pass):
                yield [indices[i] for i in batch]
            return
        # Responses to the same prompt share a forward pass, and their prompt is computed once.
        for start in range(0, len(indices), PREFIX_SEARCH_WINDOW):
            window = indices[start : start + PREFIX_SEARCH_WINDOW]
            for batch in plan_passes(
                [len(sequences[i]) for i in window],
                max_tokens_per_pass,
                find_prefix_groups(*pad_sequences([sequences[i] for i in window])),
                strict_token_limit=False,
            ):
                yield [window[i] for i in batch]


@dataclass
class RewardModelScorer:
    """A reward model as a scorer: one column per objective, in label units."""

    model: RewardModel
    max_tokens_per_pass: int = 4096
    """Maximum padded tokens per forward pass."""
    names: tuple[str, ...] = field(init=False)
    """The objectives of its columns."""
    total_flops: float = field(default=0.0, init=False, repr=False, compare=False)
    """Floating-point operations of all calls so far; NaN if unknown for the architecture."""

    def __post_init__(self) -> None:
        self.names = self.model.objectives

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """Scores in label units; NaN where the text is too long for the model.

        A truncated response is scored as a rater would read it: the text breaks off and ends. A penalty for
        truncation is a choice of the recipe, not of the scorer.
        """
        pairs = [(sample.prompt, sample.response) for sample in samples]
        rows = encode_rows(self.model.tokenizer, pairs, eos_id=self.model.eos_id)
        sequences = [row.input_ids for row in rows]
        prompts = {prompt: len(row.prompt_ids) for (prompt, _), row in zip(pairs, rows, strict=True)}
        shapes = [
            (len(row.prompt_ids), len(row.response_ids))
            for row, sequence in zip(rows, sequences, strict=True)
            if len(sequence) <= self.model.max_length
        ]
        shape = shared_prefix_shape(list(prompts.values()), shapes)
        self.total_flops += forward_flops(self.model.network, shape)
        return self.model.score_sequences(sequences, max_tokens_per_pass=self.max_tokens_per_pass)
