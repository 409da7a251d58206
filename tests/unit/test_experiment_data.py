"""The data stage: which records are used, which are excluded, and which errors are reported."""

import json
import re
from pathlib import Path

import pytest
from smallfiles import describe_model, rate, write, write_zeros

from paretune.config import load_config
from paretune.core.errors import ConfigError, DataError
from paretune.data.loader import prompt_key
from paretune.experiment import chat_templates, data_limits, learning_rates, model_checks, preflight
from paretune.experiment import data as stage
from paretune.experiment.data import load_data
from paretune.experiment.resolved import ResolvedRun, resolve
from paretune.models import load
from paretune.worlds import get_world
from support.tiny_models import tiny_config, tiny_tokenizer

WORLD = {
    "data": {"world": {"num_prompts": 12, "num_test_prompts": 9, "num_ratings": 20, "num_demonstrations": 8}},
    "policy": {"path": "world", "sft": {}},
    "reward": {"objectives": {"safety": {}, "politeness": {}}},
    "objectives": {"safety": {}},
    "algorithm": {"name": "grpo", "max_new_tokens": 8},
}
SAFE = {"objectives": {"safety": {}}, "holdout_fraction": 0.5}
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


def resolved(sections: dict[str, object], *overrides: str) -> ResolvedRun:
    Path("r.yaml").write_text(json.dumps({"name": "r"} | sections))
    return resolve(load_config("r.yaml", overrides))


def error_lines(
    sections: dict[str, object], *overrides: str, error: type[Exception] = DataError
) -> list[str]:
    with pytest.raises(error) as caught:
        load_data(resolved(sections, *overrides))
    return str(caught.value).split("\n")


def test_the_built_in_world_generates_what_has_no_files() -> None:
    dataset = load_data(resolved(WORLD))
    assert sum(map(len, dataset.train_prompts.values())) == 12
    assert (len(dataset.test_prompts), len(dataset.sft_demonstrations)) == (9, 8)
    assert dataset.reward is not None
    assert len(dataset.reward.train) == 20
    assert set(dataset.reward.test[0].labels) == {"safety", "politeness"}
    assert dataset.exclusions == ()


def test_the_built_in_worlds_training_data_has_no_test_prompt() -> None:
    dataset = load_data(
        resolved(
            WORLD,
            "data.world={num_prompts: 90, num_test_prompts: 90, num_ratings: 90, num_demonstrations: 90}",
        )
    )
    assert dataset.reward is not None
    test_keys = {prompt_key(prompt) for prompt in dataset.test_prompts}
    records = [
        *dataset.sft_demonstrations,
        *dataset.reward.train,
        *(p for pool in dataset.train_prompts.values() for p in pool),
    ]
    assert len(records) == 270
    assert not test_keys & {prompt_key(record) for record in records}
    assert not {prompt_key(row) for row in dataset.reward.test} & {
        prompt_key(row) for row in dataset.reward.train
    }


def test_prompts_of_the_built_in_world_without_room_for_a_response_are_reported() -> None:
    (line,) = error_lines(WORLD, "algorithm.max_new_tokens=180")
    reason = r"\(the policy's context of 192 minus algorithm\.max_new_tokens 180\)"
    assert re.search(rf"data\.world: prompt: 1[3-9] tokens, but the limit is 12 {reason}; fix: shorten", line)
    load_data(resolved(WORLD, "algorithm.max_new_tokens=170"))


def test_too_few_ratings_of_the_built_in_world_are_reported() -> None:
    lines = error_lines(WORLD, "data.world.num_ratings=1")
    assert [line.partition("objectives.")[2].partition(":")[0] for line in lines] == ["safety", "politeness"]


def test_a_judge_may_have_files_with_the_built_in_world() -> None:
    dataset = load_data(resolved(WORLD | {"judge": RATED}))
    assert dataset.judge is not None
    rows = [*dataset.judge.train, *dataset.judge.test]
    assert sorted(rating.labels["safety"] for rating in rows) == list(range(0, 30, 3))
    assert dataset.judge.train
    assert dataset.judge.test
    assert "rated.csv" in dataset.file_hashes


def test_a_pretrained_judge_has_no_data() -> None:
    judge("safety")
    assert load_data(resolved(WORLD | {"judge": {"path": "judge"}})).judge is None


