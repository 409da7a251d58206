"""Checkpoints as safetensors, JSON and a manifest; nothing is pickled.

A checkpoint is a folder `step-000123` that appears in one atomic rename, complete, with the SHA-256 of each
of its files. State is a tree: dicts, lists, tuples, dataclasses or named tuples of tensors, numbers, strings.
A tensor that is divided over the ranks is written and read in parts, by any number of ranks.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from paretune.core import ranks
from paretune.core.errors import RankError, ResourceError, WiringError
from paretune.run.io import apply_umask, fsync_dir, hash_file, write_atomic
from paretune.training.tensor_files import StoredTensors, write_tensors

Tree = Any
Json = Any
CHECKPOINT_SCHEMA = "paretune/checkpoint/3"
EventCallback = Callable[[str, str], None]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint; tensors are read when their tree is loaded."""

    step: int
    trees: dict[str, Json]
    tensors: dict[str, StoredTensors]
    metadata: Json
    log_offsets: dict[str, int]
    """Size in bytes of every append-only log of the run when the checkpoint was written."""

    def load_tree(self, name: str, like: Tree = None) -> Tree:
        """A stored tree; `like` gives the types of its dataclasses and named tuples.

        Where `like` has a tensor that is divided over the ranks, the stored one is divided in the same way,
        and a rank reads its own part alone. Other tensors are whole, however they were written.

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
    numbers). A crash at any moment leaves the earlier checkpoints as they were. All ranks call it with the
    same trees. Each writes and hashes its parts of divided tensors; the first writes the rest, and gives the
    checkpoint its name once all are done.

    Raises:
        ResourceError: The disk is full or not writable; earlier checkpoints are untouched.
        RankError: The same on another rank.
    """
    final = checkpoint_dir / f"step-{step:06d}"
    partial = final.with_name(f"{final.name}.tmp")
    state: dict[str, Json] = {"step": step, "metadata": metadata, "trees": {}}
    sums: dict[str, str] = {}
    try:
        with _writing(final):
            if ranks.is_first():
                checkpoint_dir.mkdir(parents=True, exist_ok=True)
                _remove_temporary_files(checkpoint_dir)
                partial.mkdir()
        with _writing(final):
            for name, tree in trees.items():
                tensors: dict[str, Tensor] = {}
                state["trees"][name] = _serialize_node(tree, tensors)
                sums |= write_tensors(partial, name, tensors)
            if sums:
                fsync_dir(partial)
        for rank_sums in ranks.gather_json(sums):
            sums |= rank_sums
        with _writing(final):
            if ranks.is_first():
                _write_manifest(partial, state, sums, log_offsets or {})
                _publish(partial, final, save_total_limit)
    except (ResourceError, RankError):
        if ranks.is_first():
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


@contextmanager
def _writing(final: Path) -> Iterator[None]:
    """A part of the writing that all ranks leave together, with an error if one of them could not write."""
    with ranks.fail_together("checkpoint"):
        try:
            yield
        except OSError as error:
            raise ResourceError(
                f"{final}: cannot write the checkpoint ({error.strerror or error}); "
                "fix: free disk space and repeat the command to resume; earlier checkpoints are intact"
            ) from error


def _publish(partial: Path, final: Path, save_total_limit: int) -> None:
    """Give a complete checkpoint its name, and delete the oldest ones and those of later steps."""
    checkpoint_dir = final.parent
    if final.exists():  # a folder cannot be renamed over another one
        final.rename(checkpoint_dir / f"{final.name}.old.tmp")
    partial.rename(final)
    # Before LATEST and the deletions: after a power failure they must not survive without the rename.
    fsync_dir(checkpoint_dir)
    write_atomic(checkpoint_dir / "LATEST", f"{final.name}\n")
    found = list_checkpoints(checkpoint_dir)
    # Those of later steps were found corrupt by this run: they must not take the place of whole ones.
    number = found.index(final) + 1
    for other in (*found[: max(number - save_total_limit, 0)], *found[number:]):
        shutil.rmtree(other)
    _remove_temporary_files(checkpoint_dir)


