"""Commands on single models: sample, score, rate, evaluate, export."""

import json
import shutil
from types import SimpleNamespace

import pyarrow.csv
import pyarrow.parquet
import pytest
import yaml

from paretune.api.exports import push_to_hub
from paretune.api.loading import LoadingContext
from paretune.api.policies import load_policy
from paretune.api.recipe_parts import scorers_of
from paretune.api.reward_models import fit_reward_model
from paretune.cli import main
from paretune.core.errors import ConfigError, ResourceError, WiringError
from paretune.models.save import parameter_hash, save_model
from support.fake_run import make_run
from support.judge_server import JudgeServer, serve
from support.tiny_models import tiny_model, tiny_tokenizer

RUBRIC = {"criteria": {"polite": {"text": "Is it polite?", "levels": {"rude": 0, "polite": 1}}}}
ROWS = [{"id": f"r{i}", "prompt": f"item {i}", "response": "x" * (i % 4 + 1)} for i in range(12)]


def called(capsys, *arguments):
    """Exit code, standard output and errors of a command."""
    with pytest.raises(SystemExit) as end:
        main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with two policies, a reward model and a file of rows."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), tiny_tokenizer()
    for seed, name in enumerate(("a", "b")):
        model = tiny_model("llama", len(tokenizer), seed=seed, width=16, layers=1, heads=2)
        save_model(model, tokenizer, folder / name)
    rated = [{**row, "scores": {"long": len(row["response"])}} for row in ROWS * 3]
    rated = [{**row, "prompt": f"question {i}"} for i, row in enumerate(rated)]
    fit_reward_model(rated, init_from=str(folder / "a"), holdout_fraction=0.3).save(folder / "reward")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "rubric.yaml").write_text(yaml.safe_dump(RUBRIC))
    return folder


def recipe(models, folder, **sections):
    """A recipe that names its scorers and judges."""
    path = folder / "recipe.yaml"
    values = {
        "data": {"root": str(models), "holdout_fraction": 0.4, "prompts": {"main": {"file": "rows.jsonl"}}},
        "policy": {"path": str(models / "a")},
        "algorithm": {"name": "grpo", "max_new_tokens": 8},
        "scorers": {"brief": {"type": "rule", "rule": "length", "max": 2, "unit": "characters"}},
        "objectives": {"brief": {"weight": 1.0}},
        "judges": {"short": {"type": "rule", "rule": "length", "target": 1, "objective": "brief"}},
        "evaluate": {"max_new_tokens": 4, "bootstrap_samples": 100},
        "run": {"output_dir": str(folder / "run")},
        **sections,
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_sample(models, capsys, tmp_path):
    length = ("--max-new-tokens", 3)
    code, out, _ = called(capsys, "sample", models / "a", "hello", "good\nmorning", *length)
    assert code == 0
    assert out.startswith("> hello\n")
    assert "> good\n> morning\n" in out
    file = tmp_path / "responses.jsonl"
    options = ("--prompts", models / "rows.jsonl", "--num-generations", 2, "--output", file)
    assert called(capsys, "sample", models / "a", *options, *length)[1] == f"24 responses: {file}\n"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows[0]["id"] == "r0"
    prompts = [{"prompt": "6 x 7?", "answer": 42, "category": "sums"}, {"prompt": "Now?", "at": [1, None]}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    options = ("--prompts", tmp_path / "p.jsonl", "--output", tmp_path / "kept.jsonl")
    assert called(capsys, "sample", models / "a", *options, *length)[0] == 0
    first, second = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert (first["answer"], first["category"], second["at"]) == (42, "sums", [1, None])
    assert called(capsys, "score", models / "reward", file)[0] == 0, "the responses can be scored"


def test_score_by_a_reward_model(models, capsys, tmp_path):
    for name, read in (("s.parquet", pyarrow.parquet.read_table), ("s.csv", pyarrow.csv.read_csv)):
        options = ("--output", tmp_path / name)
        code, out, _ = called(capsys, "score", models / "reward", models / "rows.jsonl", *options)
        assert code == 0
        assert out.splitlines()[0].split() == ["objective", "mean", "min", "max", "scored"]
        assert out.splitlines()[1].split()[0] == "long"
        assert out.splitlines()[1].endswith("12 of 12")
        table = read(tmp_path / name)
        assert table.column_names == ["id", "response", "long"]
        assert table["id"].to_pylist() == [row["id"] for row in ROWS]
    lines = ("--output", tmp_path / "s.jsonl")
    assert called(capsys, "score", models / "reward", models / "rows.jsonl", *lines)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    assert [row["long"] for row in rows] == pytest.approx(table["long"].to_pylist())


def test_score_says_what_a_recipe_or_a_classifier_is(models, capsys, tmp_path):
    path = recipe(models, tmp_path)
    code, _, err = called(capsys, "score", path, models / "rows.jsonl")
    listed = f"fix: one of {path}:scorers.brief, {path}:judges.short"
    assert (code, err) == (2, f"{path}: is a recipe, not a scorer; {listed}\n")
    code, _, err = called(capsys, "score", f"{path}:brief", models / "rows.jsonl")
    assert code == 2
    assert "brief: there is no such scorer; " in err
    assert called(capsys, "score", "none.yaml", models / "rows.jsonl")[2].startswith(
        "none.yaml:1: no such rec"
    )
    folder = tmp_path / "no-template"
    shutil.copytree(models / "reward", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"paretune": None}))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    code, _, err = called(capsys, "score", folder, models / "rows.jsonl")
    assert code == 2
    assert err.startswith(f"{folder}: ")
    assert "; fix: put it into a recipe as a scorer of type: classifier with path and label, and sc" in err