def test_reward_and_demonstrations_may_have_files_with_the_built_in_world() -> None:
    policy = {"path": "model", "sft": {"demonstrations": {"d": {"file": "shown.jsonl"}}}}
    small = {"world": {"num_prompts": 6, "num_test_prompts": 4}}
    dataset = load_data(resolved(WORLD | {"data": small, "reward": RATED, "policy": policy}))
    assert [d.response for d in dataset.sft_demonstrations] == ["yes"] * 3
    assert dataset.reward is not None
    assert len(dataset.reward.train) + len(dataset.reward.test) == 10


def test_another_policy_may_use_the_built_in_worlds_demonstrations() -> None:
    assert len(load_data(resolved(WORLD, "policy.path=model")).sft_demonstrations) == 8


@pytest.mark.parametrize("sections", [WORLD, FILES])
def test_max_prompts_limits_the_test_prompts(sections: dict[str, object]) -> None:
    all_prompts = load_data(resolved(sections)).test_prompts
    few = load_data(resolved(sections, "evaluate.max_prompts=2")).test_prompts
    assert len(few) == 2 < len(all_prompts)
    assert [p for p in all_prompts if p in few] == list(few)


def test_max_prompts_keeps_the_proportions_of_the_categories() -> None:
    few = load_data(resolved(WORLD, "data.world.num_test_prompts=40", "evaluate.max_prompts=10")).test_prompts
    categories = [prompt.category for prompt in few]
    assert sorted(categories.count(each) for each in set(categories)) == [3, 3, 4]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"reward": RATED}, "data.world.num_ratings: has no effect with reward.ratings"),
        ({"policy": {"path": "model"}}, "data.world.num_demonstrations: has no effect without policy.sft"),
    ],
)
def test_unused_settings_of_the_built_in_world_are_a_mistake(
    change: dict[str, object], expected: str
) -> None:
    assert any(expected in line for line in error_lines(WORLD | change, error=ConfigError))


def test_a_sampling_weight_of_test_prompts_is_a_mistake() -> None:
    data = FILES["data"] | {"test_prompts": {"a": {"file": "test.jsonl", "sampling_weight": 0.5}}}
    (line,) = error_lines(FILES | {"data": data}, error=ConfigError)
    assert "data.test_prompts.a.sampling_weight: has no effect: every test prompt is used" in line


def test_training_rows_with_a_test_prompt_are_excluded_and_counted() -> None:
    rate("test.csv", [("Rated 0!", "other", 1), ("Rated 3.", "words", 2), ("unseen", "x", 3)])
    held = {"test_ratings": {"t": {"file": "test.csv", "labels": {"safety": "safe"}}}}
    rated = {key: value for key, value in RATED.items() if key != "holdout_fraction"} | held
    dataset = load_data(resolved(FILES | {"reward": rated}))
    assert dataset.reward is not None
    assert {r.prompt.messages[0].content for r in dataset.reward.train} == {
        f"rated {i}" for i in range(6, 30, 3)
    }
    assert len(dataset.reward.test) == 3
    assert dataset.exclusions == ("2 rows of reward excluded: their prompts are those of its own test rows",)
    assert dataset.manifest()["exclusions"] == list(dataset.exclusions)
    dataset = load_data(resolved(WORLD | {"judge": rated}))
    assert dataset.judge is not None
    assert len(dataset.judge.train) == 8


def test_data_that_is_empty_without_the_test_prompts_is_reported_at_its_key() -> None:
    write("train.jsonl", [{"prompt": f"Test {i}"} for i in range(3)])
    write("shown.jsonl", [{"prompt": "test 0", "response": "yes"}])
    rate("rated.csv", [("test 1", f"reply {i}", i) for i in range(30)])
    rate("other.csv", [("other", "reply", 1)])
    held = {"test_ratings": {"t": {"file": "other.csv", "labels": {"safety": "safe"}}}}
    reward = {key: value for key, value in RATED.items() if key != "holdout_fraction"} | held
    policy = {"path": "model", "sft": {"demonstrations": {"d": {"file": "shown.jsonl"}}}}
    lines = error_lines(FILES | {"reward": reward, "policy": policy})
    assert [re.sub(r"; fix: .*", "", line) for line in lines] == [
        "r.yaml:1: data.prompts.a: every prompt of a is also a test prompt",
        "r.yaml:1: policy.sft.demonstrations: the prompt of every row is also a test prompt",
        "r.yaml:1: reward: there are no training rows: every prompt is a test prompt",
    ]


def test_a_reward_without_test_rows_or_with_constant_labels_is_a_mistake() -> None:
    rate("rated.csv", [("same prompt", f"reply {i}", 1) for i in range(4)])
    lines = error_lines(FILES)
    assert "reward.holdout_fraction: 0.5 holds out none of 1 prompt: all rows have the same one" in lines[0]
    assert "reward.objectives.safety: all 4 labels are 1" in lines[1]


