"""Reading all records of an experiment: what is taken, what is left out, what is complained of."""

import json
import re
from pathlib import Path

import pytest
from smallfiles import describe_model, rate, write

from paretune.config import Config, load_config
from paretune.core.errors import ConfigError, DataError
from paretune.data.loader import prompt_key
from paretune.experiment import data as stage
from paretune.experiment import preflight
from paretune.experiment.data import load_data
from paretune.models import load
from paretune.worlds.helpdesk.model import helpdesk_tokenizer as world_tokenizer
from support.tiny_models import tiny_config, tiny_tokenizer

WORLD = {
    "data": {"world": {"num_prompts": 12, "num_test_prompts": 9, "num_ratings": 20, "num_demonstrations": 8}},
    "policy": {"path": "world", "sft": {}},
    "reward": {"objectives": {"safety": {}, "politeness": {}}},
    "objectives": {"safety": {}},
    "algorithm": {"name": "grpo", "max_new_tokens": 8},
}
SAFE = {"objectives": {"safety": {}}, "held_out": 0.5}
RATED = SAFE | {"ratings": {"r": {"file": "rated.csv", "labels": {"safety": "safe"}}}}
FILES = {
    "data": {"prompts": {"a": {"file": "train.jsonl"}}, "test_prompts": {"a": {"file": "test.jsonl"}}},
    "policy": {"path": "model"},
    "reward": RATED,
    "objectives": {"safety": {}},
    "algorithm": {"name": "grpo", "max_new_tokens": 8},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model's configuration and tokenizer, and small files of all kinds."""
    monkeypatch.chdir(tmp_path)
    describe_model()
    write("train.jsonl", [{"prompt": f"train {i}"} for i in range(4)])
    write("test.jsonl", [{"prompt": f"test {i}"} for i in range(3)])
    write("shown.jsonl", [{"prompt": f"shown {i}", "response": "yes"} for i in range(3)])
    rate("rated.csv", [(f"rated {i}", f"reply {i}", "" if i % 3 else i) for i in range(30)])
    return tmp_path


def experiment(sections: dict[str, object], *overrides: str) -> Config:
    Path("r.yaml").write_text(json.dumps({"name": "r"} | sections))
    return load_config("r.yaml", overrides)


def complaints(sections: dict[str, object], *overrides: str, kind: type[Exception] = DataError) -> list[str]:
    with pytest.raises(kind) as caught:
        load_data(experiment(sections, *overrides))
    return str(caught.value).split("\n")


def test_the_world_brings_what_no_file_is_named_for() -> None:
    found = load_data(experiment(WORLD))
    assert sum(map(len, found.train_prompts.values())) == 12
    assert (len(found.test_prompts), len(found.sft_demonstrations)) == (9, 8)
    assert found.reward is not None
    assert len(found.reward.train) == 20
    assert set(found.reward.test[0].labels) == {"safety", "politeness"}
    assert found.exclusions == ()


def test_the_world_brings_nothing_whose_prompt_is_held_out() -> None:
    found = load_data(
        experiment(WORLD, "data.world={prompts: 90, test_prompts: 90, rated: 90, demonstrations: 90}")
    )
    assert found.reward is not None
    held = {prompt_key(prompt) for prompt in found.test_prompts}
    seen = [
        *found.sft_demonstrations,
        *found.reward.train,
        *(p for pool in found.train_prompts.values() for p in pool),
    ]
    assert len(seen) == 270
    assert not held & {prompt_key(record) for record in seen}
    assert not {prompt_key(row) for row in found.reward.test} & {
        prompt_key(row) for row in found.reward.train
    }


def test_requests_of_the_world_that_leave_no_room_for_a_response_are_told() -> None:
    (line,) = complaints(WORLD, "algorithm.max_new_tokens=180")
    assert re.search(r"data\.world: prompt: 1[3-9] tokens, and there is room for 12; fix: shorten it", line)
    load_data(experiment(WORLD, "algorithm.max_new_tokens=170"))


def test_too_few_ratings_of_the_world_are_told_however_few_are_looked_at() -> None:
    lines = complaints(WORLD, "data.world.num_ratings=1")
    assert [line.partition("objectives.")[2].partition(":")[0] for line in lines] == ["safety", "politeness"]


def test_a_judge_with_files_of_its_own_is_read_beside_the_world() -> None:
    found = load_data(experiment(WORLD | {"judge": RATED}))
    assert found.judge is not None
    rows = [*found.judge.train, *found.judge.test]
    assert sorted(rating.labels["safety"] for rating in rows) == list(range(0, 30, 3))
    assert found.judge.train
    assert found.judge.test
    assert "rated.csv" in found.file_hashes


def test_a_ready_made_judge_is_taken_beside_the_world() -> None:
    judge("safety")
    assert load_data(experiment(WORLD | {"judge": {"path": "judge"}})).judge is None


def test_a_recipe_over_the_world_may_name_files_for_the_reward_and_the_demonstrations() -> None:
    policy = {"path": "model", "sft": {"demonstrations": {"d": {"file": "shown.jsonl"}}}}
    small = {"world": {"prompts": 6, "test_prompts": 4}}
    found = load_data(experiment(WORLD | {"data": small, "reward": RATED, "policy": policy}))
    assert [d.response for d in found.sft_demonstrations] == ["yes"] * 3
    assert found.reward is not None
    assert len(found.reward.train) + len(found.reward.test) == 10


def test_the_world_brings_its_demonstrations_to_another_policy() -> None:
    assert len(load_data(experiment(WORLD, "policy.path=model")).sft_demonstrations) == 8


@pytest.mark.parametrize("sections", [WORLD, FILES])
def test_no_more_test_prompts_than_asked_for(sections: dict[str, object]) -> None:
    whole = load_data(experiment(sections)).test_prompts
    few = load_data(experiment(sections, "evaluate.max_prompts=2")).test_prompts
    assert len(few) == 2 < len(whole)
    assert [p for p in whole if p in few] == list(few)


def test_every_kind_keeps_its_share_of_fewer_test_prompts() -> None:
    few = load_data(
        experiment(WORLD, "data.world.num_test_prompts=40", "evaluate.max_prompts=10")
    ).test_prompts
    kinds = [prompt.category for prompt in few]
    assert sorted(kinds.count(kind) for kind in set(kinds)) == [3, 3, 4]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"reward": RATED}, "data.world.num_ratings: has no effect beside reward.ratings"),
        ({"policy": {"path": "model"}}, "data.world.num_demonstrations: has no effect without policy.sft"),
    ],
)
def test_what_is_said_of_the_world_and_not_used_is_a_mistake(
    change: dict[str, object], expected: str
) -> None:
    assert any(expected in line for line in complaints(WORLD | change, kind=ConfigError))


