"""What a model's config.json says about its family and about the longest sequence that it reads."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from paretune.core.errors import DataError
from paretune.run.io import read_json

NO_LIMIT = 2**31
"""Length of families without positional limits (ALiBi, state-space models)."""


_SIZES = frozenset({"architectures", "vocab_size", "hidden_size", "n_embd", "d_model"})
"""Keys of config.json of which every model of transformers has one."""


def max_sequence_length(config: Any) -> int:
    """The longest sequence (prompt plus response) in tokens.

    Frequencies of the kind longrope change for a whole batch as soon as its longest row is longer than the
    original context: a row's numbers would depend on its neighbors. So the original context is the limit.

    Args:
        config: A configuration of transformers.

    Raises:
        DataError: The configuration has a length that no model can have.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return NO_LIMIT
    if not isinstance(limit, int) or not 1 <= limit <= NO_LIMIT:
        name = getattr(config, "name_or_path", "") or "the model"
        problem = f"max_position_embeddings is {limit!r}, which is no number of tokens"
        raise DataError(
            f"{name}: config.json: {problem}; fix: write the length that the model was trained for"
        )
    return min(limit, original_length(config) or limit)


def original_length(config: Any) -> int | None:
    """Tokens up to which frequencies of the kind longrope are the original ones; None: not that kind."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    # Some families have one section per kind of layer.
    sections = [rope, *(section for section in rope.values() if isinstance(section, dict))]
    lengths = [
        section["original_max_position_embeddings"]
        for section in sections
        if section.get("rope_type") == "longrope" and section.get("original_max_position_embeddings")
    ]
    return min(lengths, default=None)


def unknown_model_type(path: str) -> str:
    """What is wrong with the family in a folder's config.json, with a fix; "" if transformers knows it."""
    import transformers
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    file = Path(path) / "config.json"
    if not file.is_file() and (file.parent / "adapter_config.json").is_file():
        return (
            "this is a LoRA adapter, not a whole model; fix: merge it into its base model first "
            "(merge_and_unload of peft), and name that folder"
        )
    try:
        config = read_json(file) if file.is_file() else None
    except ValueError:
        return ""  # transformers says what is wrong with the file
    if not config:
        return ""
    family = config.get("model_type")
    if isinstance(family, str) and family in CONFIG_MAPPING:
        return ""
    if family is None:
        if not _SIZES.intersection(config):
            fix = "name a folder that transformers saved; as a scorer, use type: python for other models"
            return f"config.json has no model_type, so it is no model of transformers; fix: {fix}"
        # transformers would look for the name of a family in the name of the folder.
        return 'config.json has no model_type; fix: write the family there, such as "model_type": "llama"'
    problem = (
        f"config.json: model_type {str(family)!r} is not known to transformers {transformers.__version__}"
    )
    if config.get("auto_map"):
        return f"{problem}, and code of its own is not run; fix: name a model of a known family"
    match = next(iter(get_close_matches(str(family), CONFIG_MAPPING_NAMES, 1, 0.75)), "")
    suggestion = f'; did you mean "{match}"?' if match else ""
    return f"{problem}{suggestion}; fix: correct it, or pip install -U transformers if the family is newer"