@pytest.mark.parametrize(
    ("raised", "printed"),
    [
        (
            "type: m chooses one of 2 classes; fix: type: classifier",
            "classes; fix: .* of type: classifier with",
        ),
        (
            "outputs: m: the label; fix: name",
            "m: the label; fix: put .* type: reward_model with path and out",
        ),
        ("m: other; fix: this", "m: other; fix: this$"),
    ],
)
def test_score_names_no_key_that_nobody_typed(raised, printed, monkeypatch):
    def load(path, device):
        raise WiringError(raised)

    monkeypatch.setattr("paretune.api.recipe_parts.load_reward_model", load)
    with pytest.raises(WiringError, match=f"^m.* ?{printed}|^{printed}"):
        scorers_of("m", LoadingContext())


def test_score_by_a_section_of_a_recipe(models, capsys, tmp_path):
    path = recipe(models, tmp_path)
    code, out, err = called(capsys, "score", f"{path}:scorers.brief", models / "rows.jsonl")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split()[:2] == ["brief", "0.625"]
    code, _, err = called(capsys, "score", f"{path}:scorers.breif", models / "rows.jsonl")
    assert code == 2
    assert 'did you mean "scorers.brief"?; fix: the recipe has scorers.brief, judges.short' in err


def test_score_by_a_run_has_the_names_of_its_objectives(models, capsys, tmp_path):
    rule = {"type": "rule", "rule": "length", "max": 2, "unit": "characters", "objective": "chars"}
    path = recipe(
        models,
        tmp_path,
        scorers={"length": rule},
        reward={"path": str(models / "reward")},
        objectives={"brief": {"weight": 1.0, "scorer": "length"}, "long": {"weight": 1.0}},
    )
    folder = tmp_path / "run" / "config"
    folder.mkdir(parents=True)
    path.rename(folder / "resolved.yaml")
    code, out, err = called(capsys, "score", tmp_path / "run", models / "rows.jsonl")
    assert err == ""
    assert code == 0
    assert sorted(line.split()[0] for line in out.splitlines()[1:]) == ["brief", "long"]


