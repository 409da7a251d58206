"""Twelve signals, each alone as the objective of a short GRPO run, and all of them mixed in one.

    python proofs/signals.py POLICY [STEPS]

Every run trains the policy for a few steps and prints the objective's mean score at each step. The
classifier and the ready-made reward model are random and tiny, and the LLM judge is a stand-in on 127.0.0.1:
what is shown is that the signals arrive, not that they are good.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from paretune.config import load_config  # noqa: E402
from paretune.experiment.pipeline import run_pipeline  # noqa: E402
from support.judge_server import JudgeServer, serve  # noqa: E402
from support.tiny_classifiers import save_classifier  # noqa: E402

FUNCTIONS = """
def brief(completions, **kwargs):
    return [-len(c[0]["content"].split()) / 20 for c in completions]

def contains(completions, answer, **kwargs):
    return [float(a in c[0]["content"].lower()) for a, c in zip(answer, completions)]

def two(completions, **kwargs):
    texts = [c[0]["content"] for c in completions]
    ends = [float(t.rstrip().endswith((".", "!", "?"))) for t in texts]
    return {"asks": [float("?" in t) for t in texts], "ends": ends}

async def later(completions, **kwargs):
    return [float("i" in c[0]["content"].lower().split()) for c in completions]

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return float(ground_truth in solution_str.lower())
"""
PROMPTS = [
    ("How do I make tea?", "water"),
    ("Tell me about your day.", "day"),
    ("What should I cook tonight?", "cook"),
    ("Why is the sky blue?", "sky"),
    ("Can you help me with my homework?", "help"),
    ("I feel sad.", "sorry"),
    ("How far is the moon?", "moon"),
    ("Which book should I read?", "book"),
]
SIGNALS: dict[str, dict[str, Any]] = {
    "function": {"brief": {"type": "python", "function": "functions.py:brief"}},
    "verifiable": {"contains": {"type": "python", "function": "functions.py:contains"}},
    "several": {"two": {"type": "python", "function": "functions.py:two", "objectives": ["asks", "ends"]}},
    "async": {"later": {"type": "python", "function": "functions.py:later"}},
    "verl": {"truth": {"type": "python", "function": "functions.py:compute_score", "signature": "verl"}},
    "length": {"length": {"type": "rule", "rule": "length", "target": 8}},
    "regex": {"comma": {"type": "rule", "rule": "regex", "pattern": ","}},
    "phrases": {"manners": {"type": "rule", "rule": "phrases", "required": ["you"], "forbidden": ["no"]}},
    "repetition": {"variety": {"type": "rule", "rule": "repetition", "n": 1}},
    "classifier": {
        "calm": {"type": "classifier", "path": "classifier", "label": "toxic", "output": "log_odds"}
    },
    "reward_model": {
        "ready": {"type": "reward_model", "path": "ready", "outputs": {"helpful": 0, "honest": 1}}
    },
    "llm_judge": {
        "judge": {"type": "llm_judge", "base_url": "URL", "model": "judge", "rubric": "rubric.yaml"},
    },
}
RUBRIC = 'criteria: {polite: {text: "Is it polite?", levels: {rude: 0, neutral: 1, polite: 2}}}\n'


def objectives_of(scorers: dict[str, dict[str, Any]]) -> list[str]:
    """The objectives that the scorers score."""
    names: list[str] = []
    for name, section in scorers.items():
        if section["type"] == "llm_judge":
            names.append("polite")
        else:
            names += section.get("objectives") or list(section.get("outputs", ())) or [name]
    return names


def recipe(name: str, scorers: dict[str, Any], policy: str, steps: int, *, fitted: bool) -> dict[str, Any]:
    """A recipe whose objectives are those of the scorers, and of a fitted head."""
    objectives: dict[str, Any] = {objective: {} for objective in objectives_of(scorers)}
    values: dict[str, Any] = {
        "name": name,
        "data": {"prompts": {"main": {"file": "p.jsonl"}}, "test_prompts": {"main": {"file": "t.jsonl"}}},
        "policy": {"path": policy},
        "scorers": scorers,
        "objectives": objectives,
        "algorithm": {"name": "grpo", "num_generations": 4, "max_new_tokens": 24},
        "training": {"prompts_per_step": 4, "learning_rate": 3e-4},
        "run": {"max_steps": steps},
        "evaluate": {"bootstrap_samples": 200},
    }
    if fitted:
        objectives["rated"] = {}
        values["reward"] = {
            "objectives": {"rated": {}},
            "ratings": {"raters": {"file": "ratings.jsonl", "labels": {"rated": "score"}}},
            "allow_weak_heads": True,
            "training": {"num_train_epochs": 1},
        }
    return values


def rows(path: Path, values: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def main() -> None:
    """Run all, and print a table."""
    policy, steps = str(Path(sys.argv[1]).resolve()), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as folder, serve(server := JudgeServer()):
        os.chdir(folder)
        root = Path()
        (root / "functions.py").write_text(FUNCTIONS)
        (root / "rubric.yaml").write_text(RUBRIC)
        save_classifier(root / "classifier", "bert")
        more = {"problem_type": "regression", "max_position_embeddings": 512}
        save_classifier(root / "ready", "llama", ("LABEL_0", "LABEL_1"), **more)
        keys = ("answer", "ground_truth")
        rows(
            root / "p.jsonl",
            [{"prompt": p, **dict.fromkeys(keys, a), "data_source": "x"} for p, a in PROMPTS],
        )
        rows(root / "t.jsonl", [{"prompt": f"And now: {p}", **dict.fromkeys(keys, a)} for p, a in PROMPTS])
        texts = ("Yes, with pleasure.", "No.", "I think so, but look it up.", "What?")
        rows(
            root / "ratings.jsonl",
            [
                {"prompt": f"{p} ({i})", "response": t, "score": len(t) / 30}
                for i, t in enumerate(texts)
                for p, _ in PROMPTS
            ],
        )
        SIGNALS["llm_judge"]["judge"]["base_url"] = server.url
        mixed = {name: section for scorers in SIGNALS.values() for name, section in scorers.items()}
        cases = [(name, scorers, False) for name, scorers in SIGNALS.items()]
        cases += [("fitted", {}, True), ("mixed", mixed, True)]
        for name, scorers, fitted in cases:
            start = time.perf_counter()
            path = root / f"{name}.yaml"
            path.write_text(yaml.safe_dump(recipe(name, scorers, policy, steps, fitted=fitted)))
            run_dir = run_pipeline(load_config(path), until="align")
            lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
            lines = [line for line in lines if line["stage"] == "align"]
            print(f"{name} ({time.perf_counter() - start:.0f} s)", file=sys.stderr)
            for objective in [*objectives_of(scorers), *(["rated"] if fitted else [])]:
                curve = [line.get(f"score/{objective}/mean") for line in lines]
                shown = " ".join("–" if value is None else f"{value:+.2f}" for value in curve)
                print(f"| {name} | {objective} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