@pytest.mark.parametrize(
    ("column", "fix"),
    [
        (
            "answer",
            "name it under columns: {response: answer}, beside `file:` in reward.ratings.r, judge.ratings.r",
        ),
        (
            "text",
            "name it under columns: {response: text}, beside `file:` in reward.ratings.r, judge.ratings.r",
        ),
        (
            "xyz",
            "name it under columns: {response: ...}, beside `file:` in reward.ratings.r, judge.ratings.r",
        ),
    ],
)
def test_a_complaint_about_a_file_names_its_sources_once(column: str, fix: str) -> None:
    write("own.jsonl", [{"prompt": f"p{i}", column: "r", "safe": i % 3} for i in range(9)])
    section = {
        "objectives": {"safety": {}},
        "ratings": {"r": {"file": "own.jsonl", "labels": {"safety": "safe"}}},
    }
    other = {"r": section["ratings"]["r"] | {"where": {"safe": [0, 1, 2]}}}
    (line,) = error_lines(FILES | {"reward": section, "judge": section | {"ratings": other}})
    assert line.endswith(f"; fix: {fix}")


@pytest.mark.parametrize(
    ("safe", "ending"),
    [
        ("5 - good", 'fix: map: {"1 - bad": 1, "5 - good": 5}, under reward.ratings.r.labels.safety'),
        ("?!", "under reward.ratings.r.labels.safety"),
    ],
)
def test_a_complaint_about_labels_names_the_key_of_the_objective(safe: str, ending: str) -> None:
    cells = [safe, "1 - bad", safe, "1 - bad"]
    write("own.jsonl", [{"prompt": f"p{i}", "response": "r", "safe": cell} for i, cell in enumerate(cells)])
    source = {"file": "own.jsonl", "labels": {"safety": "safe"}}
    (line,) = error_lines(FILES | {"reward": {"objectives": {"safety": {}}, "ratings": {"r": source}}})
    assert line.endswith(ending)


def test_rows_that_the_chat_template_rejects_are_one_line_with_a_count() -> None:
    tokenizer = tiny_tokenizer()
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    tokenizer.save_pretrained("model")
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    write("train.jsonl", [{"prompt": turns}, {"prompt": "good"}, {"prompt": turns}])
    (line,) = error_lines(FILES)
    assert line.split(": ")[:2] == ["train.jsonl:1", "prompt"]
    assert (
        "the chat template rejects messages of the roles system, user: no system turns "
        "(and 1 more row, to line 3); fix: use roles" in line
    )


def test_a_faulty_template_is_one_line_at_its_model_whatever_the_rows() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}:\n{{ m.content[:20] }}{% endfor %}"
    tokenizer.save_pretrained("model")
    (line,) = error_lines(FILES, error=ConfigError)
    assert line == (
        "r.yaml:1: policy.path: model: the chat template cuts or changes the text of user turns after 20 "
        "characters; fix: correct the tokenizer's chat template "
        "(chat_template.jinja or tokenizer_config.json)"
    )


def test_template_arguments_that_the_template_does_not_read_are_mistakes() -> None:
    for argument in ("enable_thinking", "tokenize"):
        (line,) = error_lines(FILES, f"policy.chat_template_kwargs={{{argument}: false}}", error=ConfigError)
        assert f"policy.chat_template_kwargs.{argument}: " in line
    load_data(resolved(FILES, "policy.chat_template_kwargs={m: 1}"))


def test_control_tokens_in_texts_are_counted_and_rendered_prompts_refused() -> None:
    name = next(iter(load_data(resolved(FILES)).train_prompts))
    write("train.jsonl", [{"prompt": "<u>rendered</s><a>"}])
    with pytest.raises(DataError, match="rendered with a chat template beforehand"):
        load_data(resolved(FILES))
    write("train.jsonl", [{"prompt": "a</s>b"}, {"prompt": "c <u>"}, {"prompt": "good"}])
    note = f"2 rows of {name} contain control tokens of the chat template; they are encoded as plain text"
    assert note in load_data(resolved(FILES)).notes


