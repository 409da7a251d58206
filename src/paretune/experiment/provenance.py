"""Provenance of a run: hashes of its records and models, by which a resume detects changed inputs."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paretune.config import Config, resolved_yaml, source_text
from paretune.config.validate import WORLD, data_sources, reward_sections
from paretune.experiment.dataset import Dataset
from paretune.run.folder import environment_info, to_json

MODEL_FILE_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Files of a model folder that determine its outputs: weights, configuration, tokenizer, chat template."""


def build_manifest(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Counts and hashes of the records, and hashes of the model folders, for data/manifest.json."""
    return {
        **dataset.manifest(),
        "records": _record_hashes(dataset),
        "models": {path: hash_model_dir(Path(path)) for path in _model_dirs(config)},
    }


def evaluation_entries(config: Config) -> dict[str, list[str]]:
    """Names of the manifest's entries that only the evaluation reads, by key; "": all of the key.

    They may change as long as nothing was judged (`Run.start_or_resume`).
    """
    without_judge = config.model_copy(update={"judge": None})
    trained_on = {source.file for _, _, source in data_sources(without_judge)}
    return {
        "test_prompts": [""],
        "judge": [""],
        "records": ["test_prompts", "judge train", "judge test"],
        "models": [path for path in _model_dirs(config) if path not in _model_dirs(without_judge)],
        "file_sha256": sorted({source.file for _, _, source in data_sources(config)} - trained_on),
    }


def evaluation_hashes(config: Config, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the judge with its data and model, and of the other settings of the evaluation.

    Args:
        config: The recipe.
        manifest: Result of `build_manifest`.
    """
    entries, values = evaluation_entries(config), config.model_dump(by_alias=True, mode="json")
    judge_inputs = {
        key: {name: manifest[key][name] for name in entries[key] if name in manifest[key]}
        for key in ("records", "models", "file_sha256")
    }
    test_prompts = judge_inputs["records"].pop("test_prompts", None)
    return {
        "judge": _hash_json([values["judge"], judge_inputs]),
        "evaluate": _hash_json([values["evaluate"], test_prompts]),
    }


def _hash_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def provenance_files(config: Config) -> dict[str, str]:
    """Files of every run folder about its recipe and environment: path inside it -> text."""
    return {
        "config/recipe.yaml": source_text(config),
        "config/resolved.yaml": resolved_yaml(config),
        "env.json": to_json(environment_info()),
    }


def hash_model_dir(model_dir: Path) -> str:
    """SHA-256 of the names and contents of a model's files."""
    digest = hashlib.sha256()
    files = [path for path in model_dir.iterdir() if path.suffix in MODEL_FILE_SUFFIXES and path.is_file()]
    for path in sorted(files):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _model_dirs(config: Config) -> list[str]:
    """The local model folders that the recipe names; hub names are not hashed."""
    names = [config.policy.path, *(s.path or s.init_from for _, s in reward_sections(config))]
    return [name for name in dict.fromkeys(names) if name not in {WORLD, "policy"} and Path(name).is_dir()]


def _record_hashes(dataset: Dataset) -> dict[str, str]:
    """Hash of every set of records, in their order."""
    records: dict[str, Iterable[object]] = {
        f"train_prompts/{name}": pool for name, pool in dataset.train_prompts.items()
    }
    records |= {
        "test_prompts": dataset.test_prompts,
        "sft_demonstrations": dataset.sft_demonstrations,
        "auxiliary_demonstrations": dataset.auxiliary_demonstrations,
        "stored_responses": dataset.stored_responses,
    }
    for name, reward_data in (("reward", dataset.reward), ("judge", dataset.judge)):
        if reward_data is not None:
            records |= {f"{name} train": reward_data.train, f"{name} test": reward_data.test}
    return {name: _hash_records(each) for name, each in records.items()}


def _hash_records(records: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for record in records:
        # surrogatepass: JSON escapes can hold lone surrogates, which UTF-8 has no encoding for.
        digest.update(repr(record).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
