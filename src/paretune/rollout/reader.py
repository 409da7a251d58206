"""A model reading rows token by token, while rows and their prompts come and go."""

from collections import Counter, deque
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.elsewhere import PreTrainedModel
from paretune.models.attention import How, Rule
from paretune.models.forward import weight_of
from paretune.models.rounding import rounded_rows
from paretune.rollout.cache import FEWEST, Cache, Grid
from paretune.rollout.draw import filled

CROWD = 8
"""Waiting rows enter once one place in so many is free: entering costs a pass over their prompts."""
PASS = 4096
"""Prompt tokens that are read at one time."""


class Reader:
    """Rows in places 0 to N - 1 of a cache, and those that wait for a place."""

    row: Int[Tensor, " N"]
    """The number of each row in the order in which they were asked for."""
    age: Int[Tensor, " N"]
    """Tokens of its response that a row has read."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        row_prompt: Sequence[int],
        rows: int,
    ) -> None:
        """All rows wait.

        Args:
            model: A plain transformers model that `can_attend`.
            prompts: Token ids, at least one each.
            row_prompt: For each row the number of its prompt; rows of a prompt stand together.
            rows: Places.
        """
        self._model, self._weight = model, weight_of(model)
        self._device = self._weight.device
        self._prompts, self._prompt_of = prompts, row_prompt
        self._left = Counter(row_prompt)
        rows = min(rows, len(row_prompt))
        # Twice the prompts that fill all places: a prompt stays until the last of its rows has left.
        most = min(len(self._left), 2 * -(-rows // max(self._left.values())))
        config = model.config
        self._cache = Cache(
            layers=config.num_hidden_layers,
            rows=rows,
            prompts=most,
            longest=max(len(prompt) for prompt in prompts),
        )
        heads = config.num_attention_heads
        self._fewest = -(-FEWEST * (getattr(config, "num_key_value_heads", None) or heads) // heads)
        self._waiting = deque(range(len(row_prompt)))
        self._rows: list[int] = []
        self._born: list[int] = []
        self._clock = 0
        self._held: list[int] = []
        self._ends: dict[int, Tensor] = {}
        self._grid: Grid | None = None
        self._how: How = self._cache.read_rows
        self._ages = (0, 0)
        self._moved = True
        self._start = torch.zeros(0, dtype=torch.long, device=self._device)
        self.row = self.age = self._start

    def next(self, new: Int[Tensor, " N"]) -> Float[Tensor, "M W"]:
        """Read one more token in every row and let rows enter: the states from which each goes on.

        There are none when all rows have left. The model's attention is `attention` meanwhile.
        """
        states = [self._read(new)] if self._rows else []
        states += self._enter()
        return torch.cat(states) if states else torch.zeros(0, 1, device=self._device)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """What the model's attention has to be while it reads: that over the cache."""
        return self._how(query, key, value, rule)

    def leave(self, gone: Sequence[int], new: Int[Tensor, " N"]) -> Int[Tensor, " M"]:
        """Rows in these places are over, the last ones take their places; the tokens of those that stay."""
        for place in gone:
            self._left[self._prompt_of[self._rows[place]]] -= 1
        stay = _closed(len(self._rows), gone)
        self._move("rows", stay)
        self._rows, self._born = ([x[i] for i in stay] for x in (self._rows, self._born))
        kept = torch.tensor(stay, dtype=torch.long, device=self._device)
        self.row, self.age = self.row[kept], self.age[kept]
        over = [place for place, prompt in enumerate(self._held) if not self._left[prompt]]
        if over:
            for place in over:
                del self._ends[self._held[place]]
            stay = _closed(len(self._held), over)
            self._move("prompts", stay)
            self._held = [self._held[i] for i in stay]
        self._moved = True
        return new[kept]

    def _move(self, what: str, stay: Sequence[int]) -> None:
        moved = [(to, source) for to, source in enumerate(stay) if to != source]
        self._cache.move(what, [to for to, _ in moved], [source for _, source in moved])

    def _enter(self) -> list[Float[Tensor, "M W"]]:
        """Fill the free places if they are worth a pass: the states at the ends of the rows' prompts."""
        free = self._cache.rows - len(self._rows)
        if not self._waiting or (self._rows and free * CROWD < self._cache.rows):
            return []
        held, fresh = set(self._held), list[int]()
        enter = list[int]()
        while self._waiting and len(enter) < free:
            prompt = self._prompt_of[self._waiting[0]]
            if prompt not in held:
                if len(held) == self._cache.prompts:
                    break
                held.add(prompt)
                fresh.append(prompt)
            enter.append(self._waiting.popleft())
        self._read_prompts(fresh)
        if not enter:
            return []
        self._rows += enter
        self._born += [self._clock] * len(enter)
        entered = torch.tensor(enter, device=self._device)
        self.row, self.age = torch.cat([self.row, entered]), torch.cat([self.age, torch.zeros_like(entered)])
        self._moved = True
        if not self._cache.shared:
            place = {prompt: i for i, prompt in enumerate(self._held)}
            self._cache.give(
                range(len(self._rows) - len(enter), len(self._rows)),
                [place[self._prompt_of[row]] for row in enter],
            )
        return [torch.stack([self._ends[self._prompt_of[row]] for row in enter])]

    def _read_prompts(self, prompts: Sequence[int]) -> None:
        """Read these, several in one pass and none of them padded, and keep them."""
        part: list[int] = []
        size = 0
        for i, prompt in enumerate(prompts):
            part.append(prompt)
            size += len(self._prompts[prompt])
            if i + 1 == len(prompts) or size + len(self._prompts[prompts[i + 1]]) > PASS:
                self._pass(part)
                part, size = [], 0

    def _pass(self, part: Sequence[int]) -> None:
        spans = list[tuple[int, int, int]]()
        tokens, places = list[int](), list[int]()
        for prompt in part:
            ids = self._prompts[prompt]
            spans.append((len(tokens), len(tokens) + len(ids), len(self._held)))
            self._held.append(prompt)
            tokens += ids
            places += range(len(ids))
        hidden = self._body(
            torch.tensor(tokens, device=self._device),
            torch.tensor(places, device=self._device),
            partial(self._cache.read_prompts, spans),
        )
        for prompt, (_, end, _) in zip(part, spans, strict=True):
            self._ends[prompt] = hidden[end - 1]

    def _read(self, new: Int[Tensor, " N"]) -> Float[Tensor, "N W"]:
        """One more token in every row; the hidden states there."""
        if self._moved:
            self._arrange()
            self._moved = False
        age = self.age if self._cache.shared else self._start + self.age
        self._cache.begin(self._grid, age, (self._clock + self._ages[0], self._clock + self._ages[1]))
        hidden = self._body(new, self._start + self.age, self._cache.read_rows)
        self._clock += 1
        self.age = self.age + 1
        return hidden

    def _arrange(self) -> None:
        """Work out who continues what, after rows have left or entered."""
        place = {prompt: i for i, prompt in enumerate(self._held)}
        of = [place[self._prompt_of[row]] for row in self._rows]
        lengths = [len(self._prompts[prompt]) for prompt in self._held]
        start = [lengths[i] for i in of]
        self._start = torch.tensor(start, device=self._device)
        ages = [-born for born in self._born]
        if self._cache.shared:
            self._grid = Grid.of(of, lengths, self._device, fewest=self._fewest)
        else:
            ages = [first + age for first, age in zip(start, ages, strict=True)]
        self._ages = (min(ages), max(ages))

    def _body(self, tokens: Int[Tensor, " T"], place: Int[Tensor, " T"], how: How) -> Float[Tensor, "T W"]:
        self._how, n = how, len(tokens)
        behind = rounded_rows(filled(n), self._weight) - n
        if behind:
            tokens, place = (torch.nn.functional.pad(x, (0, behind)) for x in (tokens, place))
        out = self._model.base_model(input_ids=tokens[None], position_ids=place[None], use_cache=False)
        hidden = out.last_hidden_state[0, :n]
        assert isinstance(hidden, Tensor)
        return hidden


def _closed(n: int, gone: Sequence[int]) -> list[int]:
    """What stands in each place when the last ones have taken the places of those that are gone."""
    out = set(gone)
    late = [i for i in range(n - len(out), n) if i not in out]
    return [i if i not in out else late.pop() for i in range(n - len(out))]
