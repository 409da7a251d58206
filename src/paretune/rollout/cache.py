"""Keys and values that stay where they are: each prompt's once for all its responses, each response's own.

Rows and prompts lie compactly from 0 on; who leaves is replaced by the last one, so that every product is
over what is alive. One more token in every row costs two products a layer with the prompts' tables, in which
the rows of a prompt are so many queries of one, and two with the rows' own. Where all prompts are `SHORT` the
first two cost more than they save: there each row's own table begins with its prompt.

A row's numbers do not depend on the rows beside it, as far as the machine's products let us see to it: sums
run over `BLOCK` columns at a time, widths are multiples of `STEP`, and `FEWEST` rows or more ask a prompt.
Columns that a row does not see weigh exactly 0 in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from paretune.models.attention import Rule, attend, capped
from paretune.models.rounding import rounded

STEP = 16
"""Widths of tables of keys are multiples of this."""
BLOCK = 192
"""Columns that one product adds up: the libraries below cut longer sums in ways that depend on the length."""
SHORT = 32
"""Tokens up to which a prompt's keys and values are given to each row."""
FIRST = 64
"""Columns that the rows' tables have at first; they double when a response is longer."""
FEWEST = 4
"""Rows of a product: for fewer another routine is taken, whose last bits are others."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows beside the prompts they continue: a table of cells, [prompts, rows]; empty ones repeat row 0."""

    row: Int[Tensor, " C"]
    """Of each cell."""
    cell: Int[Tensor, " N"]
    """Of each row."""
    full: bool
    """Cell number and row number are the same."""
    length: Int[Tensor, " P"]
    """Tokens of each prompt."""
    shortest: int
    size: tuple[int, int]
    """Prompts, and columns of their tables that anybody sees."""

    @classmethod
    def of(
        cls, prompt: Sequence[int], length: Sequence[int], device: torch.device, *, fewest: int = 1
    ) -> "Grid":
        """The table for rows that continue these prompts.

        Args:
            prompt: Of each row; every prompt has one at least.
            length: Tokens of each prompt.
            device: Where the rows are.
            fewest: Cells that a prompt has at least.
        """
        seen, place = [0] * len(length), []
        for p in prompt:
            place.append(seen[p])
            seen[p] += 1
        across = max(fewest, *seen)
        cell = [p * across + i for p, i in zip(prompt, place, strict=True)]
        row = [0] * (len(length) * across)
        for n, c in enumerate(cell):
            row[c] = n
        return cls(
            row=torch.tensor(row, device=device),
            cell=torch.tensor(cell, device=device),
            full=row == list(range(len(cell))),
            length=torch.tensor(list(length), device=device),
            shortest=min(length),
            size=(len(length), rounded(max(length), STEP)),
        )

    def cells(self, x: Float[Tensor, "N K R D"]) -> Float[Tensor, "P K Q D"]:
        """Rows put beside their prompts; the R queries that share a row's keys stand below each other."""
        x = x if self.full else x.index_select(0, self.row)
        return x.unflatten(0, (len(self.length), -1)).transpose(1, 2).flatten(2, 3)

    def rows(self, x: Float[Tensor, "P K Q D"]) -> Float[Tensor, "N K R D"]:
        """The way back."""
        across = len(self.row) // len(self.length)
        x = x.unflatten(2, (across, -1)).transpose(1, 2).flatten(0, 1)
        return x if self.full else x.index_select(0, self.cell)


