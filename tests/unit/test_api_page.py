"""docs/api.md lists the public API; `python tests/unit/test_api_page.py` writes the lists."""

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import paretune as pt
from paretune.algorithms.docstrings import summary

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
CONSTRUCTORS = tuple(name for name in pt.scorers.__all__ if name != "ScorerSetup")
MODULES = {
    "algorithms": "`ALGORITHMS`, and a function per algorithm",
    "scorers": "constructors of scorers, below",
}


def entry(name, value):
    parameters = inspect.signature(value).parameters.values()
    shown = [
        f"{p.name}={p.default!r}" if p.default is not p.empty and not callable(p.default)
        else f"{p.name}={p.default.__name__}" if p.default is not p.empty
        else f"**{p.name}" if p.kind is p.VAR_KEYWORD
        else p.name
        for p in parameters
    ]  # fmt: skip
    star = next((i for i, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), None)
    if star is not None:
        shown.insert(star, "*")
    return f"* `{name}({', '.join(shown)})`\n  {summary(value)}\n"


def function(name):
    """The function, also of a name that a package has too."""
    return getattr(import_module(f"paretune.{pt._EXPORTS[name]}"), name)


def lists():
    functions = [name for name in pt.__all__ if name.islower() and name not in MODULES]
    classes = [name for name in pt.__all__ if not name.islower()]
    return {
        "signatures": "".join(entry(name, function(name)) for name in functions),
        "scorers": "".join(entry(f"scorers.{name}", getattr(pt.scorers, name)) for name in CONSTRUCTORS),
        "classes": "".join(f"* `{name}`: {summary(getattr(pt, name))}\n" for name in classes)
        + "".join(f"* `{name}`: {text}\n" for name, text in MODULES.items()),
    }


def filled(text):
    for name, content in lists().items():
        pattern = f"<!-- {name} -->\n(.*?)<!-- end of {name} -->"
        text, count = re.subn(
            pattern,
            lambda _, n=name, c=content: f"<!-- {n} -->\n{c}<!-- end of {n} -->",
            text,
            flags=re.DOTALL,
        )
        assert count == 1, name
    return text


def test_page_lists_the_public_api():
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text) == text, "python tests/unit/test_api_page.py writes the lists"


@pytest.mark.parametrize("name", pt.__all__)
def test_public_names_have_docstrings(name):
    assert (getattr(pt, name).__doc__ or "").strip()


def test_constructors_have_the_keys_and_defaults_of_recipes():
    from paretune.config import scorer_schema as schema

    sections = {
        "python_scorer": schema.PythonScorerSection,
        "classifier": schema.ClassifierScorerSection,
        "reward_model": schema.RewardModelScorerSection,
    }
    for name, section in sections.items():
        parameters = inspect.signature(getattr(pt.scorers, name)).parameters
        assert parameters.keys() - {"name"} == section.model_fields.keys() - {"type", "objective"}
        for key, field in section.model_fields.items():
            if key in parameters and not field.is_required():
                default = field.get_default(call_default_factory=True)
                assert (parameters[key].default or default) == default, (name, key)


def test_functions_have_the_names_and_defaults_of_recipes():
    from paretune.config import data_schema, schema

    supervised, evaluation = data_schema.SupervisedTrainingSection, schema.EvaluateSection
    for call, section, keys in (
        (pt.evaluate, evaluation, ("num_generations", "temperature", "bootstrap_samples", "verdict", "seed")),
        (pt.sample, evaluation, ("num_generations", "temperature", "seed")),
        (pt.fit_reward_model, supervised, ("num_train_epochs", "batch_size")),
        (pt.align, schema.RunSection, ("max_steps", "save_steps", "seed", "device")),
    ):  # fmt: skip
        for key in keys:
            default = inspect.signature(call).parameters[key].default
            assert default == section.model_fields[key].get_default(), key


def test_import_is_light():
    code = "import sys, paretune; print({'torch', 'numpy', 'pydantic'} & sys.modules.keys())"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"


def test_packages_with_names_of_functions_are_both():
    import paretune.run.folder as folder

    assert callable(pt.run)
    assert pt.run.folder is folder
    assert next(iter(inspect.signature(pt.run).parameters)) == "recipe"
    assert set(pt.__all__) <= set(dir(pt))


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
