"""What a run was made from, hashed: the same when it goes on, or it does not go on."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paretune.config import Config, resolved_yaml, source_text
from paretune.config.data_schema import RewardSection
from paretune.experiment.data import Dataset, RewardData
from paretune.run.folder import environment_info, to_json

MODEL_FILE_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Of the files of a model folder that decide what the model says."""


def build_manifest(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Counts and hashes of the records, and the content of the model folders, for data/manifest.json."""
    return {
        **dataset.manifest(),
        "records": _record_hashes(dataset),
        "models": {path: hash_model_dir(Path(path)) for path in _model_dirs(config)},
    }


def provenance_files(config: Config) -> dict[str, str]:
    """What every run folder says of its recipe and its machine: text by path inside it."""
    return {
        "config/run.yaml": source_text(config),
        "config/resolved.yaml": resolved_yaml(config),
        "env.json": to_json(environment_info()),
    }


def hash_model_dir(model_dir: Path) -> str:
    """SHA-256 over the names and the content of a model's files."""
    whole = hashlib.sha256()
    for path in sorted(
        path for path in model_dir.iterdir() if path.suffix in MODEL_FILE_SUFFIXES and path.is_file()
    ):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _model_dirs(config: Config) -> list[str]:
    """The model folders that the recipe names; a hub name is none."""
    sections = [config.reward, config.judge]
    models = [s for s in sections if isinstance(s, RewardSection)]
    named = [config.policy.path, *(s.path or s.init_from for s in models)]
    return [name for name in dict.fromkeys(named) if name not in {"world", "policy"} and Path(name).is_dir()]


def _record_hashes(dataset: Dataset) -> dict[str, str]:
    """A hash of every set of records, in their order."""
    found: dict[str, Iterable[object]] = {
        f"prompts of {name}": pool for name, pool in dataset.train_prompts.items()
    }
    found |= {"test": dataset.test_prompts, "demonstrations": dataset.sft_demonstrations}
    found |= {"remembered": dataset.auxiliary_demonstrations, "stored": dataset.stored_responses}
    for name, both in (("reward", dataset.reward), ("judge", dataset.judge)):
        if isinstance(both, RewardData):
            found |= {f"{name} train": both.train, f"{name} test": both.test}
    return {name: _hash_records(records) for name, records in found.items()}


def _hash_records(records: Iterable[object]) -> str:
    whole = hashlib.sha256()
    for record in records:
        whole.update(repr(record).encode("utf-8", "surrogatepass") + b"\n")
    return whole.hexdigest()
