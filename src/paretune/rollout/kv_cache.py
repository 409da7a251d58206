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

from paretune.models.forward.attention import AttentionParams, apply_softcap, dot_product_attention
from paretune.models.forward.packing import round_up

WIDTH_MULTIPLE = 16
"""Widths of tables of keys are multiples of this."""
SUM_BLOCK_SIZE = 192
"""Columns that one product adds up: the libraries below cut longer sums in ways that depend on the length."""
MAX_COPIED_PROMPT_LENGTH = 32
"""Tokens up to which a prompt's keys and values are given to each row."""
INITIAL_ROW_WIDTH = 64
"""Columns that the rows' tables have at first; they double when a response is longer."""
MIN_QUERY_ROWS = 4
"""Rows of a product: for fewer another routine is taken, whose last bits are others."""


@dataclass(frozen=True, slots=True)
class PromptGrid:
    """Rows beside the prompts they continue: a table of cells, [prompts, rows]; empty ones repeat row 0."""

    row_of_cell: Int[Tensor, " C"]
    """Of each cell."""
    cell_of_row: Int[Tensor, " N"]
    """Of each row."""
    is_identity: bool
    """Cell number and row number are the same."""
    prompt_lengths: Int[Tensor, " P"]
    """Tokens of each prompt."""
    min_prompt_length: int
    shape: tuple[int, int]
    """Prompts, and columns of their tables that anybody sees."""

    @classmethod
    def build(
        cls,
        prompt_of_row: Sequence[int],
        prompt_lengths: Sequence[int],
        device: torch.device,
        *,
        min_cells: int = 1,
    ) -> "PromptGrid":
        """The table for rows that continue these prompts.

        Args:
            prompt_of_row: Of each row; every prompt has one at least.
            prompt_lengths: Tokens of each prompt.
            device: Where the rows are.
            min_cells: Cells that a prompt has at least.
        """
        seen, place = [0] * len(prompt_lengths), []
        for p in prompt_of_row:
            place.append(seen[p])
            seen[p] += 1
        across = max(min_cells, *seen)
        cell = [p * across + i for p, i in zip(prompt_of_row, place, strict=True)]
        row = [0] * (len(prompt_lengths) * across)
        for n, c in enumerate(cell):
            row[c] = n
        return cls(
            row_of_cell=torch.tensor(row, device=device),
            cell_of_row=torch.tensor(cell, device=device),
            is_identity=row == list(range(len(cell))),
            prompt_lengths=torch.tensor(list(prompt_lengths), device=device),
            min_prompt_length=min(prompt_lengths),
            shape=(len(prompt_lengths), round_up(max(prompt_lengths), WIDTH_MULTIPLE)),
        )

    def to_cells(self, x: Float[Tensor, "N K R D"]) -> Float[Tensor, "P K Q D"]:
        """Rows put beside their prompts; the R queries that share a row's keys stand below each other."""
        x = x if self.is_identity else x.index_select(0, self.row_of_cell)
        return x.unflatten(0, (len(self.prompt_lengths), -1)).transpose(1, 2).flatten(2, 3)

    def to_rows(self, x: Float[Tensor, "P K Q D"]) -> Float[Tensor, "N K R D"]:
        """The way back."""
        across = len(self.row_of_cell) // len(self.prompt_lengths)
        x = x.unflatten(2, (across, -1)).transpose(1, 2).flatten(0, 1)
        return x if self.is_identity else x.index_select(0, self.cell_of_row)