@dataclass(slots=True)
class Cache:
    """What the rows of a decoding have read, and the attention that reads it."""

    layers: int
    rows: int
    """The most that are decoded at one time."""
    prompts: int
    """The most that these rows continue."""
    longest: int
    """Tokens of the longest prompt."""
    _tables: tuple[Tensor, Tensor, Tensor, Tensor] | None = field(default=None, init=False)
    """Keys and values of prompts, keys and values of rows: [layers, places, heads, width, D]."""
    _grid: Grid | None = field(default=None, init=False)
    """None where rows hold their prompts themselves."""
    _age: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long), init=False)
    _place: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long), init=False)
    """Of each row's and each head's next token, in a layer's table whose places, heads and width are one."""
    _own: int = field(default=0, init=False)
    """Columns of the rows' own tables that anybody sees."""
    _common: int = field(default=0, init=False)
    """The first of them, which every row sees."""
    _masks: dict[tuple[str, int | None], Tensor] = field(default_factory=dict, init=False)

    @property
    def shared(self) -> bool:
        """Rows read their prompts where these lie; if not, they are to be given them."""
        return self.longest > SHORT

    def begin(self, grid: Grid | None, age: Int[Tensor, " N"], ages: tuple[int, int]) -> None:
        """Before a token is read in every row; the tables of the rows grow as their responses do.

        Args:
            grid: Who continues what; None where rows were given their prompts.
            age: Tokens that each row has in its own table.
            ages: The smallest and the largest of them.
        """
        self._grid, self._age, self._masks = grid, age, {}
        self._common, self._own = ages[0] + 1, rounded(ages[1] + 1, STEP)
        heads, width = self._grown(self._own)
        line = torch.arange(len(age) * heads, device=age.device) * width
        self._place = line + age.repeat_interleave(heads)

    def give(self, rows: Sequence[int], prompts: Sequence[int]) -> None:
        """Let the tables of these rows begin with the prompts in these places."""
        assert self._tables is not None
        width = self._tables[0].shape[3]
        self._grown(width)
        for past, own in zip(self._tables[:2], self._tables[2:], strict=True):
            own[:, list(rows), :, :width] = past[:, list(prompts)]

    def _grown(self, width: int) -> tuple[int, int]:
        """Heads and columns of the rows' own tables, which have `width` columns now at least."""
        assert self._tables is not None
        past_keys, past_values, keys, values = self._tables
        heads, held = keys.shape[2:4]
        if width > held:
            more = (0, 0, 0, max(FIRST, held, width - held))
            self._tables = (past_keys, past_values, F.pad(keys, more), F.pad(values, more))
            held += more[-1]
        return heads, held

    def move(self, what: str, to: Sequence[int], source: Sequence[int]) -> None:
        """Put some "prompts" or "rows" in the places of others."""
        if to and self._tables is not None:
            for table in self._tables[:2] if what == "prompts" else self._tables[2:]:
                table[:, list(to)] = table[:, list(source)]

    def read_prompts(
        self, spans: Sequence[tuple[int, int, int]], query: Tensor, key: Tensor, value: Tensor, rule: Rule
    ) -> Tensor:
        """Attention [1, T, heads, D] of prompts one behind the other; their keys and values are kept.

        Args:
            spans: Of each prompt its first token, its end, and the place where it is kept.
            query: As key and value, [1, T, heads, D].
            key: See query.
            value: See query.
            rule: What the layer asks.
        """
        keys, values = (table[rule.layer] for table in self._allocated(key, value)[:2])
        out = torch.zeros(query.shape[:3] + value.shape[3:], dtype=query.dtype, device=query.device)
        for first, end, place in spans:
            q, k, v = (x[:, first:end] for x in (query, key, value))
            out[:, first:end] = attend(
                q, k, v, scale=rule.scale, softcap=rule.softcap, window=rule.window, causal=True
            )
            keys[place, :, : end - first] = k[0].transpose(0, 1)
            values[place, :, : end - first] = v[0].transpose(0, 1)
        return out

    def read_rows(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention [1, T, heads, D] of one more token in every row to its prompt and to the row so far.

        What stands behind the rows fills the product up and is given zeros.
        """
        n, grid = len(self._age), self._grid
        past_keys, past_values, own_keys, own_values = (x[rule.layer] for x in self._allocated(key, value))
        q, k, v = (x[0, :n].to(own_keys.dtype) for x in (query, key, value))
        for table, new in ((own_keys, k), (own_values, v)):
            table.view(-1, table.shape[-1]).index_copy_(0, self._place, new.flatten(0, 1))
        q = (q * rule.scale).unflatten(1, (k.shape[1], -1))
        own = torch.bmm(q.flatten(0, 1), _seen(own_keys, n, self._own).mT)
        own = capped(own, rule.softcap).unflatten(0, q.shape[:2])
        mine = self._mask(rule.window, own.dtype)
        own[..., -mine.shape[-1] :] += mine[:, None, None]
        past = None
        if grid is None:
            own = _softmax(own)
        else:
            past = torch.bmm(grid.cells(q).flatten(0, 1), _seen(past_keys, *grid.size).mT)
            past, own = self._weights(grid, capped(past, rule.softcap), own, rule.window)
        out = _product(own.flatten(0, 1), _seen(own_values, n, self._own)).unflatten(0, q.shape[:2])
        if grid is not None and past is not None:
            read = _product(past, _seen(past_values, *grid.size))
            out += grid.rows(read.unflatten(0, (grid.size[0], -1)))
        out, behind = out.flatten(1, 2).to(query.dtype), query.shape[1] - n
        return (F.pad(out, (0, 0, 0, 0, 0, behind)) if behind else out)[None]

    def _weights(
        self, grid: Grid, past: Float[Tensor, "PK Q W"], own: Float[Tensor, "N K R S"], window: int | None
    ) -> tuple[Float[Tensor, "PK Q W"], Float[Tensor, "N K R S"]]:
        """From logits to weights, which are 1 in all for each query."""
        prompts, width = grid.size
        seen = self._past_mask(grid, window, own.dtype)
        if seen is not None:
            each = past.view(prompts, own.shape[1], -1, own.shape[2], width)
            each[..., -seen.shape[-1] :] += seen[:, None, :, None]
        weights = _softmax(torch.cat([past, grid.cells(own).flatten(0, 1)], -1))
        return weights[..., :width], grid.rows(weights[..., width:].unflatten(0, (prompts, -1)))

    def _mask(self, window: int | None, dtype: torch.dtype) -> Float[Tensor, "N S"]:
        """0 or -inf, for the last of the rows' own columns: all see those before."""
        if ("own", window) not in self._masks:
            age = self._age[:, None]
            common = min(self._common, self._own - 1) if window is None else 0
            column = torch.arange(common, self._own, device=age.device)
            seen = column <= age
            if window is not None:
                seen &= column > age - window
            self._masks["own", window] = _logs(seen, dtype)
        return self._masks["own", window]

    def _past_mask(self, grid: Grid, window: int | None, dtype: torch.dtype) -> Float[Tensor, "P C W"] | None:
        """0 or -inf, for the last columns of the prompts; None where all is seen."""
        prompts, width = grid.size
        first = grid.shortest if window is None else 0
        if first == width:
            return None
        if ("past", window) not in self._masks:
            column = torch.arange(first, width, device=self._age.device)
            seen = (column < grid.length[:, None])[:, None]
            if window is not None:
                place = (grid.length[:, None] + self._age[grid.row].view(prompts, -1))[..., None]
                seen = seen & (column > place - window)
            self._masks["past", window] = _logs(seen, dtype)
        return self._masks["past", window]

    def _allocated(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tables; on a CPU in float32 at least, whose products are no slower there and exact."""
        if self._tables is None:
            dtype = key.dtype
            if key.device.type == "cpu":
                dtype = torch.promote_types(dtype, torch.float32)
            heads, d, e = key.shape[2], key.shape[3], value.shape[3]

            def table(*size: int) -> Tensor:
                return torch.zeros(self.layers, *size, dtype=dtype, device=key.device)

            past, own = (self.prompts, heads, rounded(self.longest, STEP)), (self.rows, heads, 0)
            self._tables = (table(*past, d), table(*past, e), table(*own, d), table(*own, e))
        return self._tables


def _logs(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to logits so that only these are seen."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def _seen(table: Float[Tensor, "A K W D"], places: int, width: int) -> Float[Tensor, "B S D"]:
    """The part that is alive, every head for itself."""
    return table[:places, :, :width].flatten(0, 1)


def _softmax(logits: Float[Tensor, "... S"]) -> Float[Tensor, "... S"]:
    """In float32 at least, and back."""
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(logits.dtype)


def _product(weights: Float[Tensor, "B Q S"], values: Float[Tensor, "B S D"]) -> Float[Tensor, "B Q D"]:
    """Their product, added up `BLOCK` columns at a time."""
    out = torch.bmm(weights[..., :BLOCK], values[:, :BLOCK])
    for i in range(BLOCK, values.shape[1], BLOCK):
        out.baddbmm_(weights[..., i : i + BLOCK], values[:, i : i + BLOCK])
    return out
