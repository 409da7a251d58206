"""What a run was made from, hashed: the same when it goes on, or it does not go on."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paretune.config import Experiment, given, resolved
from paretune.config.sources import RewardSection
from paretune.rundir import environment, to_json
from paretune.stages.gather import Judgements, Material

SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Of the files of a model folder that decide what the model says."""


def manifest(experiment: Experiment, material: Material) -> dict[str, Any]:
    """Counts and hashes of the records, and the content of the model folders, for data/manifest.json."""
    return {
        **material.manifest(),
        "records": _records(material),
        "models": {path: folder_hash(Path(path)) for path in _folders(experiment)},
    }


def laid_down(experiment: Experiment) -> dict[str, str]:
    """What every run folder says of its recipe and its machine: text by path inside it."""
    return {
        "config/run.yaml": given(experiment),
        "config/resolved.yaml": resolved(experiment),
        "env.json": to_json(environment()),
    }


def folder_hash(folder: Path) -> str:
    """SHA-256 over the names and the content of a model's files."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file()):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _folders(experiment: Experiment) -> list[str]:
    """The model folders that the recipe names; a hub name is none."""
    sections = [experiment.reward, experiment.judge]
    models = [s for s in sections if isinstance(s, RewardSection)]
    named = [experiment.policy.path, *(s.path or s.body for s in models)]
    return [name for name in dict.fromkeys(named) if name not in {"world", "policy"} and Path(name).is_dir()]


def _records(material: Material) -> dict[str, str]:
    """A hash of every set of records, in their order."""
    found: dict[str, Iterable[object]] = {f"prompts of {name}": pool for name, pool in material.pools.items()}
    found |= {"test": material.test, "demonstrations": material.demonstrations}
    found |= {"remembered": material.remembered, "stored": material.stored}
    for name, both in (("reward", material.reward), ("judge", material.judge)):
        if isinstance(both, Judgements):
            found |= {f"{name} train": both.train, f"{name} test": both.test}
    return {name: _hashed(records) for name, records in found.items()}


def _hashed(records: Iterable[object]) -> str:
    whole = hashlib.sha256()
    for record in records:
        whole.update(repr(record).encode("utf-8", "surrogatepass") + b"\n")
    return whole.hexdigest()