def test_a_share_of_test_prompts_is_a_mistake() -> None:
    data = FILES["data"] | {"test": {"a": {"file": "test.jsonl", "share": 0.5}}}
    (line,) = complaints(FILES | {"data": data}, kind=ConfigError)
    assert "data.test_prompts.a.sampling_weight: has no effect: every test prompt is used" in line


def test_train_rows_with_a_held_out_prompt_are_left_out_and_counted() -> None:
    rate("test.csv", [("Rated 0!", "other", 1), ("Rated 3.", "words", 2), ("unseen", "x", 3)])
    held = {"test_ratings": {"t": {"file": "test.csv", "labels": {"safety": "safe"}}}}
    rated = {key: value for key, value in RATED.items() if key != "held_out"} | held
    found = load_data(experiment(FILES | {"reward": rated}))
    assert found.reward is not None
    assert {r.prompt.messages[0].content for r in found.reward.train} == {
        f"rated {i}" for i in range(6, 30, 3)
    }
    assert len(found.reward.test) == 3
    assert found.exclusions == ("2 rows of reward left out: their prompts are those of its own test rows",)
    assert found.manifest()["left_out"] == list(found.exclusions)
    found = load_data(experiment(WORLD | {"judge": rated}))
    assert found.judge is not None
    assert len(found.judge.train) == 8