def load_latest_checkpoint(checkpoint_dir: Path, on_event: EventCallback) -> Checkpoint | None:
    """The newest checkpoint whose files match its manifest, or None if there is none.

    Temporary files are ignored. `on_event(type, text)` is called for each corrupt checkpoint that is skipped.
    All ranks call it, and get the same one.
    """
    names = ranks.from_first([path.name for path in list_checkpoints(checkpoint_dir)])
    for path in (checkpoint_dir / name for name in reversed(names)):
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
    serialized = _serialize_node(tree, tensors)
    # Copied: safetensors refuses tensors that share memory, as tied weights do.
    return serialized, {key: x.to("cpu", copy=True).contiguous() for key, x in tensors.items()}


def _serialize_node(node: Tree, tensors: dict[str, Tensor]) -> Json:
    if node is None or isinstance(node, bool | int | str):
        return node
    if isinstance(node, float):
        return node if math.isfinite(node) else {"float": repr(node)}
    if isinstance(node, Tensor):
        tensors[str(len(tensors))] = node.detach()
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

    Stored tensors are divided over the ranks where those of `like` are.

    Raises:
        WiringError: `like` has no dataclass or named tuple where one was stored.
    """
    if not isinstance(serialized, dict):
        return serialized
    ((kind, inner),) = serialized.items()
    if kind == "tensor":
        if isinstance(like, DTensor) and isinstance(tensors, StoredTensors):
            return tensors.read_like(inner, like)
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


def _write_manifest(
    partial: Path, state: dict[str, Json], sums: Mapping[str, str], log_offsets: Mapping[str, int]
) -> None:
    """Write state.json, and the manifest with the SHA-256 of all files of all ranks."""
    state_sum = _write_and_hash(partial / "state.json", json.dumps(state, indent=1, allow_nan=False).encode())
    manifest = {
        "schema": CHECKPOINT_SCHEMA,
        "sha256": {**sums, "state.json": state_sum},
        "log_offsets": dict(log_offsets),
    }
    _write_and_hash(partial / "MANIFEST.json", _manifest_bytes(manifest))
    apply_umask(partial)  # safetensors creates files that only the owner can read
    fsync_dir(partial)


def _read_checkpoint(path: Path) -> tuple[str, Checkpoint | None]:
    """The checkpoint, or the problem that one of the ranks has with it."""
    problem, checkpoint = _verify_checkpoint(path)
    problems = [text for text in ranks.gather_json(problem) if text]
    return (problems[0], None) if problems else ("", checkpoint)


def _verify_checkpoint(path: Path) -> tuple[str, Checkpoint | None]:
    """The checkpoint, or the problem with it; the files with tensors are verified by one rank each."""
    try:
        manifest_bytes = (path / "MANIFEST.json").read_bytes()
        manifest = json.loads(manifest_bytes)
        hashed = {key: manifest[key] for key in ("schema", "sha256", "log_offsets")}
        if manifest_bytes != _manifest_bytes(hashed):
            return "MANIFEST.json does not match its own SHA-256", None
        sums: dict[str, str] = hashed["sha256"]
        state_bytes = (path / "state.json").read_bytes()
        files = sorted(sums.keys() - {"state.json"})
        local = ranks.local_part(ranks.partition([1] * len(files)))
        found = {files[number]: hash_file(path / files[number]) for number in local}
        found["state.json"] = hashlib.sha256(state_bytes).hexdigest()
        for name, digest in found.items():
            if digest != sums[name]:
                return f"{name} does not match its SHA-256", None
        state = json.loads(state_bytes)
        tensors = {
            name: StoredTensors([path / file for file in files if _tree_of(file) == name])
            for name in state["trees"]
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"cannot be read ({type(error).__name__})", None
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


def _tree_of(file: str) -> str:
    """The tree of a file: "weights" of weights.safetensors and of weights-00001-of-00002.safetensors."""
    return re.sub(r"(-\d{5}-of-\d{5})?\.safetensors$", "", file)
