"""Continuous batching: finished rows leave the KV cache and waiting rows take their slots while decoding."""

from collections import Counter, deque
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.core.types import PreTrainedModel
from paretune.models.forward.attention import AttentionFn, AttentionParams
from paretune.models.forward.logprobs import embedding_weight
from paretune.models.forward.packing import round_up_rows
from paretune.rollout.kv_cache import MIN_QUERY_ROWS, Cache, PromptGrid
from paretune.rollout.token_sampling import deterministic_row_count

# Waiting rows are admitted once one slot in 8 is free: each admission costs a prefill pass and a new grid.
ADMIT_IF_FREE_ONE_IN = 8

# Prompt tokens per prefill pass; bounds its memory.
MAX_PREFILL_TOKENS = 4096


class BatchScheduler:
    """Active rows in slots 0 to N - 1 of a KV cache, and a queue of waiting rows.

    Per step: `step` reads the tokens that were sampled last and returns hidden states, the caller samples the
    next tokens from them, and `remove_finished` frees the slots of rows that ended.
    """

    row_ids: Int[Tensor, " N"]
    """Row number of each slot, in the order of the request."""
    response_lengths: Int[Tensor, " N"]
    """Response tokens that each row has read."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        prompt_of_row: Sequence[int],
        max_rows: int,
    ) -> None:
        """All rows are waiting at first.

        Args:
            model: A plain transformers model for which `supports_custom_attention` is True.
            prompts: Token ids, at least one per prompt.
            prompt_of_row: Prompt index of each row; rows of a prompt are consecutive.
            max_rows: Number of slots.
        """
        self._model, self._embedding_weight = model, embedding_weight(model)
        self._device = self._embedding_weight.device
        self._prompts, self._prompt_of_row = prompts, prompt_of_row
        self._unfinished_rows = Counter(prompt_of_row)
        max_rows = min(max_rows, len(prompt_of_row))
        # Twice the prompts that fill all slots: a prompt stays cached until its last row has finished.
        max_prompts = min(len(self._unfinished_rows), 2 * -(-max_rows // max(self._unfinished_rows.values())))
        config = model.config
        self._cache = Cache(
            num_layers=config.num_hidden_layers,
            max_rows=max_rows,
            max_prompts=max_prompts,
            max_prompt_length=max(len(prompt) for prompt in prompts),
        )
        # A cell holds the query heads of one key head: enough cells for MIN_QUERY_ROWS rows per product.
        heads = config.num_attention_heads
        self._min_cells = -(
            -MIN_QUERY_ROWS * (getattr(config, "num_key_value_heads", None) or heads) // heads
        )
        self._waiting = deque(range(len(prompt_of_row)))
        self._active_rows: list[int] = []
        self._start_steps: list[int] = []
        self._num_steps = 0
        self._cached_prompts: list[int] = []
        self._prompt_hidden: dict[int, Tensor] = {}
        self._grid: PromptGrid | None = None
        self._attention_fn: AttentionFn = self._cache.decode_attention
        self._length_range = (0, 0)
        self._slots_changed = True
        self._prompt_lengths = torch.zeros(0, dtype=torch.long, device=self._device)
        self.row_ids = self.response_lengths = self._prompt_lengths

    def step(self, new_tokens: Int[Tensor, " N"]) -> Float[Tensor, "M W"]:
        """Read one more token per active row, then admit waiting rows.

        The model's attention must be `attention` during the call.

        Args:
            new_tokens: The tokens that were sampled last, by slot.

        Returns:
            Hidden states from which the next tokens are sampled, by slot; none when all rows have finished.
        """
        states = [self._decode_step(new_tokens)] if self._active_rows else []
        states += self._admit_waiting()
        return torch.cat(states) if states else torch.zeros(0, 1, device=self._device)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> Tensor:
        """The attention over the KV cache, an `AttentionFn` for `use_custom_attention`."""
        return self._attention_fn(query, key, value, params)

    def remove_finished(
        self, finished_slots: Sequence[int], new_tokens: Int[Tensor, " N"]
    ) -> Int[Tensor, " M"]:
        """Free these slots and fill them with the last rows; returns the new tokens of the remaining rows."""
        for slot in finished_slots:
            self._unfinished_rows[self._prompt_of_row[self._active_rows[slot]]] -= 1
        kept_slots = _fill_gaps(len(self._active_rows), finished_slots)
        self._move_slots("rows", kept_slots)
        self._active_rows, self._start_steps = (
            [x[i] for i in kept_slots] for x in (self._active_rows, self._start_steps)
        )
        kept = torch.tensor(kept_slots, dtype=torch.long, device=self._device)
        self.row_ids, self.response_lengths = self.row_ids[kept], self.response_lengths[kept]
        unused_prompts = [
            slot for slot, prompt in enumerate(self._cached_prompts) if not self._unfinished_rows[prompt]
        ]
        if unused_prompts:
            for slot in unused_prompts:
                del self._prompt_hidden[self._cached_prompts[slot]]
            kept_slots = _fill_gaps(len(self._cached_prompts), unused_prompts)
            self._move_slots("prompts", kept_slots)
            self._cached_prompts = [self._cached_prompts[i] for i in kept_slots]
        self._slots_changed = True
        return new_tokens[kept]

    def _move_slots(self, slots: str, kept_slots: Sequence[int]) -> None:
        moves = [(target, source) for target, source in enumerate(kept_slots) if target != source]
        self._cache.move_slots(slots, [target for target, _ in moves], [source for _, source in moves])

    def _admit_waiting(self) -> list[Float[Tensor, "M W"]]:
        """Fill free slots if enough are free; returns the hidden states at the ends of the rows' prompts."""
        num_free = self._cache.max_rows - len(self._active_rows)
        if not self._waiting or (
            self._active_rows and num_free * ADMIT_IF_FREE_ONE_IN < self._cache.max_rows
        ):
            return []
        cached, new_prompts = set(self._cached_prompts), list[int]()
        admitted = list[int]()
        while self._waiting and len(admitted) < num_free:
            prompt = self._prompt_of_row[self._waiting[0]]
            if prompt not in cached:
                if len(cached) == self._cache.max_prompts:
                    break
                cached.add(prompt)
                new_prompts.append(prompt)
            admitted.append(self._waiting.popleft())
        self._prefill(new_prompts)
        if not admitted:
            return []
        self._active_rows += admitted
        self._start_steps += [self._num_steps] * len(admitted)
        admitted_ids = torch.tensor(admitted, device=self._device)
        self.row_ids, self.response_lengths = (
            torch.cat([self.row_ids, admitted_ids]),
            torch.cat([self.response_lengths, torch.zeros_like(admitted_ids)]),
        )
        self._slots_changed = True
        if not self._cache.shares_prompts:
            slot_of_prompt = {prompt: i for i, prompt in enumerate(self._cached_prompts)}
            self._cache.copy_prompts_to_rows(
                range(len(self._active_rows) - len(admitted), len(self._active_rows)),
                [slot_of_prompt[self._prompt_of_row[row]] for row in admitted],
            )
        return [torch.stack([self._prompt_hidden[self._prompt_of_row[row]] for row in admitted])]

    def _prefill(self, prompts: Sequence[int]) -> None:
        """Read prompts into the cache, several per pass and without padding."""
        chunk: list[int] = []
        num_tokens = 0
        for i, prompt in enumerate(prompts):
            chunk.append(prompt)
            num_tokens += len(self._prompts[prompt])
            is_last = i + 1 == len(prompts)
            if is_last or num_tokens + len(self._prompts[prompts[i + 1]]) > MAX_PREFILL_TOKENS:
                self._prefill_pass(chunk)
                chunk, num_tokens = [], 0

    def _prefill_pass(self, prompts: Sequence[int]) -> None:
        spans = list[tuple[int, int, int]]()
        input_ids, position_ids = list[int](), list[int]()
        for prompt in prompts:
            ids = self._prompts[prompt]
            spans.append((len(input_ids), len(input_ids) + len(ids), len(self._cached_prompts)))
            self._cached_prompts.append(prompt)
            input_ids += ids
            position_ids += range(len(ids))
        hidden = self._forward(
            torch.tensor(input_ids, device=self._device),
            torch.tensor(position_ids, device=self._device),
            partial(self._cache.prefill_attention, spans),
        )
        for prompt, (_, end, _) in zip(prompts, spans, strict=True):
            self._prompt_hidden[prompt] = hidden[end - 1]

    def _decode_step(self, new_tokens: Int[Tensor, " N"]) -> Float[Tensor, "N W"]:
        """Read one more token per row; returns the hidden states after it."""
        if self._slots_changed:
            self._update_grid()
            self._slots_changed = False
        row_lengths = (
            self.response_lengths
            if self._cache.shares_prompts
            else self._prompt_lengths + self.response_lengths
        )
        # Smallest and largest length are tracked on the host: `.item()` would synchronize with the device.
        self._cache.begin_step(
            self._grid,
            row_lengths,
            (self._num_steps + self._length_range[0], self._num_steps + self._length_range[1]),
        )
        hidden = self._forward(
            new_tokens, self._prompt_lengths + self.response_lengths, self._cache.decode_attention
        )
        self._num_steps += 1
        self.response_lengths = self.response_lengths + 1
        return hidden

    def _update_grid(self) -> None:
        """Recompute which row continues which prompt, after rows have finished or been admitted."""
        slot_of_prompt = {prompt: i for i, prompt in enumerate(self._cached_prompts)}
        prompt_slots = [slot_of_prompt[self._prompt_of_row[row]] for row in self._active_rows]
        lengths = [len(self._prompts[prompt]) for prompt in self._cached_prompts]
        prompt_lengths = [lengths[i] for i in prompt_slots]
        self._prompt_lengths = torch.tensor(prompt_lengths, device=self._device)
        # A row's length is the number of steps plus an offset, which only changes with the slots.
        offsets = [-start for start in self._start_steps]
        if self._cache.shares_prompts:
            self._grid = PromptGrid.build(prompt_slots, lengths, self._device, min_cells=self._min_cells)
        else:
            offsets = [length + offset for length, offset in zip(prompt_lengths, offsets, strict=True)]
        self._length_range = (min(offsets), max(offsets))

    def _forward(
        self, input_ids: Int[Tensor, " T"], position_ids: Int[Tensor, " T"], attention_fn: AttentionFn
    ) -> Float[Tensor, "T W"]:
        self._attention_fn, n = attention_fn, len(input_ids)
        # Filler rows make the products of small batches deterministic, and their sizes few in half precision.
        num_filler = round_up_rows(deterministic_row_count(n), self._embedding_weight) - n
        if num_filler:
            input_ids, position_ids = (
                torch.nn.functional.pad(x, (0, num_filler)) for x in (input_ids, position_ids)
            )
        out = self._model.base_model(
            input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False
        )
        hidden = out.last_hidden_state[0, :n]
        assert isinstance(hidden, Tensor)
        return hidden


def _fill_gaps(n: int, removed: Sequence[int]) -> list[int]:
    """The old slot of each new slot, when the last of n slots move into the removed ones."""
    gone = set(removed)
    movable = [i for i in range(n - len(gone), n) if i not in gone]
    return [i if i not in gone else movable.pop() for i in range(n - len(gone))]