def test_a_truncated_dialogue_begins_with_a_user_turn() -> None:
    roles = ("system", "user", "assistant", "user", "assistant", "user")
    turns = [{"role": role, "content": f"{i} " + "x" * 20} for i, role in enumerate(roles)]
    write("pairs.jsonl", [{"prompt": turns, "chosen": f"good {i}", "rejected": "bad"} for i in range(40)])
    source = {"file": "pairs.jsonl", "objective": "safety", "overlong": "truncate", "max_length": 62}
    write("others.jsonl", [{"prompt": "other", "chosen": "good", "rejected": "bad"}])
    held = {"o": {"file": "others.jsonl", "objective": "safety"}}
    reward = {"objectives": {"safety": {"loss": "bradley_terry"}}, "pairs": {"p": source}, "test_pairs": held}
    reward_data = load_data(resolved(FILES | {"reward": reward})).reward
    assert reward_data is not None
    assert len(reward_data.train) == 40
    for row in reward_data.train:
        assert [m.content[0] for m in row.prompt.messages] == ["5"]
        assert row.prompt.messages[0].role == "user"


def test_revisions_are_passed_to_every_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def context(path: str, *, revision: str | None = None) -> int:
        asked.append((path, revision))
        return 96

    def tokenizer(path: str, *, revision: str | None = None, chat_template_kwargs: object = None) -> object:
        asked.append((path, revision))
        return tiny_tokenizer()

    def config(path: str, *, revision: str | None = None) -> object:
        asked.append((path, revision))
        return tiny_config("llama", 101, context=96)

    monkeypatch.setattr(data_limits, "stored_context_length", context)
    for module in (data_limits, model_checks, chat_templates):
        monkeypatch.setattr(module, "load_tokenizer", tokenizer)
    for module in (stage, preflight, learning_rates):
        monkeypatch.setattr(module, "load_model_config", config)
    load_data(resolved(FILES, "policy.path=own/model", "policy.revision=v2"))
    assert set(asked) == {("own/model", "v2")}
    asked.clear()
    load_data(resolved(FILES, "reward.init_from=own/body", "reward.revision=v3"))
    assert set(asked) == {("model", None), ("own/body", "v3")}


def judge(*names: str) -> None:
    config = tiny_config("llama", 101, context=96)
    config.id2label = dict(enumerate(names))
    config.save_pretrained("judge")
    tiny_tokenizer().save_pretrained("judge")
    write_zeros("judge", "SEQ_CLS")


def test_a_pretrained_judge_without_any_objective_is_a_mistake() -> None:
    judge("saftey", "kindness")
    (line,) = error_lines(FILES | {"judge": {"path": "judge"}}, error=ConfigError)
    assert line == (
        "r.yaml:1: judge.path: scores none of the objectives; "
        "fix: the model in judge.path has saftey, kindness"
    )


def test_a_pretrained_reward_from_the_hub_must_score_every_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "load_model_config", lambda path, revision: tiny_config("llama", 101))
    monkeypatch.setattr(preflight, "read_objectives", lambda path, revision: ("saftey", "x"))
    for module in (model_checks, chat_templates):
        monkeypatch.setattr(module, "load_tokenizer", lambda path, revision, **_: tiny_tokenizer())
    (line,) = error_lines(FILES | {"reward": {"path": "own/reward"}}, error=ConfigError)
    assert line == (
        'r.yaml:1: objectives.safety: no model provides it; did you mean "saftey"?; '
        "fix: the model in reward.path has saftey, x"
    )


def test_a_critic_needs_a_pretrained_reward_with_the_policys_vocabulary() -> None:
    judge("safety")
    ppo = {"name": "ppo_max", "max_new_tokens": 4}
    ready_made = FILES | {"reward": {"path": "judge"}, "algorithm": ppo}
    get_world().tokenizer().save_pretrained("judge")
    (line,) = error_lines(ready_made, error=ConfigError)
    assert line.startswith("r.yaml:1: reward.path: has another vocabulary than the policy")
    assert line.endswith("fix: write algorithm.critic_init_from: policy")
    load_data(resolved(ready_made, "algorithm.critic_init_from=policy"))
    (Path("judge") / "tokenizer.json").unlink()
    (Path("judge") / "tokenizer_config.json").unlink()
    (line,) = error_lines(ready_made, error=ConfigError)
    assert line.startswith("r.yaml:1: reward.path: ")
    tiny_tokenizer().save_pretrained("judge")
    load_data(resolved(ready_made))


def test_an_unreadable_model_is_reported_at_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "is_reachable", lambda endpoint: False)
    sections = FILES | {"judge": RATED | {"init_from": "own/judge", "ratings": RATED["ratings"]}}
    rate("other.csv", [(f"other {i}", f"reply {i}", i) for i in range(30)])
    sections["judge"] |= {"ratings": {"o": {"file": "other.csv", "labels": {"safety": "safe"}}}}
    lines = error_lines(sections, "policy.path=own/policy", error=ConfigError)
    assert [line.split(": no such folder")[0] for line in lines] == [
        "(override): policy.path: own/policy",
        "r.yaml:1: judge.init_from: own/judge",
    ]
    assert all("; fix: " in line and "./" in line and "hub" in line for line in lines)
    Path("model/model.safetensors").unlink()
    (line,) = error_lines(FILES, error=ConfigError)
    assert line.startswith("r.yaml:1: policy.path: model: ")


