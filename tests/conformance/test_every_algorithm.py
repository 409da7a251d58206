"""Properties that every algorithm must have."""

import re
from pathlib import Path

import pytest
import torch

from battery import GRADIENT, recipe_of, weights_of, world_of
from paretune.algorithms import ALGORITHMS
from paretune.rl.validate import check_spec
from paretune.run.io import read_jsonl
from paretune.run.metrics import find_metric
from support.toy import OBJECTIVES
from toy import Cut, stop_after, trained

PAGES = sorted((Path(__file__).parents[2] / "docs" / "algorithms").glob("*.md"))
every = pytest.mark.parametrize("name", GRADIENT)


@every
def test_parts_fit_together(name):
    requirements = check_spec(recipe_of(name), OBJECTIVES)
    assert requirements.num_selected_rows >= 1
    assert ("values" in recipe_of(name).requires()) == (requirements.num_critic_heads > 0)


@every
def test_run_is_finite_deterministic_and_leaves_frozen_models_unchanged(tmp_path, name):
    recipe = recipe_of(name)
    world = world_of(recipe, tmp_path / "a")
    before = {role: weights_of(model) for role, model in world.models.frozen.items()}
    first = trained(tmp_path / "a" / "run", world, recipe, steps=3)
    again = trained(tmp_path / "b" / "run", world_of(recipe, tmp_path / "b"), recipe, steps=3)
    assert first == again
    for role, model in world.models.frozen.items():
        assert all(torch.equal(value, before[role][key]) for key, value in weights_of(model).items())
    for line in read_jsonl(tmp_path / "a" / "run" / "metrics.jsonl"):
        numbers = {key: value for key, value in line.items() if key not in ("stage", "step")}
        assert all(value is not None for value in numbers.values()), line
        assert all(find_metric(key) for key in numbers)
    moved = weights_of(world.models.policy)
    start = world.models.frozen["reference"].state_dict()
    assert any(not torch.equal(value, start[key]) for key, value in moved.items())


@every
def test_resume_is_bit_exact(tmp_path, name):
    recipe = recipe_of(name)
    whole = trained(tmp_path / "whole", world_of(recipe, tmp_path / "p"), recipe, steps=4, every=1)
    world = world_of(recipe, tmp_path / "q")
    with pytest.raises(Cut):
        trained(tmp_path / "cut", world, recipe, steps=4, every=1, on_step=stop_after(3))
    again = trained(tmp_path / "cut", world_of(recipe, tmp_path / "r"), recipe, steps=4, every=1)
    assert again == whole


@every
def test_microbatches_change_nothing(tmp_path, name):
    recipe = recipe_of(name)
    torch.set_default_dtype(torch.float32)
    whole, cut = (world_of(recipe, tmp_path / str(n), lr=1e-3, micro_tokens=n) for n in (8192, 40))
    trained(tmp_path / "whole", whole, recipe, steps=1)
    trained(tmp_path / "cut", cut, recipe, steps=1)
    lines = [read_jsonl(tmp_path / run / "metrics.jsonl")[0] for run in ("whole", "cut")]
    assert lines[0]["grad_norm"] == pytest.approx(lines[1]["grad_norm"], rel=2e-5)
    assert lines[0]["loss/total"] == pytest.approx(lines[1]["loss/total"], rel=2e-5, abs=1e-6)


@every
def test_describe_is_readable(name):
    text = "\n".join(recipe_of(name).describe())
    assert re.search(rf"algorithm +{name}\b", text)
    assert " at 0x" not in text


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_has_a_page_and_a_docstring_with_a_source(name):
    assert any(re.search(rf"\b{name}\b", page.read_text(encoding="utf-8")) for page in PAGES)
    assert "Source:" in (ALGORITHMS[name].__doc__ or "")