def test_evaluate_by_the_judges_of_a_recipe(models, capsys, tmp_path):
    options = ("--judges", recipe(models, tmp_path), "--prompts", models / "rows.jsonl")
    output = tmp_path / "evaluation"
    code, out, err = called(
        capsys, "evaluate", models / "a", models / "b", *options, "--output", output, "--device", "cpu"
    )
    assert (code, err) == (0, "")
    assert out.startswith("objective")
    results = json.loads((output / "eval.json").read_text())
    assert results["num_prompts"] == 12
    assert results["objectives"]["brief"]["judge"] == "short: the rule length"
    page = (output / "report.html").read_text()
    assert out.endswith(f"report: {output / 'report.html'}\n")
    assert f"before {models / 'a'}" in page
    for absent in (
        "eval/final",
        "<h2>Training</h2>",
        "<h2>Reward model</h2>",
        "paretune run",
        "judge:</code>",
    ):
        assert absent not in page
    for present in ("<h2>Before and after</h2>", "<h2>Samples</h2>", "brief"):
        assert present in page
    code, _, err = called(capsys, "evaluate", models / "a", models / "b", *options, "--output", output)
    assert code == 2
    assert "exists already; fix" in err


def test_rate_by_a_judge_of_a_recipe(models, capsys, tmp_path):
    with serve(JudgeServer()) as server:
        judge = {"type": "llm_judge", "base_url": server.url, "model": "judge"}
        judges = {"strict": {**judge, "rubric": str(models / "rubric.yaml")}}
        path = recipe(models, tmp_path, judges=judges)
        output = tmp_path / "ratings.jsonl"
        arguments = ("rate", path, models / "rows.jsonl", "--output", output, "--repeats", 2)
        code, out, err = called(capsys, *arguments)
        assert (code, err) == (0, "")
        assert out.splitlines()[0].split()[:3] == ["objective", "mean", "rated"]
        assert "12 of 12" in out
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert len(rows) == 12
        assert len(rows[0]["scores"]["polite"]) == 2
        output.unlink()
        asked = len(server.bodies)
        assert called(capsys, *arguments)[0] == 0
        assert len(server.bodies) <= asked + 1, "only the trial is asked again"
    code, _, err = called(
        capsys, "rate", recipe(models, tmp_path), models / "rows.jsonl", "--output", "x.jsonl"
    )
    assert code == 2
    assert "no scorer or judge of type llm_judge; fix" in err


