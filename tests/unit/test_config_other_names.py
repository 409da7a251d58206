"""Keys with the names of TRL, transformers, verl and OpenRLHF get the name that they have here as fix."""

import re
from pathlib import Path

import pytest
from jaxtyping import TypeCheckError

from paretune.config import find_recipe, load_config
from paretune.config.issues import section_keys
from paretune.config.other_names import LIBRARIES
from paretune.config.trl.conversion import Conversion
from paretune.config.trl.convert import CONVERTERS
from paretune.config.trl.fields import DPO, GRPO
from paretune.config.trl.read import TrlSource
from paretune.core.errors import ConfigError, WiringError
from paretune.core.reductions import LossAggregationMode
from paretune.rl.algorithm_spec import LossAggregation


def error(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(find_recipe("demo"), overrides)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("training.per_device_train_batch_size=8", "this is TRL's name; here: training.prompts_per_step"),
        ("training.gradient_accumulation_steps=8", "this is TRL's name; here: training.prompts_per_step"),
        ("algorithm.max_completion_length=8", "this is TRL's name; here: algorithm.max_new_tokens"),
        ("training.num_train_epochs=8", "this is TRL's name; here: run.max_steps"),
        ("algorithm.beta=0.1", "this is TRL's name; here: algorithm.kl_coef"),
        ("beta=0.1", "this is TRL's name; here: algorithm.kl_coef"),
        ("algorithm={name: trl_grpo, max_completion_length: 8}", "here: algorithm.max_new_tokens"),
        ("training.beta=0.1", "here: algorithm.kl_coef"),
        ("policy.lora_r=8", "this is TRL's name; here: policy.lora.r"),
        ("rollout.n=4", "these are verl's names; here: rollout.n is algorithm.num_generations"),
        ("actor_rollout_ref.actor.optim.lr=1e-6", "actor.optim.lr is training.learning_rate"),
        ("algorithm.adv_estimator=grpo", "this is verl's name; here: algorithm.name"),
        ("training.n_samples_per_prompt=4", "this is OpenRLHF's name; here: algorithm.num_generations"),
        ("run.report_to=wandb", "remove TRL's report_to: metrics, samples and events are always in"),
        ("algorithm.top_p=0.9", "remove TRL's top_p: responses are sampled from the whole distribution"),
    ],
)
def test_a_name_of_another_library_gets_the_name_here(override: str, fix: str) -> None:
    line = error(override)
    assert "unknown key" in line
    assert fix in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.engien=vllm", 'rollout.engien: unknown key; did you mean "rollout.engine"?'),
        ("rollout={engine: local, timeout: 3}", "rollout.timeout: unknown key; fix: this section has engine"),
        (
            "rollout.mode=server",
            "rollout.engine: is missing; fix: write engine into rollout, one of local, vllm",
        ),
        ("scorers.x={tpye: rule}", 'scorers.x.tpye: unknown key; did you mean "scorers.x.type"?'),
    ],
)
def test_a_misspelled_kind_of_a_section_is_named(override: str, message: str) -> None:
    assert message in error(override)


def test_a_name_that_the_algorithm_has_is_no_mistake() -> None:
    config = load_config(
        find_recipe("demo"), ["algorithm={name: trl_grpo, beta: 0.1}", "objectives.actionability=null"]
    )
    assert config.algorithm.arguments["beta"] == 0.1


def test_an_argument_that_no_name_stands_for_is_listed_as_ever() -> None:
    assert "fix: this section has " in error("run.stpes=3")
    assert "fix: grpo takes " in error("algorithm.num_generation=3")


def test_every_key_of_the_table_exists() -> None:
    for names in LIBRARIES.values():
        for keys in names.values():
            for key in [] if " of " in keys else keys.split():
                *sections, last = key.split(".")
                assert sections[:1] == ["algorithm"] or last in section_keys(tuple(sections)), key


@pytest.mark.parametrize("config", [GRPO, DPO])
def test_the_table_agrees_with_the_conversion(config: str) -> None:
    """What `paretune from-trl` maps to a key of another name, a recipe with TRL's name gets as fix."""
    values = {
        "model_name_or_path": "m",
        "model_revision": "v",
        "max_steps": 5,
        "use_cpu": True,
        "use_peft": True,
    }
    conversion = Conversion(TrlSource(Path("x.yaml"), config, values))
    CONVERTERS[config](conversion)
    for line in conversion.mapped:
        match = re.match(r"(\w+)(?: \(default of TRL\))? -> ([\w.]+): ", line)
        if (
            match is not None
            and match[1] != match[2].rpartition(".")[2]
            and match[2] != "evaluate.temperature"
        ):
            assert match[2] in LIBRARIES["TRL"][match[1]].split(), line


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("coef: no", 'coef: "no" is not a number, and none of auto'),
        ("coef: -1", "coef: -1 must be above 0"),
        ("both: {}", "both: a section is not a whole number or text"),
        ("both: [1]", "both: a list is not a whole number or text"),
        ("ids: x", 'ids: "x" is not a list'),
        ("mode: {a: 1}", "mode: a section is none of a, b; fix: write one of these"),
    ],
)
def test_types_of_arguments_are_told_in_plain_words(tmp_path: Path, arguments: str, problem: str) -> None:
    (tmp_path / "own.py").write_text(
        "from collections.abc import Sequence\n"
        "from typing import Annotated, Literal\n"
        "from annotated_types import Gt\n"
        "import paretune as pt\n"
        "def mine(weights, *, gates=(), coef: Annotated[float, Gt(0)] | Literal['auto'] = 'auto',\n"
        "         both: int | str = 1, ids: Sequence[int] = (), mode: Literal['a', 'b'] | None = None):\n"
        "    return pt.algorithms.grpo(weights, gates=gates)\n"
    )
    line = error(f"algorithm={{name: '{tmp_path}/own.py:mine', {arguments}}}")
    assert line.endswith(f"algorithm.{problem}")


@pytest.mark.parametrize("settings", [{"mode": "nope"}, {"mode": "mean"}, {"empty_rows": "drop"}])
def test_a_loss_aggregation_that_does_not_exist_is_refused(settings: dict[str, LossAggregationMode]) -> None:
    with pytest.raises((WiringError, TypeCheckError), match="LossAggregation"):
        LossAggregation(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("file", ["/dev/zero", "/dev/null", "."])
def test_a_recipe_extends_files_only(tmp_path: Path, file: str) -> None:
    (tmp_path / "r.yaml").write_text(f"extends: {file}\n")
    with pytest.raises(ConfigError, match=r"r.yaml:1:1: extends: .* cannot be read"):
        load_config(tmp_path / "r.yaml")
