"""KV cache for decoding: preallocated tables, with one copy of a prompt's keys and values for its responses.

Rows and prompts occupy consecutive slots from 0; the last one moves into a freed slot, so that products cover
active slots only. One decoding step needs, per layer, two products with the prompts' tables, in which all
rows of a prompt are queries of the same keys, and two with the rows' own tables. If all prompts have at most
`MAX_COPIED_PROMPT_LENGTH` tokens, the products with prompts cost more than they save: then each row's own
table starts with a copy of its prompt.

A row's result must not depend on the other rows. Matrix libraries choose a summation order by shape, so
shapes are restricted as far as that helps: sums run over blocks of `SUM_BLOCK_SIZE` columns, widths are
multiples of `WIDTH_MULTIPLE`, and products have at least `MIN_QUERY_ROWS` query rows per prompt. Columns that
a row does not attend to get weight exactly 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from paretune.models.forward.attention import AttentionParams, apply_softcap, dot_product_attention
from paretune.models.forward.packing import round_up

# Widths of key tables are multiples of this, so that a row sees few different shapes whatever is beside it.
WIDTH_MULTIPLE = 16

# Columns summed in one product. Matrix libraries split longer sums at points that depend on the length.
SUM_BLOCK_SIZE = 192

# Prompts of at most this length are copied into each row's table instead of being shared.
MAX_COPIED_PROMPT_LENGTH = 32

# Initial width of the rows' tables. They double when a response is longer, so memory follows the longest
# response so far and not the limit.
INITIAL_ROW_WIDTH = 64

# Matrix libraries use another routine with other rounding for products of fewer rows.
MIN_QUERY_ROWS = 4


@dataclass(frozen=True, slots=True)
class PromptGrid:
    """Rows arranged by prompt: a table of cells [prompts, rows per prompt]; empty cells repeat row 0."""

    row_of_cell: Int[Tensor, " C"]
    """Row in each cell."""
    cell_of_row: Int[Tensor, " N"]
    """Cell of each row."""
    is_identity: bool
    """Cell and row numbers are equal, so nothing has to be moved."""
    prompt_lengths: Int[Tensor, " P"]
    """Tokens of each prompt."""
    min_prompt_length: int
    shape: tuple[int, int]
    """Number of prompts, and the width of their tables that is in use."""

    @classmethod
    def build(
        cls,
        prompt_of_row: Sequence[int],
        prompt_lengths: Sequence[int],
        device: torch.device,
        *,
        min_cells: int = 1,
    ) -> "PromptGrid":
        """The grid of rows that continue these prompts.

        Args:
            prompt_of_row: Prompt of each row; every prompt has at least one row.
            prompt_lengths: Tokens of each prompt.
            device: Device of the rows.
            min_cells: Minimum number of cells per prompt.
        """
        rows_per_prompt, column_of_row = [0] * len(prompt_lengths), []
        for prompt in prompt_of_row:
            column_of_row.append(rows_per_prompt[prompt])
            rows_per_prompt[prompt] += 1
        num_columns = max(min_cells, *rows_per_prompt)
        cell_of_row = [
            prompt * num_columns + column for prompt, column in zip(prompt_of_row, column_of_row, strict=True)
        ]
        row_of_cell = [0] * (len(prompt_lengths) * num_columns)
        for row, cell in enumerate(cell_of_row):
            row_of_cell[cell] = row
        return cls(
            row_of_cell=torch.tensor(row_of_cell, device=device),
            cell_of_row=torch.tensor(cell_of_row, device=device),
            is_identity=row_of_cell == list(range(len(cell_of_row))),
            prompt_lengths=torch.tensor(list(prompt_lengths), device=device),
            min_prompt_length=min(prompt_lengths),
            shape=(len(prompt_lengths), round_up(max(prompt_lengths), WIDTH_MULTIPLE)),
        )

    def to_cells(self, x: Float[Tensor, "N K R D"]) -> Float[Tensor, "P K Q D"]:
        """Rows arranged by prompt; the R query heads that share a key head become queries of their own."""
        x = x if self.is_identity else x.index_select(0, self.row_of_cell)
        return x.unflatten(0, (len(self.prompt_lengths), -1)).transpose(1, 2).flatten(2, 3)

    def to_rows(self, x: Float[Tensor, "P K Q D"]) -> Float[Tensor, "N K R D"]:
        """Inverse of `to_cells`."""
        num_columns = len(self.row_of_cell) // len(self.prompt_lengths)
        x = x.unflatten(2, (num_columns, -1)).transpose(1, 2).flatten(0, 1)
        return x if self.is_identity else x.index_select(0, self.cell_of_row)


@dataclass(slots=True)
class Cache:
    """Keys and values of active rows and their prompts, and the attention over them."""

    num_layers: int
    max_rows: int
    """Slots for rows."""
    max_prompts: int
    """Slots for prompts."""
    max_prompt_length: int
    """Tokens of the longest prompt."""
    _tables: tuple[Tensor, Tensor, Tensor, Tensor] | None = field(default=None, init=False)
    """Keys and values of prompts, keys and values of rows: [layers, slots, heads, width, D]."""
    _grid: PromptGrid | None = field(default=None, init=False)
    """None if rows have copies of their prompts."""
    _row_lengths: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long), init=False)
    _write_index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long), init=False)
    """Index of each row's and head's next token in a layer's table as [slots * heads * width, D]."""
    _row_width: int = field(default=0, init=False)
    """Width of the rows' own tables that is in use."""
    _common_width: int = field(default=0, init=False)
    """Number of leading columns that every row attends to."""
    _masks: dict[tuple[str, int | None], Tensor] = field(default_factory=dict, init=False)
    """Masks of the current step by table and window, shared by the layers."""

    @property
    def shares_prompts(self) -> bool:
        """Rows attend to shared prompt tables; otherwise they need copies (`copy_prompts_to_rows`)."""
        return self.max_prompt_length > MAX_COPIED_PROMPT_LENGTH

    def begin_step(
        self, grid: PromptGrid | None, row_lengths: Int[Tensor, " N"], length_range: tuple[int, int]
    ) -> None:
        """Prepare a decoding step; grows the rows' tables if needed.

        Args:
            grid: Which row continues which prompt; None if rows have copies of their prompts.
            row_lengths: Tokens of each row in its own table.
            length_range: The smallest and largest row length.
        """
        self._grid, self._row_lengths, self._masks = grid, row_lengths, {}
        self._common_width, self._row_width = (
            length_range[0] + 1,
            round_up(length_range[1] + 1, WIDTH_MULTIPLE),
        )
        heads, width = self._ensure_width(self._row_width)
        first_column = torch.arange(len(row_lengths) * heads, device=row_lengths.device) * width
        self._write_index = first_column + row_lengths.repeat_interleave(heads)

    def copy_prompts_to_rows(self, rows: Sequence[int], prompts: Sequence[int]) -> None:
        """Copy the tables of prompt slots to the start of the tables of row slots."""
        assert self._tables is not None
        width = self._tables[0].shape[3]
        self._ensure_width(width)
        for prompt_table, row_table in zip(self._tables[:2], self._tables[2:], strict=True):
            row_table[:, list(rows), :, :width] = prompt_table[:, list(prompts)]

    def _ensure_width(self, width: int) -> tuple[int, int]:
        """Grow the rows' tables to at least this width; returns their heads and width."""
        assert self._tables is not None
        prompt_keys, prompt_values, keys, values = self._tables
        heads, current_width = keys.shape[2:4]
        if width > current_width:
            # At least doubled, so that the total cost of copying stays linear.
            padding = (0, 0, 0, max(INITIAL_ROW_WIDTH, current_width, width - current_width))
            self._tables = (prompt_keys, prompt_values, F.pad(keys, padding), F.pad(values, padding))
            current_width += padding[-1]
        return heads, current_width

    def move_slots(self, slots: str, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Move "prompts" or "rows" from source to target slots."""
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
        """Attention [1, T, heads, D] of concatenated prompts; stores their keys and values.

        Args:
            spans: First token, end and slot of each prompt.
            query: Queries [1, T, heads, D].
            key: Keys [1, T, key heads, D].
            value: Values [1, T, key heads, D].
            params: The layer's parameters.
        """
        keys, values = (table[params.layer_idx] for table in self._get_tables(key, value)[:2])
        out = torch.zeros(query.shape[:3] + value.shape[3:], dtype=query.dtype, device=query.device)
        # One call per prompt: prompts of a packed pass must not attend to each other, and are never padded.
        for start, end, slot in spans:
            q, k, v = (x[:, start:end] for x in (query, key, value))
            out[:, start:end] = dot_product_attention(
                q, k, v, scale=params.scale, softcap=params.softcap, window=params.window, is_causal=True
            )
            keys[slot, :, : end - start] = k[0].transpose(0, 1)
            values[slot, :, : end - start] = v[0].transpose(0, 1)
        return out

    def decode_attention(self, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> Tensor:
        """Attention [1, T, heads, D] of one more token per row to its prompt and its response so far.

        Tokens after the N active rows are filler; their output is 0.
        """
        n, grid = len(self._row_lengths), self._grid
        prompt_keys, prompt_values, row_keys, row_values = (
            x[params.layer_idx] for x in self._get_tables(key, value)
        )
        q, k, v = (x[0, :n].to(row_keys.dtype) for x in (query, key, value))
        for table, new in ((row_keys, k), (row_values, v)):
            table.view(-1, table.shape[-1]).index_copy_(0, self._write_index, new.flatten(0, 1))
        # Explicit products: the fused kernel is slower for one query per row (340 instead of 246 us).
        q = (q * params.scale).unflatten(1, (k.shape[1], -1))
        row_weights = torch.bmm(q.flatten(0, 1), _active_slice(row_keys, n, self._row_width).mT)
        row_weights = apply_softcap(row_weights, params.softcap).unflatten(0, q.shape[:2])
        row_mask = self._row_mask(params.window, row_weights.dtype)
        row_weights[..., -row_mask.shape[-1] :] += row_mask[:, None, None]
        prompt_weights = None
        if grid is None:
            row_weights = _softmax(row_weights)
        else:
            prompt_logits = torch.bmm(
                grid.to_cells(q).flatten(0, 1), _active_slice(prompt_keys, *grid.shape).mT
            )
            prompt_weights, row_weights = self._attention_weights(
                grid, apply_softcap(prompt_logits, params.softcap), row_weights, params.window
            )
        out = _blocked_matmul(
            row_weights.flatten(0, 1), _active_slice(row_values, n, self._row_width)
        ).unflatten(0, q.shape[:2])
        if grid is not None and prompt_weights is not None:
            prompt_out = _blocked_matmul(prompt_weights, _active_slice(prompt_values, *grid.shape))
            out += grid.to_rows(prompt_out.unflatten(0, (grid.shape[0], -1)))
        out, num_filler = out.flatten(1, 2).to(query.dtype), query.shape[1] - n
        return (F.pad(out, (0, 0, 0, 0, 0, num_filler)) if num_filler else out)[None]

    def _attention_weights(
        self,
        grid: PromptGrid,
        prompt_logits: Float[Tensor, "PK Q W"],
        row_logits: Float[Tensor, "N K R S"],
        window: int | None,
    ) -> tuple[Float[Tensor, "PK Q W"], Float[Tensor, "N K R S"]]:
        """Joint softmax over a row's prompt and its own tokens: the weights of both parts sum to 1."""
        prompts, width = grid.shape
        mask = self._prompt_mask(grid, window, row_logits.dtype)
        if mask is not None:
            by_cell = prompt_logits.view(prompts, row_logits.shape[1], -1, row_logits.shape[2], width)
            by_cell[..., -mask.shape[-1] :] += mask[:, None, :, None]
        weights = _softmax(torch.cat([prompt_logits, grid.to_cells(row_logits).flatten(0, 1)], -1))
        return weights[..., :width], grid.to_rows(weights[..., width:].unflatten(0, (prompts, -1)))

    def _row_mask(self, window: int | None, dtype: torch.dtype) -> Float[Tensor, "N S"]:
        """0 or -inf for the last S columns of the rows' tables; all rows attend to the columns before."""
        if ("own", window) not in self._masks:
            position = self._row_lengths[:, None]
            # At least one column remains, since callers slice by the negative width.
            first = min(self._common_width, self._row_width - 1) if window is None else 0
            column = torch.arange(first, self._row_width, device=position.device)
            visible = column <= position
            if window is not None:
                visible &= column > position - window
            self._masks["own", window] = _additive_mask(visible, dtype)
        return self._masks["own", window]

    def _prompt_mask(
        self, grid: PromptGrid, window: int | None, dtype: torch.dtype
    ) -> Float[Tensor, "P C W"] | None:
        """0 or -inf for the last W columns of the prompts' tables; None if everything is visible."""
        prompts, width = grid.shape
        first = grid.min_prompt_length if window is None else 0
        if first == width:
            return None
        if ("past", window) not in self._masks:
            column = torch.arange(first, width, device=self._row_lengths.device)
            visible = (column < grid.prompt_lengths[:, None])[:, None]
            if window is not None:
                position = (
                    grid.prompt_lengths[:, None] + self._row_lengths[grid.row_of_cell].view(prompts, -1)
                )[..., None]
                visible = visible & (column > position - window)
            self._masks["past", window] = _additive_mask(visible, dtype)
        return self._masks["past", window]

    def _get_tables(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tables, allocated at the first call, when shapes and dtype are known."""
        if self._tables is None:
            dtype = key.dtype
            # On a CPU, half-precision products over the tables are no faster and round the logits.
            if key.device.type == "cpu":
                dtype = torch.promote_types(dtype, torch.float32)
            heads, key_dim, value_dim = key.shape[2], key.shape[3], value.shape[3]

            def table(*size: int) -> Tensor:
                # Zeros, since unused columns enter products with weight 0: NaN times 0 would be NaN.
                return torch.zeros(self.num_layers, *size, dtype=dtype, device=key.device)

            prompt_size, row_size = (
                (self.max_prompts, heads, round_up(self.max_prompt_length, WIDTH_MULTIPLE)),
                (self.max_rows, heads, 0),
            )
            self._tables = (
                table(*prompt_size, key_dim),
                table(*prompt_size, value_dim),
                table(*row_size, key_dim),
                table(*row_size, value_dim),
            )
        return self._tables


def _additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, else -inf; to be added to logits."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


def _active_slice(table: Float[Tensor, "A K W D"], count: int, width: int) -> Float[Tensor, "B S D"]:
    """The part of a table that is in use, with slots and heads as one batch axis."""
    return table[:count, :, :width].flatten(0, 1)


def _softmax(logits: Float[Tensor, "... S"]) -> Float[Tensor, "... S"]:
    """Softmax computed in at least float32, returned in the dtype of the logits."""
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(logits.dtype)


def _blocked_matmul(
    weights: Float[Tensor, "B Q S"], values: Float[Tensor, "B S D"]
) -> Float[Tensor, "B Q D"]:
    """The product, summed in blocks of `SUM_BLOCK_SIZE` columns so that the order of summation is fixed."""
    out = torch.bmm(weights[..., :SUM_BLOCK_SIZE], values[:, :SUM_BLOCK_SIZE])
    for i in range(SUM_BLOCK_SIZE, values.shape[1], SUM_BLOCK_SIZE):
        out.baddbmm_(weights[..., i : i + SUM_BLOCK_SIZE], values[:, i : i + SUM_BLOCK_SIZE])
    return out