def test_what_is_empty_without_the_test_prompts_is_a_mistake_at_its_place() -> None:
    write("train.jsonl", [{"prompt": f"Test {i}"} for i in range(3)])
    write("shown.jsonl", [{"prompt": "test 0", "response": "yes"}])
    rate("rated.csv", [("test 1", f"reply {i}", i) for i in range(30)])
    rate("other.csv", [("other", "reply", 1)])
    held = {"test_ratings": {"t": {"file": "other.csv", "labels": {"safety": "safe"}}}}
    reward = {key: value for key, value in RATED.items() if key != "held_out"} | held
    policy = {"path": "model", "sft": {"demonstrations": {"d": {"file": "shown.jsonl"}}}}
    lines = complaints(FILES | {"reward": reward, "policy": policy})
    assert [re.sub(r"; fix: .*", "", line) for line in lines] == [
        "r.yaml:1: data.prompts.a: every prompt of a is among the test prompts",
        "r.yaml:1: policy.sft.demonstrations: the prompt of every row is among the test prompts",
        "r.yaml:1: reward: no row is left to learn from: every prompt is held out",
    ]


def test_a_reward_model_without_held_out_rows_or_with_one_label_only_is_a_mistake() -> None:
    rate("rated.csv", [("same prompt", f"reply {i}", 1) for i in range(4)])
    lines = complaints(FILES, "reward.holdout_fraction=1e-9")
    assert "reward: not one row is held out to report on" in lines[0]
    assert "reward.objectives.safety: all its 4 labels are 1" in lines[1]


def test_every_row_that_the_chat_template_refuses_is_told_with_its_place() -> None:
    tokenizer = tiny_tokenizer()
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    tokenizer.save_pretrained("model")
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    write("train.jsonl", [{"prompt": turns}, {"prompt": "good"}, {"prompt": turns}])
    lines = complaints(FILES)
    assert [line.split(": ")[:2] for line in lines] == [
        ["train.jsonl:1", "prompt"],
        ["train.jsonl:3", "prompt"],
    ]
    assert "the chat template refuses turns of system, user: no system turns; fix: use turns" in lines[0]


def test_a_dialogue_that_is_cut_begins_with_a_user_turn() -> None:
    said = ("system", "user", "assistant", "user", "assistant", "user")
    turns = [{"role": role, "content": f"{i} " + "x" * 20} for i, role in enumerate(said)]
    write("pairs.jsonl", [{"prompt": turns, "chosen": f"good {i}", "rejected": "bad"} for i in range(40)])
    source = {"file": "pairs.jsonl", "objective": "safety", "longer": "cut", "max_tokens": 62}
    write("others.jsonl", [{"prompt": "other", "chosen": "good", "rejected": "bad"}])
    held = {"o": {"file": "others.jsonl", "objective": "safety"}}
    reward = {"objectives": {"safety": {"loss": "bradley_terry"}}, "pairs": {"p": source}, "test_pairs": held}
    found = load_data(experiment(FILES | {"reward": reward})).reward
    assert found is not None
    assert len(found.train) == 40
    for row in found.train:
        assert [m.content[0] for m in row.prompt.messages] == ["5"]
        assert row.prompt.messages[0].role == "user"


def test_the_revision_of_the_policy_is_asked_for_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def context(path: str, *, revision: str | None = None) -> int:
        asked.append((path, revision))
        return 96

    def tokenizer(path: str, *, revision: str | None = None) -> object:
        asked.append((path, revision))
        return tiny_tokenizer()

    def config(path: str, *, revision: str | None = None) -> object:
        asked.append((path, revision))
        return tiny_config("llama", 101, context=96)

    monkeypatch.setattr(stage, "context_of", context)
    monkeypatch.setattr(stage, "load_tokenizer", tokenizer)
    monkeypatch.setattr(preflight, "config_of", config)
    load_data(experiment(FILES, "policy.path=own/model", "policy.revision=v2"))
    assert set(asked) == {("own/model", "v2")}
    asked.clear()
    load_data(experiment(FILES, "reward.init_from=own/body", "reward.revision=v3"))
    assert set(asked) == {("model", None), ("own/body", "v3")}


