"""Checkpoints as safetensors, JSON and a manifest; nothing is pickled.

A checkpoint is a folder `step-000123` that appears in one atomic rename, complete, with the SHA-256 of each
of its files. State is a tree: dicts, lists, tuples, dataclasses or named tuples of tensors, numbers, strings.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from paretune.core import ranks
from paretune.core.errors import ResourceError, WiringError
from paretune.run.io import fsync_dir, write_atomic

Tree = Any
Json = Any
CHECKPOINT_SCHEMA = "paretune/checkpoint/2"
EventCallback = Callable[[str, str], None]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, read into memory."""

    step: int
    trees: dict[str, Json]
    tensors: dict[str, dict[str, Tensor]]
    metadata: Json
    log_offsets: dict[str, int]
    """Size in bytes of every append-only log of the run when the checkpoint was written."""

    def load_tree(self, name: str, like: Tree = None) -> Tree:
        """A stored tree; `like` gives the types of its dataclasses and named tuples.

        Raises:
            WiringError: The checkpoint has no tree of this name.
        """
        if name not in self.trees:
            raise WiringError(f'the checkpoint of step {self.step} has no tree "{name}"')
        return deserialize_tree(self.trees[name], self.tensors[name], like)


def save_checkpoint(
    checkpoint_dir: Path,
    step: int,
    trees: Mapping[str, Tree],
    metadata: Json = None,
    *,
    log_offsets: Mapping[str, int] | None = None,
    save_total_limit: int = 2,
) -> Path:
    """Write `checkpoint_dir/step-NNNNNN`, point LATEST at it, delete the oldest beyond `save_total_limit`.

    Each tree `name` becomes `name.safetensors` (its tensors) and an entry of `state.json` (its structure and
    numbers). A crash at any moment leaves the earlier checkpoints as they were. Of several ranks, which all
    have the same trees, the first alone writes, and the others wait for it.

    Raises:
        ResourceError: The disk is full or not writable; earlier checkpoints are untouched.
        RankError: The same on the first rank.
    """
    final = checkpoint_dir / f"step-{step:06d}"
    with ranks.fail_together("checkpoint"):
        if ranks.is_first():
            _write_checkpoint(final, step, trees, metadata, log_offsets or {}, save_total_limit)
    return final


def _write_checkpoint(
    final: Path,
    step: int,
    trees: Mapping[str, Tree],
    metadata: Json,
    log_offsets: Mapping[str, int],
    save_total_limit: int,
) -> None:
    checkpoint_dir, partial = final.parent, final.with_name(f"{final.name}.tmp")
    try:
        checkpoint_dir.mkdir(parents=True, exist_ok=True)
        _remove_temporary_files(checkpoint_dir)
        partial.mkdir()
        _write_checkpoint_files(partial, step, trees, metadata, log_offsets)
        if final.exists():  # a folder cannot be renamed over another one
            final.rename(checkpoint_dir / f"{final.name}.old.tmp")
        partial.rename(final)
        # Before LATEST and the deletions: after a power failure they must not survive without the rename.
        fsync_dir(checkpoint_dir)
        write_atomic(checkpoint_dir / "LATEST", f"{final.name}\n")
        for old in list_checkpoints(checkpoint_dir)[:-save_total_limit]:
            shutil.rmtree(old)
        _remove_temporary_files(checkpoint_dir)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ResourceError(
            f"{final}: cannot write the checkpoint ({error.strerror or error}); "
            "fix: free disk space and repeat the command to resume; earlier checkpoints are intact"
        ) from error


def load_latest_checkpoint(checkpoint_dir: Path, on_event: EventCallback) -> Checkpoint | None:
    """The newest checkpoint whose files match its manifest, or None if there is none.

    Temporary files are ignored. `on_event(type, text)` is called for each corrupt checkpoint that is skipped.
    """
    for path in reversed(list_checkpoints(checkpoint_dir)):
        problem, checkpoint = _read_checkpoint(path)
        if checkpoint is not None:
            return checkpoint
        text = f"{path.name}: {problem}; resuming from the previous checkpoint, or from the start"
        on_event("checkpoint_corrupt", text)
    return None


