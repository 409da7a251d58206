"""What the chat page shows, and the question in one of its forms."""

import secrets
from collections.abc import Mapping
from typing import Any

from paretune.view.answers import Question
from paretune.view.conversation import BASE, ChatModels, number_settings
from paretune.view.folders import Folder

MAX_PROMPT_CHARS = 20_000
BASE_CHOICE = "/base"
"""The base of the first run in a form: no key of a folder begins with a slash."""
SETTINGS = ("temperature", "seed", "max_new_tokens")


def chat_context(folders: Mapping[str, Folder], query: Mapping[str, str]) -> dict[str, Any]:
    """The page of two models, before the first prompt."""
    known = _models(folders)
    first, second = _chosen(known, query)
    _, problems = number_settings(query)
    return {
        "title": "Chat",
        "models": list(known),
        "runs": [key for key, folder in folders.items() if folder.kind == "run"],
        "first": first,
        "second": second,
        "names": () if first is None else _names(first, second),
        "rewards": query.get("rewards", ""),
        "llm_judges": "llm_judges" in query,
        "settings": {name: query.get(name, "") for name in SETTINGS},
        "problems": [*problems, *_model_problems(folders, query)],
        "base_choice": BASE_CHOICE,
        "max_prompt_chars": MAX_PROMPT_CHARS,
        "conversation": secrets.token_hex(8),
    }


def read_question(folders: Mapping[str, Folder], fields: Mapping[str, str]) -> tuple[Question | None, str]:
    """The question in a form, or why there is none."""
    known = _models(folders)
    settings, problems = number_settings(fields)
    problems = [*problems, *_model_problems(folders, fields)]
    prompt = fields.get("prompt", "").replace("\r\n", "\n").strip()
    if not prompt:
        problems.append("write a prompt first")
    if len(prompt) > MAX_PROMPT_CHARS:
        problems.append(f"the prompt has {len(prompt):,} characters; the limit is {MAX_PROMPT_CHARS:,}")
    first, second = _chosen(known, fields)
    if problems or first is None:
        return None, "; ".join(problems) or "this run no longer exists"
    rewards = fields.get("rewards")
    models = ChatModels(
        first=str(known[first].path),
        second=BASE if second == BASE_CHOICE else str(known[second].path),
        rewards=str(folders[rewards].path) if rewards else None,
        llm_judges="llm_judges" in fields,
    )
    question = Question(
        prompt=prompt,
        models=models,
        names=_names(first, second),
        conversation=fields.get("conversation", ""),
        is_first=fields.get("is_first") == "yes",
        settings=settings,
    )
    return question, ""


def _models(folders: Mapping[str, Folder]) -> dict[str, Folder]:
    """What there is to talk to: runs with a trained policy first, then model folders."""
    found = {key: folder for key, folder in folders.items() if folder.has_model}
    return dict(sorted(found.items(), key=lambda item: item[1].kind == "model"))


def _chosen(known: Mapping[str, Folder], query: Mapping[str, str]) -> tuple[str | None, str]:
    """The keys of the two models: by default the first run and its base."""
    first = query.get("a") or next(iter(known), None)
    if first is None or first not in known:
        return None, ""
    default = BASE_CHOICE if known[first].kind == "run" else first
    return first, query.get("b") or default


def _names(first: str, second: str) -> tuple[str, str]:
    """The names of two models on the page."""
    return first, f"{BASE} of {first}" if second == BASE_CHOICE else second


def _model_problems(folders: Mapping[str, Folder], query: Mapping[str, str]) -> list[str]:
    """What is wrong with the models and the run in a query."""
    known, first, second = _models(folders), query.get("a", ""), query.get("b", "")
    named = [name for name in (first, second) if name and name != BASE_CHOICE]
    problems = [
        f"{name}: there is no such run or model" for name in dict.fromkeys(named) if name not in known
    ]
    rewards = query.get("rewards", "")
    if rewards and (rewards not in folders or folders[rewards].kind != "run"):
        problems.append(f"{rewards}: there is no such run")
    if second == BASE_CHOICE and first in known and known[first].kind != "run":
        problems.append(f"{first}: is not a run, so its base is unknown; fix: choose another model")
    return problems
