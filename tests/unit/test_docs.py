"""Pages agree with the code: numbers, names and links."""

import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pages import BLOCK, ROOT, examples, fenced, pages, printed
from paretune.algorithms import ALGORITHMS
from paretune.algorithms.aggregators import AGGREGATES
from paretune.config import load_config
from paretune.core.errors import ConfigError
from paretune.experiment.resolved import resolve
from paretune.rl.validate import check_spec

ALGORITHM_PAGES = [page for page in pages() if page.parent.name == "algorithms"]
ROOMS = ("credit", "loss")
NAMED = re.compile(r"`([A-Z][A-Za-z]+)(?:\([^`]*\))?`")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```(python|yaml)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def classes(*rooms: str) -> Iterator[type]:
    """Every public class that is defined in these packages."""
    for room in rooms:
        for path in sorted((ROOT / "src" / "paretune" / room.replace(".", "/")).glob("*.py")):
            module = importlib.import_module(f"paretune.{room}.{path.stem}")
            for _, member in inspect.getmembers(module, inspect.isclass):
                if member.__module__ == module.__name__ and not member.__name__.startswith("_"):
                    yield member


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("example", examples(), ids=lambda path: path.stem)
def test_pages_show_the_output_of_the_examples(example: Path) -> None:
    said = printed(example)
    shown = {}
    for page in pages():
        for program, block, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            if program == example.stem:
                shown[block] = text
    want = {block: fenced(text) for block, text in said.items()}
    assert shown == want, "python tests/pages.py writes what the examples print into the pages"


def test_pages_have_no_block_without_an_example() -> None:
    programs = {example.stem for example in examples()}
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- printed:") == len(BLOCK.findall(text)), f"{name(page)} has a marker left open"
        assert {program for program, *_ in BLOCK.findall(text)} <= programs, name(page)


def test_every_part_and_algorithm_is_documented() -> None:
    text = "\n".join(prose(page) for page in ALGORITHM_PAGES)
    words = set(re.findall(r"\w+", text))
    parts = {part.__name__ for part in classes(*ROOMS)}
    assert not parts - words, "parts that no page of docs/algorithms names"
    assert not (ALGORITHMS.keys() | AGGREGATES.keys()) - words
    contents = set(re.findall(r"\w+", prose(ROOT / "docs" / "algorithms" / "README.md")))
    assert not (parts | ALGORITHMS.keys() | AGGREGATES.keys()) - contents, "the table of contents lacks these"


@pytest.mark.parametrize("page", ALGORITHM_PAGES, ids=name)
def test_parts_named_on_pages_exist(page: Path) -> None:
    rooms = (*ROOMS, "rl", "rl.evolution", "training", "models", "rollout")
    known = {part.__name__ for part in classes(*rooms)} | {"Batch", "Outputs", "WiringError"}
    assert not set(NAMED.findall(prose(page))) - known


@pytest.mark.parametrize("page", ALGORITHM_PAGES, ids=name)
def test_code_on_pages_runs(page: Path, tmp_path: Path) -> None:
    for language, code in CODE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(code, str(page), "exec"), {})
        else:
            checked(code, tmp_path / "recipe.yaml")


def checked(sections: str, path: Path) -> None:
    """Complete some sections to a recipe, load it, and check its algorithm."""
    recipe = {"data": {"world": {}}, "policy": {"path": "world", "sft": {}}, **yaml.safe_load(sections)}
    recipe.setdefault("objectives", {"safety": {}, "actionability": {}})
    recipe["reward"] = {"objectives": {objective: {} for objective in recipe["objectives"]}}
    for file in re.findall(r"file: ([\w.]+)", sections):
        (path.parent / file).touch()
        recipe["data"]["root"] = str(path.parent)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    config = load_config(path)
    check_spec(resolve(config).algorithm, list(recipe["objectives"]))


def test_readme_recipe_is_valid_and_its_error_messages_match(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ((_, recipe),) = (found for found in CODE.findall(readme) if found[0] == "yaml")
    (tmp_path / "my-data").mkdir()
    for file in re.findall(r"file: ([\w.]+)", recipe):
        (tmp_path / "my-data" / file).touch()
    mine = Path("mine.yaml")
    mine.write_text(recipe, encoding="utf-8")
    experiment = load_config(mine)
    assert experiment.judge is not None, "without a judge nothing is ever called better"
    check_spec(resolve(experiment).algorithm, tuple(experiment.objectives))
    wrong = recipe.replace("attack.train", "atack.train").replace("gate: safety", "gate: saftey")
    mine.write_text(wrong, encoding="utf-8")
    (said,) = re.findall(
        r"^\$ paretune check mine.yaml run.stpes=100\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE
    )
    with pytest.raises(ConfigError) as caught:
        load_config(mine, ["run.stpes=100"])
    assert str(caught.value) == said.rstrip("\n")


def test_source_archive_contains_what_tests_read() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packed = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {"src", "recipes", "tests", "docs", "Makefile", "constraints.txt"} <= set(packed)
    assert all((ROOT / name).exists() for name in packed)


def anchors(page: Path) -> set[str]:
    """The names of the page's headings in links, as code hosts make them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", pages(), ids=name)
def test_links_have_targets(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)} links to {link}"
        assert not anchor or anchor in anchors(target), (
            f"{name(page)} links to {link}, which has no such heading"
        )
