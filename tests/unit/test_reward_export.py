"""An exported reward model gives its scores in plain transformers, by its own README."""

import re

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.data.chat import encode_prompt, encode_row
from paretune.data.chat_template import chat_template_of, message_as_dict, set_chat_template_kwargs
from paretune.data.records import Message, Prompt, Sample
from paretune.models.load import as_policy_model
from paretune.reward.checkpoint import reward_model_from_lm
from paretune.reward.export import export_reward_model, standalone_template
from paretune.reward.model import RewardModelScorer
from paretune.reward.pretrained import load_pretrained_reward_scorer
from support.chat_tokenizers import DATED, TEMPLATES, byte_tokenizer
from support.tiny_models import tiny_model

NAMES = ("politeness", "safety", "depth")
SCALE, OFFSET = (2.0, 1.0, 0.5), (3.0, -0.25, 1e3)


def reward_model(template, *, kind="llama", **arguments):
    tokenizer = byte_tokenizer(template)
    tokenizer.eos_token = "<|im_end|>"
    set_chat_template_kwargs(tokenizer, arguments)
    policy = as_policy_model(tiny_model(kind, len(tokenizer), initial=0.3, stop=2, pad=2), tokenizer)
    model = reward_model_from_lm(policy, NAMES, SCALE, OFFSET)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def samples(answers=("At nine.", "é", "a much longer answer with more words")):
    turns = (Message("user", "When do you open?"),)
    return [Sample(prompt=Prompt(messages=turns), response=answer) for answer in answers]


def page_code(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    names = {}
    for block in code:
        exec(compile(block.replace('folder = "."', f"folder = {str(folder)!r}"), "README.md", "exec"), names)
    return names


def conversations(rows):
    return [
        [*({"role": m.role, "content": m.content} for m in row.prompt.messages), answer(row.response)]
        for row in rows
    ]


def answer(text):
    return {"role": "assistant", "content": text}


ARGUED = "{{ '' if note is none else note }}{% if deep %}[deep]{% endif %}" + TEMPLATES["plain"] + " \n"
CASES = {
    **{name: (template, {}) for name, template in TEMPLATES.items()},
    "dated": (DATED, {}),
    "date string": ("{{ date_string }}" + TEMPLATES["plain"], {}),
    "blank lines at both ends": ("\n\n  " + TEMPLATES["plain"] + "\n \n", {}),
    "arguments": (ARGUED, {"deep": True, "note": 'say "hi" 🙂\n'}),
    "argument none": ("{{ 'x' if note is none else 'y' }}" + TEMPLATES["plain"], {"note": None}),
    "argument of parts": (
        "{{ m.a[0] }}{{ m.b is none }}" + TEMPLATES["plain"],
        {"m": {"a": ["é"], "b": None}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_plain_rendering_of_the_exported_template_is_the_row(case):
    source, arguments = CASES[case]
    tokenizer, exported = byte_tokenizer(source), byte_tokenizer(source)
    tokenizer.eos_token = exported.eos_token = "<|im_end|>"
    set_chat_template_kwargs(tokenizer, arguments)
    template = chat_template_of(tokenizer)
    exported.chat_template = standalone_template(template, tokenizer.eos_token_id)
    for row in samples(("At nine.", "é 🙂", " a b ", "")):
        messages = [*row.prompt.messages, Message("assistant", row.response)]
        turns = [message_as_dict(message, as_parts=template.content_as_parts) for message in messages]
        expected = encode_row(tokenizer, row.prompt, row.response, eos_id=tokenizer.eos_token_id).input_ids
        assert exported.apply_chat_template(turns, return_dict=False) == expected
        asked = exported.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
        assert asked == encode_prompt(tokenizer, row.prompt), "the generation prompt stays as it is"


@pytest.mark.parametrize(
    ("kind", "template", "arguments"),
    [("llama", ARGUED, {"deep": True, "note": "é"}), ("gpt2", None, {})],
    ids=["chat template", "no chat template"],
)
def test_page_gives_the_scores_in_plain_transformers_and_as_reward_functions(
    kind, template, arguments, tmp_path, capsys
):
    model = reward_model(template, kind=kind, **arguments)
    expected, source = RewardModelScorer(model)(samples()), model.tokenizer.chat_template
    assert expected.std(0).min() > 0.01, "the scores must differ for this test to mean anything"
    (tmp_path / "rm").mkdir()  # is replaced
    export_reward_model(model, tmp_path / "rm")
    names = page_code(tmp_path / "rm")
    assert torch.allclose(names["scores"](conversations(samples())), expected, atol=1e-5, rtol=1e-6)
    prompts, completions = zip(*((c[:-1], c[-1:]) for c in conversations(samples())), strict=True)
    rewards = torch.tensor([f(prompts, completions, unused=[0]) for f in names["reward_funcs"]])
    assert torch.allclose(rewards.T, expected, atol=1e-5, rtol=1e-6)
    assert [f.__name__ for f in names["reward_funcs"]] == list(NAMES)
    assert all(name in capsys.readouterr().out for name in NAMES[:1])
    config = names["model"].config
    assert config.problem_type == "regression", "vLLM applies no softmax to these"
    assert config.id2label == dict(enumerate(NAMES))
    again = load_pretrained_reward_scorer(str(tmp_path / "rm"), name="rm")
    assert again.names == NAMES
    assert torch.allclose(again(samples()), expected, atol=1e-5, rtol=1e-6)
    assert torch.equal(RewardModelScorer(model)(samples()), expected), "the model in memory stays as it was"
    assert model.tokenizer.chat_template == source


def test_a_template_that_renders_differently_without_paretune_is_refused(tmp_path):
    model = reward_model(TEMPLATES["plain"])
    model.network.config.pad_token_id = model.eos_id
    with pytest.raises(WiringError, match="an answer ends with the padding token"):
        export_reward_model(model, tmp_path / "rm")
    assert not (tmp_path / "rm").exists()