def list_checkpoints(checkpoint_dir: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    if not checkpoint_dir.is_dir():
        return []
    return sorted(p for p in checkpoint_dir.glob("step-*") if p.is_dir() and p.suffix != ".tmp")


def serialize_tree(tree: Tree) -> tuple[Json, dict[str, Tensor]]:
    """A tree as JSON in which every tensor is replaced by a number, and the tensors by number."""
    tensors: dict[str, Tensor] = {}
    return _serialize_node(tree, tensors), tensors


def _serialize_node(node: Tree, tensors: dict[str, Tensor]) -> Json:
    if node is None or isinstance(node, bool | int | str):
        return node
    if isinstance(node, float):
        return node if math.isfinite(node) else {"float": repr(node)}
    if isinstance(node, Tensor):
        # Copied: safetensors refuses tensors that share memory, as tied weights do.
        tensors[str(len(tensors))] = node.detach().to("cpu", copy=True).contiguous()
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(node, Mapping):
        return {"dict": [[key, _serialize_node(value, tensors)] for key, value in node.items()]}
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return {"record": {key: _serialize_node(getattr(node, key), tensors) for key in node._fields}}
    if isinstance(node, tuple | list):
        return {type(node).__name__: [_serialize_node(value, tensors) for value in node]}
    if is_dataclass(node):
        return {"record": {f.name: _serialize_node(getattr(node, f.name), tensors) for f in fields(node)}}
    raise WiringError(
        f"cannot save a {type(node).__name__} in a checkpoint; fix: a state may hold tensors, numbers, "
        "strings, and dicts, lists, tuples or dataclasses of them"
    )


def deserialize_tree(serialized: Json, tensors: Mapping[str, Tensor], like: Tree = None) -> Tree:
    """Inverse of `serialize_tree`; `like` is a tree with the same dataclasses at the same places.

    Raises:
        WiringError: `like` has no dataclass or named tuple where one was stored.
    """
    if not isinstance(serialized, dict):
        return serialized
    ((kind, inner),) = serialized.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "float":
        return float(inner)
    if kind == "dict":
        known = like if isinstance(like, Mapping) else {}
        return {key: deserialize_tree(value, tensors, known.get(key)) for key, value in inner}
    if kind == "record":
        if like is None:
            raise WiringError("a stored dataclass has no counterpart in the state of init_state()")
        return type(like)(
            **{key: deserialize_tree(value, tensors, getattr(like, key)) for key, value in inner.items()}
        )
    known_items = like if isinstance(like, tuple | list) and len(like) == len(inner) else [None] * len(inner)
    items = [deserialize_tree(value, tensors, other) for value, other in zip(inner, known_items, strict=True)]
    return tuple(items) if kind == "tuple" else items


def _write_checkpoint_files(
    partial_dir: Path, step: int, trees: Mapping[str, Tree], metadata: Json, log_offsets: Mapping[str, int]
) -> None:
    state: dict[str, Json] = {"step": step, "metadata": metadata, "trees": {}}
    sums: dict[str, str] = {}
    for name, tree in trees.items():
        state["trees"][name], tensors = serialize_tree(tree)
        sums[f"{name}.safetensors"] = _write_and_hash(
            partial_dir / f"{name}.safetensors", save_tensors(tensors)
        )
    sums["state.json"] = _write_and_hash(
        partial_dir / "state.json", json.dumps(state, indent=1, allow_nan=False).encode()
    )
    _write_and_hash(
        partial_dir / "MANIFEST.json",
        _manifest_bytes({"schema": CHECKPOINT_SCHEMA, "sha256": sums, "log_offsets": dict(log_offsets)}),
    )
    fsync_dir(partial_dir)


def _read_checkpoint(path: Path) -> tuple[str, Checkpoint | None]:
    """The checkpoint, or the problem with it.

    Files are read once: the bytes that are verified are the bytes that are used.
    """
    try:
        manifest_bytes = (path / "MANIFEST.json").read_bytes()
        manifest = json.loads(manifest_bytes)
        hashed = {key: manifest[key] for key in ("schema", "sha256", "log_offsets")}
        if manifest_bytes != _manifest_bytes(hashed):
            return "MANIFEST.json does not match its own SHA-256", None
        sums: dict[str, str] = hashed["sha256"]
        content = {name: (path / name).read_bytes() for name in sums}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cannot be read ({type(error).__name__})", None
    for name, data in content.items():
        if hashlib.sha256(data).hexdigest() != sums[name]:
            return f"{name} does not match its SHA-256", None
    state = json.loads(content["state.json"])
    tensors = {name: load_tensors(content[f"{name}.safetensors"]) for name in state["trees"]}
    return "", Checkpoint(state["step"], state["trees"], tensors, state["metadata"], manifest["log_offsets"])


def _manifest_bytes(content: dict[str, Json]) -> bytes:
    """The manifest with its own SHA-256, so that every bit of a checkpoint is verified."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps(content | {"manifest_sha256": digest}, indent=1, sort_keys=True).encode()


def _write_and_hash(path: Path, data: bytes) -> str:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def _remove_temporary_files(checkpoint_dir: Path) -> None:
    for path in checkpoint_dir.glob("*.tmp"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
