"""Provenance of a run: hashes of its records and models, by which a resume detects changed inputs."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paretune.config import Config, resolved_yaml, source_text
from paretune.config.arguments import algorithm_files
from paretune.config.schema import STEP_EVALUATION_KEYS
from paretune.config.scorer_schema import ClassifierScorerSection, RewardModelScorerSection
from paretune.config.scorers import scorer_sections
from paretune.config.sources import data_sources
from paretune.config.validate import WORLD, reward_sections
from paretune.data.loader import prompt_key
from paretune.data.records import LazySequence, PreferencePair, Prompt
from paretune.experiment.chat_templates import policy_template_warnings
from paretune.experiment.dataset import Dataset, LabelledRow, RewardData
from paretune.experiment.resolved import ResolvedRun
from paretune.experiment.scorers import scorer_files
from paretune.run.folder import environment_info, to_json
from paretune.run.io import hash_file

MODEL_FILE_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Files of a model folder that determine its outputs: weights, configuration, tokenizer, chat template."""


def build_manifest(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Counts and hashes of the records, and hashes of the model folders, for data/manifest.json."""
    code = {str(path): hash_file(path) for path in algorithm_files(config)}
    return {
        **dataset.manifest(),
        "records": _record_hashes(dataset),
        "models": {path: hash_model_dir(Path(path)) for path in _model_dirs(config)},
        "scorer_files": {str(path): hash_file(path) for path in scorer_files(config)},
        **({"algorithm_files": code} if code else {}),
    }


def evaluation_entries(config: Config) -> dict[str, list[str]]:
    """Names of the manifest's entries that only the evaluation reads, by key; "": all of the key.

    They may change as long as nothing was judged (`Run.start_or_resume`).
    """
    evaluate = config.evaluate.model_copy(update={"pairwise": {}})
    without_judge = config.model_copy(update={"judge": None, "judges": {}, "evaluate": evaluate})
    trained_with = set(scorer_files(without_judge))
    trained_on = {source.file for _, _, source in data_sources(without_judge)}
    return {
        "test_prompts": [""],
        "judge": [""],
        "records": ["test_prompts", "judge train", "judge test"],
        "models": [path for path in _model_dirs(config) if path not in _model_dirs(without_judge)],
        "scorer_files": [str(path) for path in scorer_files(config) if path not in trained_with],
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
        for key in ("records", "models", "scorer_files", "file_sha256")
    }
    test_prompts = judge_inputs["records"].pop("test_prompts", None)
    for key in STEP_EVALUATION_KEYS:  # they are part of the identity of the training
        del values["evaluate"][key]
    return {
        "judge": _hash_json([values["judge"], values["judges"], judge_inputs]),
        "evaluate": _hash_json([values["evaluate"], test_prompts]),
    }


def dataset_warnings(run: ResolvedRun, dataset: Dataset) -> Iterator[str]:
    """What makes the records doubtful, and a judge that shares its training data with the reward model."""
    yield from dataset.warnings
    yield from policy_template_warnings(run.config)
    reward, judge = dataset.reward, dataset.judge
    if reward is None or judge is None or isinstance(judge.train, LazySequence):
        return
    # The evaluation decides by the same hashes whether a gain may be called better.
    hashes = _training_hashes(run.config.reward, reward, dataset)
    if hashes & _training_hashes(run.config.judge, judge, dataset):
        own = _training_texts(reward)
        num_shared = sum(not own.isdisjoint(_texts_of(row)) for row in judge.train)
        what = f"to {num_shared:,} of the reward's own rows" if num_shared else "to a file of the reward"
        yield (
            f"the judge is fitted {what}: it cannot tell better from exploited, and no gain will be called "
            "better; fix: fit it to another file, with responses that the reward model does not learn from; "
            "one file of ratings is split into two by prompt, not by rater (docs/data.md)"
        )
    elif {prompt_key(row) for row in judge.train} <= {prompt_key(row) for row in reward.train}:
        yield (
            "the judge is fitted to the reward's own prompts, so both may err on the same ones; fix: fit it "
            "to other prompts"
        )


def _training_hashes(section: Any, data: RewardData, dataset: Dataset) -> frozenset[str]:
    # Here, as it loads transformers, which a check without such a judge does not need.
    from paretune.reward.checkpoint import data_provenance, provenance_hashes

    sources = [*section.ratings.values(), *section.pairs.values()]
    files = [dataset.file_hashes[source.file] for source in sources if source.file in dataset.file_hashes]
    return provenance_hashes(data_provenance(data.train, files)) or frozenset()


def _training_texts(data: RewardData) -> set[object]:
    return {text for row in data.train for text in _texts_of(row)}


def _texts_of(row: LabelledRow) -> list[object]:
    """Prompt with response of a rating, or of both sides of a pair."""
    texts = (row.chosen, row.rejected) if isinstance(row, PreferencePair) else (row.response,)
    return [(row.prompt.messages, text) for text in texts]


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
        digest.update(f"{path.name} {hash_file(path)}\n".encode())
    return digest.hexdigest()


def _model_dirs(config: Config) -> list[str]:
    """The local model folders that the recipe names; hub names are not hashed."""
    names = [config.policy.path, *(s.path or s.init_from for _, s in reward_sections(config))]
    models = (ClassifierScorerSection, RewardModelScorerSection)
    names += [section.path for _, _, section in scorer_sections(config) if isinstance(section, models)]
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
        **({"validation_prompts": dataset.validation_prompts} if dataset.validation_prompts else {}),
    }
    for name, reward_data in (("reward", dataset.reward), ("judge", dataset.judge)):
        if reward_data is not None:
            records |= {f"{name} train": reward_data.train, f"{name} test": reward_data.test}
    return {name: _hash_records(each) for name, each in records.items()}


def _hash_records(records: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for record in records:
        text = repr(record)
        if isinstance(record, Prompt) and record.columns:
            text += json.dumps(record.columns, sort_keys=True, default=repr)
        # surrogatepass: JSON escapes can hold lone surrogates, which UTF-8 has no encoding for.
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