def judge(*names: str) -> None:
    config = tiny_config("llama", 101, context=96)
    config.id2label = dict(enumerate(names))
    config.save_pretrained("judge")
    Path("judge/model.safetensors").touch()


def test_a_ready_made_judge_that_knows_no_objective_is_a_mistake() -> None:
    judge("saftey", "kindness")
    (line,) = complaints(FILES | {"judge": {"path": "judge"}}, kind=ConfigError)
    assert line == (
        "r.yaml:1: judge.path: scores none of the objectives; "
        "fix: the model in judge.path has saftey, kindness"
    )


def test_a_ready_made_reward_of_the_hub_must_know_every_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "config_of", lambda path, revision: tiny_config("llama", 101))
    monkeypatch.setattr(preflight, "objectives_of", lambda path, revision: ("saftey", "x"))
    (line,) = complaints(FILES | {"reward": {"path": "own/reward"}}, kind=ConfigError)
    assert line == (
        'r.yaml:1: objectives.safety: no model provides it; did you mean "saftey"?; '
        "fix: the model in reward.path has saftey, x"
    )


def test_a_critic_starts_from_a_ready_made_reward_only_if_it_reads_the_same_tokens() -> None:
    judge("safety")
    ppo = {"name": "ppo_max", "max_new": 4}
    ready_made = FILES | {"reward": {"path": "judge"}, "algorithm": ppo}
    world_tokenizer().save_pretrained("judge")
    (line,) = complaints(ready_made, kind=ConfigError)
    assert line == (
        "r.yaml:1: reward.path: reads other tokens than the policy, and the critic is to start from it; "
        "fix: write algorithm.critic_init_from: policy"
    )
    load_data(experiment(ready_made, "algorithm.critic_init_from=policy"))
    (Path("judge") / "tokenizer.json").unlink()
    (Path("judge") / "tokenizer_config.json").unlink()
    (line,) = complaints(ready_made, kind=ConfigError)
    assert line.startswith("r.yaml:1: reward.path: ")
    tiny_tokenizer().save_pretrained("judge")
    load_data(experiment(ready_made))


def test_a_model_that_cannot_be_read_is_told_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "answers", lambda endpoint: False)
    sections = FILES | {"judge": RATED | {"body": "own/judge", "ratings": RATED["ratings"]}}
    rate("other.csv", [(f"other {i}", f"reply {i}", i) for i in range(30)])
    sections["judge"] |= {"ratings": {"o": {"file": "other.csv", "labels": {"safety": "safe"}}}}
    lines = complaints(sections, "policy.path=own/policy", kind=ConfigError)
    assert [line.split(": there is")[0] for line in lines] == [
        "(override): policy.path: own/policy",
        "r.yaml:1: judge.init_from: own/judge",
    ]
    fix = "; fix: put ./ in front of a folder, or name a model of the hub"
    assert all(line.endswith(fix) for line in lines)
    Path("model/model.safetensors").unlink()
    (line,) = complaints(FILES, kind=ConfigError)
    assert line.startswith("r.yaml:1: policy.path: model: weights must be safetensors, and here is none")


def test_names_that_are_no_folder_are_said_to_be_taken_as_hub_names() -> None:
    assert preflight.hub_model_notes(experiment(FILES)) == []
    assert preflight.hub_model_notes(
        experiment(FILES, "policy.path=own/policy", "reward.init_from=own/body")
    ) == [
        "policy.path: own/policy is no folder here: taken as a hub name",
        "reward.init_from: own/body is no folder here: taken as a hub name",
    ]


