"""Scorers that callers wrote: what fails is NaN with a reason, and stops what shares too much of it."""

import math

import pytest
import torch

import paretune as pt
from paretune.core.errors import ConfigError, ScoringError, WiringError
from paretune.models.load import as_policy_model
from support.tiny_models import tiny_model, tiny_tokenizer

ROWS = [{"prompt": f"question {i}", "response": "yes"} for i in range(10)]
PROMPTS = [f"Question {i}" for i in range(4)]


def policy(seed=0):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", len(tokenizer), seed=seed, width=16, layers=1, heads=2)
    return as_policy_model(model, tokenizer)


def own_scorer(call, names=("x",), **attributes):
    def score(_, samples):
        return call(samples)

    return type("Own", (), {"__call__": score, "names": names, **attributes})()


def raising(samples):
    raise KeyError("label")


def exits(samples):
    raise SystemExit("done")


BROKEN = {
    "raises": (raising, "KeyError: 'label' .test_api_checked_scorers.py"),
    "exits": (exits, "SystemExit"),
    "None": (lambda samples: None, "returned None; expected a tensor of shape .10, 1"),
    "a list": (lambda samples: [1.0] * len(samples), "returned a value of type list; expected a tensor"),
    "an array": (lambda samples: torch.zeros(len(samples), 1).numpy(), "type ndarray; expected a tensor"),
    "too few": (lambda samples: torch.zeros(3, 1), r"shape \[3, 1\]; expected"),
    "flat": (lambda samples: torch.zeros(len(samples)), r"shape \[10\]; expected"),
    "another column": (lambda samples: torch.zeros(len(samples), 2), r"shape \[10, 2\]; expected"),
    "complex": (lambda samples: torch.zeros(len(samples), 1, dtype=torch.complex64), "complex numbers"),
    "NaN": (lambda samples: torch.full((len(samples), 1), math.nan), "NaN for every response"),
    "infinite": (lambda samples: torch.full((len(samples), 1), -math.inf), "an infinite score"),
    "beyond 32 bits": (lambda s: torch.full((len(s), 1), 1e300, dtype=torch.float64), "an infinite score"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_mistakes_are_counted_and_stop(name):
    call, reason = BROKEN[name]
    with pytest.raises(ScoringError, match=f"x did not score 10 of 10 responses .*{reason}"):
        pt.score(own_scorer(call), ROWS)
    lenient = own_scorer(call, max_failure_rate=1.0)
    assert pt.score(lenient, ROWS)["x"].null_count == 10


def test_some_scores_are_missing_and_the_others_count():
    def some(samples):
        return torch.tensor([[1.0] if i % 2 else [math.nan] for i in range(len(samples))])

    assert pt.score(own_scorer(some), ROWS)["x"].to_pylist() == [None, 1.0] * 5

    def one_infinite(samples):
        return torch.tensor([[math.inf], *[[2.0]] * (len(samples) - 1)])

    assert pt.score(own_scorer(one_infinite), ROWS)["x"].to_pylist() == [None] + [2.0] * 9
    whole = pt.score(own_scorer(lambda samples: torch.ones(len(samples), 1, dtype=torch.bool)), ROWS)
    assert whole["x"].to_pylist() == [1.0] * 10


def test_errors_of_paretune_pass():
    def refuses(samples):
        raise WiringError("no reference; fix: add one")

    with pytest.raises(WiringError, match="no reference; fix"):
        pt.score(own_scorer(refuses), ROWS)


@pytest.mark.parametrize("judge", [own_scorer(raising), pt.Judge(name="j", scorer=own_scorer(raising))])
def test_judges_have_the_same_rules(judge):
    with pytest.raises(ScoringError, match=r"did not score 4 of 4 responses .*KeyError"):
        pt.evaluate(policy(0), policy(1), judges=judge, prompts=PROMPTS, max_new_tokens=2)


@pytest.mark.parametrize("call", [raising, BROKEN["NaN"][0]])
def test_alignment_has_the_same_rules(call, tmp_path):
    with pytest.raises(ScoringError, match=r"x did not score 8 of 8 responses"):
        pt.align(
            policy(),
            scorers=own_scorer(call),
            prompts=PROMPTS,
            output_dir=tmp_path / "run",
            algorithm=pt.algorithms.grpo({"x": 1.0}, num_generations=2, max_new_tokens=2),
            prompts_per_step=4,
            max_steps=1,
        )


class Secret:
    @property
    def names(self):
        raise KeyError("names")

    def __call__(self, samples):
        return torch.zeros(len(samples), 1)


REFUSED = {
    "one string": (lambda: own_scorer(raising, "ab"), "names is 'ab', not a tuple"),
    "a number": (lambda: own_scorer(raising, 3), "names is 3, not a tuple"),
    "no names": (lambda: own_scorer(raising, ()), "not a tuple"),
    "a name that is none": (lambda: own_scorer(raising, ("a", None)), "not a tuple"),
    "twice": (lambda: own_scorer(raising, ("a", "a")), "the same name twice: a, a"),
    "names that fail": (Secret, "names cannot be read .KeyError"),
    "a class": (lambda: type(own_scorer(raising)), "is a class; fix: pass an object, Own"),
    "a rate": (lambda: own_scorer(raising, max_failure_rate="20 %"), "max_failure_rate is '20 %'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_no_scorer_is_told_at_the_door(name):
    make, message = REFUSED[name]
    with pytest.raises(WiringError, match=f"{message}.*") as caught:
        pt.evaluate(policy(0), policy(1), judges=[make()], prompts=PROMPTS, max_new_tokens=2)
    assert "; fix: " in str(caught.value)


def test_nameless_functions_need_a_name():
    from functools import partial

    def long(completions, least, **columns):
        return [float(len(each[0]["content"]) >= least) for each in completions]

    function = partial(long, least=3)
    with pytest.raises(ConfigError, match="a partial has no name; fix: name its objective"):
        pt.score(function, ROWS)
    assert pt.score({"long": function}, ROWS)["long"].to_pylist() == [1.0] * 10
    named = pt.scorers.python_scorer(function, name="least")
    assert pt.score(named, ROWS).column_names == ["least"]
