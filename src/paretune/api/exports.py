"""Export of what a run trained as a Hugging Face folder with a model card, and its upload."""

import os
import shutil
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from paretune.api.arguments import check_arguments
from paretune.api.model_card import policy_card
from paretune.core.errors import ConfigError, ResourceError, first_line
from paretune.models.load import REPO_ID_PATTERN, is_reachable
from paretune.reward.checkpoint import load_reward_model
from paretune.reward.export import export_reward_model
from paretune.run.io import apply_umask, fsync_tree, read_json, write_error

ModelKind = Literal["policy", "adapter", "reward"]
_CARD = "README.md"


@check_arguments
def export(run_dir: str | Path, *, output_dir: str | Path | None = None, model: ModelKind = "policy") -> Path:
    """Write a Hugging Face folder: weights, tokenizer and model card; return its path.

    Args:
        run_dir: A run folder.
        output_dir: Folder to write, which must not exist; None: `export/` and the kind of model, in the run
            folder.
        model: policy: the merged weights; adapter: those of the adapter alone; reward: the reward model, as a
            sequence classifier for transformers, TRL and vLLM.

    Raises:
        ConfigError: The run has no such model, or the folder exists.
        ResourceError: The folder cannot be written.
    """
    run = Path(run_dir)
    source = _source(run, model)
    target = run / "export" / model if output_dir is None else Path(output_dir)
    if target.exists():
        raise ConfigError(f"{target}: exists already; fix: choose another folder, or remove it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and renamed: a folder of that name is complete.
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
            draft = Path(temporary) / "model"
            if model == "reward":
                export_reward_model(load_reward_model(str(source)), draft)
            else:
                _copy_policy(run, source, draft, model)
            apply_umask(draft)
            fsync_tree(draft)
            draft.rename(target)
    except OSError as error:
        raise write_error(target, error) from error
    return target


def _source(run: Path, model: str) -> Path:
    """The folder of the model in the run."""
    if model not in ("policy", "adapter", "reward"):
        raise ConfigError(f"{model!r} is none of policy, adapter, reward; fix: write one of these")
    if read_json(run / "run.json") is None:
        raise ConfigError(f"{run}: holds no run; fix: name a run folder")
    folder = {
        "policy": run / "final",
        "adapter": run / "final" / "adapter",
        "reward": run / "reward" / "model",
    }
    source = folder[model]
    if source.exists():
        return source
    if model == "adapter" and (run / "final").exists():
        raise ConfigError(f"{run}: it trained all weights, not an adapter; fix: export the policy")
    if model == "reward" and (run / "final").exists():
        raise ConfigError(f"{run}: no reward model was fitted in this run; fix: export the policy")
    name = "reward model" if model == "reward" else "trained policy"
    raise ConfigError(f"{run}: this run has no {name} yet; fix: resume the run first")


def _copy_policy(run: Path, source: Path, draft: Path, model: str) -> None:
    shutil.copytree(source, draft, ignore=shutil.ignore_patterns("adapter", _CARD))
    if model == "adapter":
        for file in (run / "final").iterdir():
            if file.name.startswith(("tokenizer", "special_tokens", "chat_template", "vocab", "merges")):
                shutil.copy2(file, draft / file.name)
    (draft / _CARD).write_text(policy_card(run, is_adapter=model == "adapter"), encoding="utf-8")


def folder_files(folder: Path) -> list[tuple[str, int]]:
    """The files of a folder with their sizes in bytes, by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted((str(file.relative_to(folder)), file.stat().st_size) for file in files)


def check_repo_name(name: str) -> None:
    """Check the name of a repository on the hub.

    Raises:
        ConfigError: It is no owner/name, or the hub is disabled.
    """
    if not REPO_ID_PATTERN.fullmatch(name):
        raise ConfigError(f"{name}: is no name on the hub; fix: write OWNER/NAME")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be uploaded; fix: unset it")


def push_to_hub(folder: Path, name: str, *, make_client: Callable[[], Any] | None = None) -> str:
    """Upload a folder to a private repository, which is made if it does not exist; return its address.

    Args:
        folder: An exported folder.
        name: OWNER/NAME.
        make_client: Makes a client with `create_repo` and `upload_folder`; None: `huggingface_hub.HfApi`.

    Raises:
        ConfigError: The hub refuses: no token, or no right to write there.
        ResourceError: The hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if make_client is None and not is_reachable(constants.ENDPOINT):
        problem = f"{constants.ENDPOINT} does not answer"
        raise ResourceError(f"{name}: {problem}; fix: check the network; the model is in {folder}")
    client = (make_client or HfApi)()
    network_errors = _network_errors()
    try:
        client.create_repo(repo_id=name, private=True, exist_ok=True)
        client.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Upload by paretune")
    except LocalTokenNotFoundError as error:
        raise ConfigError(f"{name}: there is no access token for the hub; fix: hf auth login") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in {401, 403}:
            problem = f"the hub refuses the upload (error {status})"
            raise ConfigError(
                f"{name}: {problem}; fix: hf auth login, with a token that may write there"
            ) from error
        raise ResourceError(f"{name}: the hub answers with error {status}; fix: try again later") from error
    except network_errors as error:
        problem = f"the upload failed ({first_line(error)})"
        raise ResourceError(f"{name}: {problem}; fix: upload again; the model is in {folder}") from error
    return f"https://huggingface.co/{name}"


def _network_errors() -> tuple[type[BaseException], ...]:
    """Errors of connections: the client library of huggingface_hub has changed between its versions."""
    errors: list[type[BaseException]] = [OSError]
    for library in ("httpx2", "httpx"):
        try:
            errors.append(import_module(library).HTTPError)
        except ImportError:
            continue
    return tuple(errors)