def test_a_revision_without_a_name_of_its_own_is_a_mistake() -> None:
    (line,) = complaints(FILES, "reward.revision=v1", kind=ConfigError)
    assert "reward.revision: has no effect without a body of its own" in line
    assert experiment(FILES, "reward={path: own/reward, revision: v1}").reward.revision == "v1"


ALL = 'fix: write "all-linear", or a list of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj'


@pytest.mark.parametrize("sections", [WORLD, FILES])
def test_adapters_that_fit_nothing_are_told_together_with_bad_rows(sections: dict[str, object]) -> None:
    if sections is FILES:
        write("train.jsonl", [{"prompt": "x" * 300}])
    found = complaints(
        sections,
        "policy.lora={targets: [q_proj, k_prj]}",
        "reward.lora.target_modules=v_proj",
        "judge={body: model, objectives: {safety: {}}, lora: {targets: [mlp]}, ratings: "
        "{r: {file: rated.csv, where: {safe: ['0', '3', '6', '9', '12']}, labels: {safety: safe}}}}",
        kind=ConfigError,
    )
    assert found[:2] == [
        '(override): policy.lora.target_modules: "k_prj" fits no module of a llama model; '
        f'did you mean "k_proj"?; {ALL}',
        '(override): reward.lora.target_modules: "v_proj" fits no module of a llama model; '
        f'did you mean "[v_proj]"?; {ALL}',
    ]
    assert (
        found[2] == f"(override): judge.lora.target_modules: ('mlp',) fits no layer of a llama model; {ALL}"
    )
    assert [line.split(" tokens")[0] for line in found[3:]] == (
        ["train.jsonl:1: prompt: 303"] if sections is FILES else []
    )


def test_adapters_that_fit_are_no_mistake() -> None:
    lora = ("policy.lora={targets: [q_proj]}", "reward.lora={targets: '.*up_proj'}")
    assert load_data(experiment(FILES, *lora)).train_prompts
    assert load_data(experiment(WORLD, *lora)).train_prompts


def test_a_pool_whose_share_never_gives_it_a_prompt_is_a_mistake() -> None:
    prompts = {"a": {"file": "train.jsonl"}, "b": {"file": "more.jsonl", "share": 0.01}}
    write("more.jsonl", [{"prompt": f"more {i}"} for i in range(6)])
    sections = FILES | {"data": FILES["data"] | {"prompts": prompts}}
    (line,) = complaints(sections)
    assert line == (
        "r.yaml:1: data.prompts.b.sampling_weight: 0.01 of 1.01 in all comes to none of the 10 prompts that are mixed; "
        "fix: make it at least 0.1"
    )
    assert load_data(experiment(sections, "data.prompts.b.sampling_weight=0.1")).train_prompts
    for share in (0, -1.0):
        (line,) = complaints(sections, f"data.prompts.b.sampling_weight={share}", kind=ConfigError)
        assert "data.prompts.b.sampling_weight: " in line


def test_responses_that_leave_no_room_for_a_prompt_are_a_mistake() -> None:
    (line,) = complaints(FILES, "algorithm.max_new_tokens=96", kind=ConfigError)
    assert line.startswith("(override): algorithm.max_new_tokens: 96 tokens leave no room for a prompt")
    (line,) = complaints(WORLD, "evaluate.max_new_tokens=190")
    assert re.match(r"r\.yaml:1: data\.world: prompt: \d+ tokens, and there is room for 2", line)


def test_a_home_is_written_out_wherever_a_path_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    Path("base.yaml").write_text(json.dumps(FILES))
    Path("sub").mkdir()
    Path("sub/r.yaml").write_text('{"extends": "~/base.yaml", "name": "r"}')
    paths = [
        "data.root='~'",
        "policy.path=~/model",
        "run.output_dir=~/out",
        "reward.ratings.r.file=~/rated.csv",
    ]
    e = load_config("sub/r.yaml", paths)
    assert (e.data.root, e.run.output_dir) == (str(here), str(here / "out"))
    monkeypatch.chdir(here / "sub")
    assert len(load_data(e).test_prompts) == 3