BAD = {
    "no prompt": (["sample", "a"], "no prompt; fix"),
    "prompts twice": (["sample", "a", "hi", "--prompts", "rows.jsonl"], "prompts are given twice; fix"),
    "no such model": (["sample", "./none", "hi"], "./none: no such folder; fix"),
    "a file without responses": (["score", "reward", "prompts.jsonl"], "prompts.jsonl:1: response"),
    "an empty file": (["score", "reward", "empty.jsonl"], "empty.jsonl: there are no rows; fix"),
    "no such file": (["score", "reward", "row.jsonl"], 'did you mean "rows.jsonl"?'),
    "a policy as reward model": (["score", "./a", "rows.jsonl"], "a: "),
    "a wrong suffix": (["score", "reward", "rows.jsonl", "--output", "s.txt"], "s.txt: unknown format; fix"),
    "an existing file": (
        ["score", "reward", "rows.jsonl", "--output", "old.csv"],
        "old.csv: exists already; fix",
    ),
    "no run": (["export", "a"], "a: holds no run; fix"),
    "no hub name": (["export", "a", "--push", "name"], "name: is no name on the hub; fix: write OWNER/NAME"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_with_a_fix(name, models, capsys, monkeypatch):
    monkeypatch.chdir(models)
    (models / "prompts.jsonl").write_text('{"prompt": "hi"}\n')
    (models / "empty.jsonl").write_text("")
    (models / "old.csv").write_text("mine")
    arguments, message = BAD[name]
    code, _, err = called(capsys, *arguments)
    assert code == 2
    assert message in err
    assert "fix: " in err
    assert err.count("\n") == 1
    assert (models / "old.csv").read_text() == "mine"
    assert not (models / "s.txt").exists()


@pytest.fixture
def run_dir(models, tmp_path):
    """A run folder with a model, as a finished run leaves it."""
    folder = make_run(tmp_path / "run", steps=2)
    policy = load_policy(models / "a", device="cpu")
    save_model(policy.model, policy.tokenizer, folder / "final")
    return folder


def test_export_of_a_policy(run_dir, capsys):
    code, out, _ = called(capsys, "export", run_dir)
    folder = run_dir / "export" / "policy"
    assert code == 0
    assert "model.safetensors" in out
    assert str(folder) in out
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers"
    assert "base_model" not in front, "the built-in world is no model on the hub"
    assert "| politeness | " in card
    assert "the ground truth" in card
    assert "## Limits" in card
    assert "fix:" not in card
    assert "This model is a policy of the built-in world" in card
    assert "name: demo" in card
    assert parameter_hash(load_policy(folder).model) == parameter_hash(load_policy(run_dir).model)
    assert not list(folder.parent.glob(".*")), "nothing half-written is left"
    code, _, err = called(capsys, "export", run_dir)
    assert code == 2
    assert "exists already; fix" in err


@pytest.mark.parametrize(("kind", "message"), [("adapter", "not an adapter"), ("reward", "no reward model")])
def test_export_of_what_a_run_does_not_have(kind, message, run_dir, capsys):
    code, _, err = called(capsys, "export", run_dir, "--what", kind)
    assert code == 2
    assert message in err
    assert "fix: " in err
    assert not (run_dir / "export").exists()


def test_export_of_a_reward_model(models, run_dir):
    import shutil

    import paretune as pt

    shutil.copytree(models / "reward", run_dir / "reward" / "model")
    folder = pt.export(run_dir, model="reward")
    scores, expected = (pt.load_reward_model(path).score(ROWS) for path in (folder, models / "reward"))
    assert scores["long"].to_pylist() == pytest.approx(expected["long"].to_pylist(), abs=1e-5)


def test_push_shows_the_files_and_asks(run_dir, capsys, monkeypatch):
    uploads = []
    monkeypatch.setattr(
        "paretune.api.exports.push_to_hub", lambda folder, name: uploads.append(name) or "address"
    )
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("typer.confirm", lambda question: False)
    code, out, _ = called(capsys, "export", run_dir, "--push", "me/model")
    assert code == 0
    assert "README.md" in out
    assert out.endswith("nothing was uploaded\n")
    options = ("--output", run_dir / "again", "--push", "me/model", "--yes")
    assert called(capsys, "export", run_dir, *options)[1].endswith("uploaded: address\n")
    assert uploads == ["me/model"]


def test_push_creates_a_private_repository(tmp_path):
    calls = []
    client = SimpleNamespace(
        create_repo=lambda **options: calls.append(options),
        upload_folder=lambda **options: calls.append(options),
    )
    assert push_to_hub(tmp_path, "me/model", make_client=lambda: client).endswith("/me/model")
    assert calls[0]["private"]
    assert calls[1]["folder_path"] == str(tmp_path)


def test_failed_push_is_one_line(tmp_path):
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    def failing(error):
        def create_repo(**_):
            raise error

        return lambda: SimpleNamespace(create_repo=create_repo)

    def refused(status):
        return HfHubHTTPError("no", response=SimpleNamespace(status_code=status, headers={}, request=None))

    for error, kind, message in (
        (LocalTokenNotFoundError("no token"), ConfigError, "no access token.*fix: hf auth login"),
        (refused(403), ConfigError, "refuses the upload"),
        (refused(500), ResourceError, "error 500"),
        (OSError("reset"), ResourceError, "the upload failed .reset.; fix"),
    ):
        with pytest.raises(kind, match=message):
            push_to_hub(tmp_path, "me/model", make_client=failing(error))