def test_names_that_are_not_folders_are_noted_as_hub_names() -> None:
    assert preflight.hub_model_notes(resolved(FILES).config) == []
    assert preflight.hub_model_notes(
        resolved(FILES, "policy.path=own/policy", "reward.init_from=own/body").config
    ) == [
        "policy.path: own/policy is not a local folder: taken as a hub name",
        "reward.init_from: own/body is not a local folder: taken as a hub name",
    ]


def test_a_revision_without_a_model_name_is_a_mistake() -> None:
    (line,) = error_lines(FILES, "reward.revision=v1", error=ConfigError)
    assert "reward.revision: has no effect with init_from: policy" in line
    assert resolved(FILES, "reward={path: own/reward, revision: v1}").config.reward.revision == "v1"


ALL = 'fix: write "all-linear", or a list of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj'


@pytest.mark.parametrize("sections", [WORLD, FILES])
def test_unmatched_adapters_are_reported_together_with_invalid_rows(sections: dict[str, object]) -> None:
    if sections is FILES:
        write("train.jsonl", [{"prompt": "x" * 300}])
    lines = error_lines(
        sections,
        "policy.lora={target_modules: [q_proj, k_prj]}",
        "reward.lora.target_modules=v_proj",
        "judge={init_from: model, objectives: {safety: {}}, lora: {target_modules: [mlp]}, ratings: "
        "{r: {file: rated.csv, where: {safe: ['0', '3', '6', '9', '12']}, labels: {safety: safe}}}}",
        error=ConfigError,
    )
    assert lines[:2] == [
        '(override): policy.lora.target_modules: "k_prj" matches no module of a llama model; '
        f'did you mean "k_proj"?; {ALL}',
        '(override): reward.lora.target_modules: "v_proj" matches no module of a llama model; '
        f'did you mean "[v_proj]"?; {ALL}',
    ]
    assert (
        lines[2]
        == f"(override): judge.lora.target_modules: ('mlp',) matches no layer of a llama model; {ALL}"
    )
    assert [line.split(" tokens")[0] for line in lines[3:]] == (
        ["train.jsonl:1: prompt: 303"] if sections is FILES else []
    )


def test_matching_adapters_are_valid() -> None:
    lora = ("policy.lora={target_modules: [q_proj]}", "reward.lora={target_modules: '.*up_proj'}")
    assert load_data(resolved(FILES, *lora)).train_prompts
    assert load_data(resolved(WORLD, *lora)).train_prompts


def test_a_sampling_weight_that_rounds_to_no_prompt_is_a_mistake() -> None:
    prompts = {"a": {"file": "train.jsonl"}, "b": {"file": "more.jsonl", "sampling_weight": 0.01}}
    write("more.jsonl", [{"prompt": f"more {i}"} for i in range(6)])
    sections = FILES | {"data": FILES["data"] | {"prompts": prompts}}
    (line,) = error_lines(sections)
    assert line == (
        "r.yaml:1: data.prompts.b.sampling_weight: 0.01 of 1.01 in total rounds to 0 of the 10 prompts; "
        "fix: write at least 0.1"
    )
    assert load_data(resolved(sections, "data.prompts.b.sampling_weight=0.1")).train_prompts
    for share in (0, -1.0):
        (line,) = error_lines(sections, f"data.prompts.b.sampling_weight={share}", error=ConfigError)
        assert "data.prompts.b.sampling_weight: " in line


def test_responses_that_leave_no_room_for_a_prompt_are_a_mistake() -> None:
    (line,) = error_lines(FILES, "algorithm.max_new_tokens=96", error=ConfigError)
    assert line.startswith("(override): algorithm.max_new_tokens: 96 tokens leave no room for a prompt")
    (line,) = error_lines(WORLD, "evaluate.max_new_tokens=190")
    assert re.match(r"r\.yaml:1: data\.world: prompt: \d+ tokens, but the limit is 2", line)


def test_the_home_directory_is_expanded_in_every_path(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    run = resolve(load_config("sub/r.yaml", paths))
    assert (run.config.data.root, run.config.run.output_dir) == (str(here), str(here / "out"))
    monkeypatch.chdir(here / "sub")
    assert len(load_data(run).test_prompts) == 3
