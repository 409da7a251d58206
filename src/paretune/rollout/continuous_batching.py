"""A model reading rows token by token, while rows and their prompts come and go."""

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

ADMIT_IF_FREE_ONE_IN = 8
"""Waiting rows enter once one place in so many is free: entering costs a pass over their prompts."""
MAX_PREFILL_TOKENS = 4096
"""Prompt tokens that are read at one time."""


class BatchScheduler:
    """Rows in places 0 to N - 1 of a cache, and those that wait for a place."""

    row_ids: Int[Tensor, " N"]
    """The number of each row in the order in which they were asked for."""
    response_lengths: Int[Tensor, " N"]
    """Tokens of its response that a row has read."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        prompt_of_row: Sequence[int],
        max_rows: int,
    ) -> None:
        """All rows wait.

        Args:
            model: A plain transformers model that `can_attend`.
            prompts: Token ids, at least one each.
            prompt_of_row: For each row the number of its prompt; rows of a prompt stand together.
            max_rows: Places.
        """
        self._model, self._embedding_weight = model, embedding_weight(model)
        self._device = self._embedding_weight.device
        self._prompts, self._prompt_of_row = prompts, prompt_of_row
        self._unfinished_rows = Counter(prompt_of_row)
        max_rows = min(max_rows, len(prompt_of_row))
        # Twice the prompts that fill all places: a prompt stays until the last of its rows has left.
        most = min(len(self._unfinished_rows), 2 * -(-max_rows // max(self._unfinished_rows.values())))
        config = model.config
        self._cache = Cache(
            num_layers=config.num_hidden_layers,
            max_rows=max_rows,
            max_prompts=most,
            max_prompt_length=max(len(prompt) for prompt in prompts),
        )
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
        """Read one more token in every row and let rows enter: the states from which each goes on.

        There are none when all rows have left. The model's attention is `attention` meanwhile.
        """
        states = [self._decode_step(new_tokens)] if self._active_rows else []
        states += self._admit_waiting()
        return torch.cat(states) if states else torch.zeros(0, 1, device=self._device)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> Tensor:
        """What the model's attention has to be while it reads: that over the cache."""
        return self._attention_fn(query, key, value, params)

    def remove_finished(
        self, finished_slots: Sequence[int], new_tokens: Int[Tensor, " N"]
    ) -> Int[Tensor, " M"]:
        """Rows in these places are over, the last ones take their places; the tokens of those that stay."""
        for place in finished_slots:
            self._unfinished_rows[self._prompt_of_row[self._active_rows[place]]] -= 1
        stay = _fill_gaps(len(self._active_rows), finished_slots)
        self._move_slots("rows", stay)
        self._active_rows, self._start_steps = (
            [x[i] for i in stay] for x in (self._active_rows, self._start_steps)
        )
        kept = torch.tensor(stay, dtype=torch.long, device=self._device)
        self.row_ids, self.response_lengths = self.row_ids[kept], self.response_lengths[kept]
        over = [
            place for place, prompt in enumerate(self._cached_prompts) if not self._unfinished_rows[prompt]
        ]
        if over:
            for place in over:
                del self._prompt_hidden[self._cached_prompts[place]]
            stay = _fill_gaps(len(self._cached_prompts), over)
            self._move_slots("prompts", stay)
            self._cached_prompts = [self._cached_prompts[i] for i in stay]
        self._slots_changed = True
        return new_tokens[kept]

    def _move_slots(self, slots: str, kept_slots: Sequence[int]) -> None:
        moved = [(to, source) for to, source in enumerate(kept_slots) if to != source]
        self._cache.move_slots(slots, [to for to, _ in moved], [source for _, source in moved])

    def _admit_waiting(self) -> list[Float[Tensor, "M W"]]:
        """Fill the free places if they are worth a pass: the states at the ends of the rows' prompts."""
        free = self._cache.max_rows - len(self._active_rows)
        if not self._waiting or (self._active_rows and free * ADMIT_IF_FREE_ONE_IN < self._cache.max_rows):
            return []
        held, fresh = set(self._cached_prompts), list[int]()
        enter = list[int]()
        while self._waiting and len(enter) < free:
            prompt = self._prompt_of_row[self._waiting[0]]
            if prompt not in held:
                if len(held) == self._cache.max_prompts:
                    break
                held.add(prompt)
                fresh.append(prompt)
            enter.append(self._waiting.popleft())
        self._prefill(fresh)
        if not enter:
            return []
        self._active_rows += enter
        self._start_steps += [self._num_steps] * len(enter)
        entered = torch.tensor(enter, device=self._device)
        self.row_ids, self.response_lengths = (
            torch.cat([self.row_ids, entered]),
            torch.cat([self.response_lengths, torch.zeros_like(entered)]),
        )
        self._slots_changed = True
        if not self._cache.shares_prompts:
            place = {prompt: i for i, prompt in enumerate(self._cached_prompts)}
            self._cache.copy_prompts_to_rows(
                range(len(self._active_rows) - len(enter), len(self._active_rows)),
                [place[self._prompt_of_row[row]] for row in enter],
            )
        return [torch.stack([self._prompt_hidden[self._prompt_of_row[row]] for row in enter])]

    def _prefill(self, prompts: Sequence[int]) -> None:
        """Read these, several in one pass and none of them padded, and keep them."""
        part: list[int] = []
        size = 0
        for i, prompt in enumerate(prompts):
            part.append(prompt)
            size += len(self._prompts[prompt])
            if i + 1 == len(prompts) or size + len(self._prompts[prompts[i + 1]]) > MAX_PREFILL_TOKENS:
                self._prefill_pass(part)
                part, size = [], 0

    def _prefill_pass(self, prompts: Sequence[int]) -> None:
        spans = list[tuple[int, int, int]]()
        tokens, places = list[int](), list[int]()
        for prompt in prompts:
            ids = self._prompts[prompt]
            spans.append((len(tokens), len(tokens) + len(ids), len(self._cached_prompts)))
            self._cached_prompts.append(prompt)
            tokens += ids
            places += range(len(ids))
        hidden = self._forward(
            torch.tensor(tokens, device=self._device),
            torch.tensor(places, device=self._device),
            partial(self._cache.prefill_attention, spans),
        )
        for prompt, (_, end, _) in zip(prompts, spans, strict=True):
            self._prompt_hidden[prompt] = hidden[end - 1]

    def _decode_step(self, new_tokens: Int[Tensor, " N"]) -> Float[Tensor, "N W"]:
        """One more token in every row; the hidden states there."""
        if self._slots_changed:
            self._update_grid()
            self._slots_changed = False
        age = (
            self.response_lengths
            if self._cache.shares_prompts
            else self._prompt_lengths + self.response_lengths
        )
        self._cache.begin_step(
            self._grid,
            age,
            (self._num_steps + self._length_range[0], self._num_steps + self._length_range[1]),
        )
        hidden = self._forward(
            new_tokens, self._prompt_lengths + self.response_lengths, self._cache.decode_attention
        )
        self._num_steps += 1
        self.response_lengths = self.response_lengths + 1
        return hidden

    def _update_grid(self) -> None:
        """Work out who continues what, after rows have left or entered."""
        place = {prompt: i for i, prompt in enumerate(self._cached_prompts)}
        of = [place[self._prompt_of_row[row]] for row in self._active_rows]
        lengths = [len(self._prompts[prompt]) for prompt in self._cached_prompts]
        start = [lengths[i] for i in of]
        self._prompt_lengths = torch.tensor(start, device=self._device)
        ages = [-born for born in self._start_steps]
        if self._cache.shares_prompts:
            self._grid = PromptGrid.build(of, lengths, self._device, min_cells=self._min_cells)
        else:
            ages = [first + age for first, age in zip(start, ages, strict=True)]
        self._length_range = (min(ages), max(ages))

    def _forward(
        self, input_ids: Int[Tensor, " T"], position_ids: Int[Tensor, " T"], attention_fn: AttentionFn
    ) -> Float[Tensor, "T W"]:
        self._attention_fn, n = attention_fn, len(input_ids)
        behind = round_up_rows(deterministic_row_count(n), self._embedding_weight) - n
        if behind:
            input_ids, position_ids = (
                torch.nn.functional.pad(x, (0, behind)) for x in (input_ids, position_ids)
            )
        out = self._model.base_model(
            input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False
        )
        hidden = out.last_hidden_state[0, :n]
        assert isinstance(hidden, Tensor)
        return hidden


def _fill_gaps(n: int, removed: Sequence[int]) -> list[int]:
    """What stands in each place when the last ones have taken the places of those that are gone."""
    out = set(removed)
    late = [i for i in range(n - len(out), n) if i not in out]
    return [i if i not in out else late.pop() for i in range(n - len(out))]
