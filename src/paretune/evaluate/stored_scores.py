"""Judge scores of a complete evaluation, read from its generations.parquet."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paretune.data.records import Message, Prompt
from paretune.evaluate.generate import prompt_clusters


def read_generations(
    run_dir: Path, evaluation: str = "final"
) -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    """Keys of the prompts of an evaluation, and objective -> [2, P, n] judge scores before and after."""
    table = pq.read_table(run_dir / "eval" / evaluation / "generations.parquet")
    names = [name.removeprefix("after/") for name in table.column_names if name.startswith("after/")]
    n = int(max(table["sample_index"].to_pylist())) + 1
    columns = {
        name: np.array([table[f"{arm}/{name}"].to_pylist() for arm in ("before", "after")], np.float64)
        for name in names
    }
    # Prompts from files may have no ids: the text tells them apart.
    pairs = zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True)
    prompts = [f"{prompt_id} {text}" for prompt_id, text in pairs][::n]
    return prompts, {name: scores.reshape(2, -1, n) for name, scores in columns.items()}


def clusters_of(prompts: Sequence[str]) -> NDArray[np.int64]:
    """[P] equal numbers for prompts that begin with the same request; see `prompt_clusters`.

    Args:
        prompts: Keys of the prompts, from `read_generations`.
    """
    texts = (key.partition(" ")[2] for key in prompts)
    return prompt_clusters([Prompt(messages=(Message(role="user", content=text),)) for text in texts])