@dataclass(slots=True)
class Cache:
    """What the rows of a decoding have read, and the attention that reads it."""

    num_layers: int
    max_rows: int
    """The most that are decoded at one time."""
    max_prompts: int
    """The most that these rows continue."""
    max_prompt_length: int
    """Tokens of the longest prompt."""
    _tables: tuple[Tensor, Tensor, Tensor, Tensor] | None = field(default=None, init=False)
    """Keys and values of prompts, keys and values of rows: [layers, places, heads, width, D]."""
    _grid: PromptGrid | None = field(default=None, init=False)
    """None where rows hold their prompts themselves."""
    _row_lengths: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long), init=False)
    _write_index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long), init=False)
    """Of each row's and each head's next token, in a layer's table whose places, heads and width are one."""
    _row_width: int = field(default=0, init=False)
    """Columns of the rows' own tables that anybody sees."""
    _common_width: int = field(default=0, init=False)
    """The first of them, which every row sees."""
    _masks: dict[tuple[str, int | None], Tensor] = field(default_factory=dict, init=False)

    @property
    def shares_prompts(self) -> bool:
        """Rows read their prompts where these lie; if not, they are to be given them."""
        return self.max_prompt_length > MAX_COPIED_PROMPT_LENGTH

    def begin_step(
        self, grid: PromptGrid | None, row_lengths: Int[Tensor, " N"], length_range: tuple[int, int]
    ) -> None:
        """Before a token is read in every row; the tables of the rows grow as their responses do.

        Args:
            grid: Who continues what; None where rows were given their prompts.
            row_lengths: Tokens that each row has in its own table.
            length_range: The smallest and the largest of them.
        """
        self._grid, self._row_lengths, self._masks = grid, row_lengths, {}
        self._common_width, self._row_width = (
            length_range[0] + 1,
            round_up(length_range[1] + 1, WIDTH_MULTIPLE),
        )
        heads, width = self._ensure_width(self._row_width)
        line = torch.arange(len(row_lengths) * heads, device=row_lengths.device) * width
        self._write_index = line + row_lengths.repeat_interleave(heads)

    def copy_prompts_to_rows(self, rows: Sequence[int], prompts: Sequence[int]) -> None:
        """Let the tables of these rows begin with the prompts in these places."""
        assert self._tables is not None
        width = self._tables[0].shape[3]
        self._ensure_width(width)
        for past, own in zip(self._tables[:2], self._tables[2:], strict=True):
            own[:, list(rows), :, :width] = past[:, list(prompts)]

    def _ensure_width(self, width: int) -> tuple[int, int]:
        """Heads and columns of the rows' own tables, which have `width` columns now at least."""
        assert self._tables is not None
        past_keys, past_values, keys, values = self._tables
        heads, held = keys.shape[2:4]
        if width > held:
            more = (0, 0, 0, max(INITIAL_ROW_WIDTH, held, width - held))
            self._tables = (past_keys, past_values, F.pad(keys, more), F.pad(values, more))
            held += more[-1]
        return heads, held

    def move_slots(self, slots: str, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Put some "prompts" or "rows" in the places of others."""
        if targets and self._tables is not None:
            for table in self._tables[:2] if slots == "prompts" else self._tables[2:]:
                table[:, list(targets)] = table[:, list(sources)]

    def prefill_attention(
        self,
        spans: Sequence[tuple[int, int, int]],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        params: AttentionParams,
    ) -> Tensor:
        """Attention [1, T, heads, D] of prompts one behind the other; their keys and values are kept.

        Args:
            spans: Of each prompt its first token, its end, and the place where it is kept.
            query: As key and value, [1, T, heads, D].
            key: See query.
            value: See query.
            params: What the layer asks.
        """
        keys, values = (table[params.layer_idx] for table in self._get_tables(key, value)[:2])
        out = torch.zeros(query.shape[:3] + value.shape[3:], dtype=query.dtype, device=query.device)
        for first, end, place in spans:
            q, k, v = (x[:, first:end] for x in (query, key, value))
            out[:, first:end] = dot_product_attention(
                q, k, v, scale=params.scale, softcap=params.softcap, window=params.window, is_causal=True
            )
            keys[place, :, : end - first] = k[0].transpose(0, 1)
            values[place, :, : end - first] = v[0].transpose(0, 1)
        return out

    def decode_attention(self, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> Tensor:
        """Attention [1, T, heads, D] of one more token in every row to its prompt and to the row so far.

        What stands behind the rows fills the product up and is given zeros.
        """
        n, grid = len(self._row_lengths), self._grid
        past_keys, past_values, own_keys, own_values = (
            x[params.layer_idx] for x in self._get_tables(key, value)
        )
        q, k, v = (x[0, :n].to(own_keys.dtype) for x in (query, key, value))
        for table, new in ((own_keys, k), (own_values, v)):
            table.view(-1, table.shape[-1]).index_copy_(0, self._write_index, new.flatten(0, 1))
        q = (q * params.scale).unflatten(1, (k.shape[1], -1))
        own = torch.bmm(q.flatten(0, 1), _active_slice(own_keys, n, self._row_width).mT)
        own = apply_softcap(own, params.softcap).unflatten(0, q.shape[:2])
        mine = self._row_mask(params.window, own.dtype)
        own[..., -mine.shape[-1] :] += mine[:, None, None]
        past = None
        if grid is None:
            own = _softmax(own)
        else:
            past = torch.bmm(grid.to_cells(q).flatten(0, 1), _active_slice(past_keys, *grid.shape).mT)
            past, own = self._attention_weights(grid, apply_softcap(past, params.softcap), own, params.window)
        out = _blocked_matmul(own.flatten(0, 1), _active_slice(own_values, n, self._row_width)).unflatten(
            0, q.shape[:2]
        )
        if grid is not None and past is not None:
            read = _blocked_matmul(past, _active_slice(past_values, *grid.shape))
            out += grid.to_rows(read.unflatten(0, (grid.shape[0], -1)))
        out, behind = out.flatten(1, 2).to(query.dtype), query.shape[1] - n
        return (F.pad(out, (0, 0, 0, 0, 0, behind)) if behind else out)[None]

    def _attention_weights(
        self,
        grid: PromptGrid,
        prompt_logits: Float[Tensor, "PK Q W"],
        row_logits: Float[Tensor, "N K R S"],
        window: int | None,
    ) -> tuple[Float[Tensor, "PK Q W"], Float[Tensor, "N K R S"]]:
        """From logits to weights, which are 1 in all for each query."""
        prompts, width = grid.shape
        seen = self._prompt_mask(grid, window, row_logits.dtype)
        if seen is not None:
            each = prompt_logits.view(prompts, row_logits.shape[1], -1, row_logits.shape[2], width)
            each[..., -seen.shape[-1] :] += seen[:, None, :, None]
        weights = _softmax(torch.cat([prompt_logits, grid.to_cells(row_logits).flatten(0, 1)], -1))
        return weights[..., :width], grid.to_rows(weights[..., width:].unflatten(0, (prompts, -1)))

    def _row_mask(self, window: int | None, dtype: torch.dtype) -> Float[Tensor, "N S"]:
        """0 or -inf, for the last of the rows' own columns: all see those before."""
        if ("own", window) not in self._masks:
            age = self._row_lengths[:, None]
            common = min(self._common_width, self._row_width - 1) if window is None else 0
            column = torch.arange(common, self._row_width, device=age.device)
            seen = column <= age
            if window is not None:
                seen &= column > age - window
            self._masks["own", window] = _additive_mask(seen, dtype)
        return self._masks["own", window]

    def _prompt_mask(
        self, grid: PromptGrid, window: int | None, dtype: torch.dtype
    ) -> Float[Tensor, "P C W"] | None:
        """0 or -inf, for the last columns of the prompts; None where all is seen."""
        prompts, width = grid.shape
        first = grid.min_prompt_length if window is None else 0
        if first == width:
            return None
        if ("past", window) not in self._masks:
            column = torch.arange(first, width, device=self._row_lengths.device)
            seen = (column < grid.prompt_lengths[:, None])[:, None]
            if window is not None:
                place = (
                    grid.prompt_lengths[:, None] + self._row_lengths[grid.row_of_cell].view(prompts, -1)
                )[..., None]
                seen = seen & (column > place - window)
            self._masks["past", window] = _additive_mask(seen, dtype)
        return self._masks["past", window]

    def _get_tables(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tables; on a CPU in float32 at least, whose products are no slower there and exact."""
        if self._tables is None:
            dtype = key.dtype
            if key.device.type == "cpu":
                dtype = torch.promote_types(dtype, torch.float32)
            heads, d, e = key.shape[2], key.shape[3], value.shape[3]

            def table(*size: int) -> Tensor:
                return torch.zeros(self.num_layers, *size, dtype=dtype, device=key.device)

            past, own = (
                (self.max_prompts, heads, round_up(self.max_prompt_length, WIDTH_MULTIPLE)),
                (self.max_rows, heads, 0),
            )
            self._tables = (table(*past, d), table(*past, e), table(*own, d), table(*own, e))
        return self._tables


def _additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to logits so that only these are seen."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


def _active_slice(table: Float[Tensor, "A K W D"], count: int, width: int) -> Float[Tensor, "B S D"]:
    """The part that is alive, every head for itself."""
    return table[:count, :, :width].flatten(0, 1)


def _softmax(logits: Float[Tensor, "... S"]) -> Float[Tensor, "... S"]:
    """In float32 at least, and back."""
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(logits.dtype)


def _blocked_matmul(
    weights: Float[Tensor, "B Q S"], values: Float[Tensor, "B S D"]
) -> Float[Tensor, "B Q D"]:
    """Their product, added up `BLOCK` columns at a time."""
    out = torch.bmm(weights[..., :SUM_BLOCK_SIZE], values[:, :SUM_BLOCK_SIZE])
    for i in range(SUM_BLOCK_SIZE, values.shape[1], SUM_BLOCK_SIZE):
        out.baddbmm_(weights[..., i : i + SUM_BLOCK_SIZE], values[:, i : i + SUM_BLOCK_SIZE])
    return out
