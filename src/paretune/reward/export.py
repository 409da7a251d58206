"""Export of a fitted reward model for other programs: plain transformers, TRL and vLLM.

The saved model of a run is a plain sequence classifier already. What others lack is how a conversation
becomes its row: the end of the row, the arguments of the chat template and the date. All of it goes into the
exported chat template, so that its plain rendering is the row.

The offsets cannot go into the weights. The heads of causal classifiers have no bias in transformers and in
vLLM, and behind an RMSNorm no direction of the hidden states is constant. They stay in config.json.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

from paretune.core.errors import WiringError
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat import encode_row
from paretune.data.chat_template import (
    CHAT_TEMPLATE_KWARGS_KEY,
    ChatTemplate,
    chat_template_of,
    message_as_dict,
)
from paretune.data.records import Message, Prompt
from paretune.data.template_sandbox import FIXED_DATE
from paretune.models.lora import unwrap_model_for_forward
from paretune.reward.checkpoint import save_reward_model
from paretune.reward.model import RewardModel

PAGE_NAME = "README.md"
_PROBE = (Message("user", "When do you open?"), Message("assistant", "At nine."))


def export_reward_model(model: RewardModel, folder: Path) -> None:
    """Write a reward model as a sequence classifier with one output per objective, and a page on its use.

    Its logits are labels less a constant per objective, `paretune.offset` in config.json, but those of an
    ordinal head, whose latent variable they are. An adapter is merged.

    Args:
        model: A fitted reward model; it is not changed.
        folder: Is replaced if it exists.

    Raises:
        WiringError: The chat template cannot be written so that its plain rendering is the row of a response,
            or the scores of a head cannot be had from its logits.
    """
    expressions = _score_expressions(model)
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.padding_side = "right"
    template = chat_template_of(model.tokenizer)
    if template.source is not None:
        tokenizer.chat_template = standalone_template(template, model.eos_id)
        # They are part of the template now.
        tokenizer.init_kwargs.pop(CHAT_TEMPLATE_KWARGS_KEY, None)
        _check_rendering(model, tokenizer)
    exported = RewardModel(
        model.network,
        tokenizer,
        eos_id=model.eos_id,
        scale=model.scale,
        offset=model.offset,
        kinds=dict(zip(model.objectives, model.kinds, strict=True)),
        provenance=model.provenance,
    )
    exported.parameter_weights = model.parameter_weights
    save_reward_model(exported, folder)
    page = _page(exported, expressions, has_template=template.source is not None)
    (folder / PAGE_NAME).write_text(page, encoding="utf-8")


def _score_expressions(model: RewardModel) -> dict[str, str]:
    """Objective -> score as an expression of the logit, of the heads where it is not linear.

    Raises:
        WiringError: A head has none.
    """
    expressions = {}
    for k, (name, kind) in enumerate(zip(model.objectives, model.kinds, strict=True)):
        if kind.metadata(model.head_parameters(k).detach().cpu()) is not None:
            expressions[name] = kind.score_expression
            if not kind.score_expression:
                raise WiringError(
                    f'the reward model cannot be exported: "{name}" is a head of the kind {kind.name}, whose '
                    "logits are no scores elsewhere; fix: score with paretune, or give the kind a "
                    "score_expression"
                )
    return expressions


def standalone_template(template: ChatTemplate, eos_id: int) -> str:
    """The source of a chat template whose plain rendering of an answered conversation is its row.

    Differs from the original: its arguments and the date are fixed, and nothing follows the token that ends
    the answer, where the heads read.
    """
    assert template.source is not None
    turns, source = template.turns, template.source.removesuffix("\n")
    end = turns.end_token or str(template.tokenizer.convert_ids_to_tokens(eos_id))
    variables = {"date_string": FIXED_DATE} if "date_string" in source else {}
    variables |= template.arguments
    head = "".join(f"{{%- set {name} = {_literal(value)} -%}}" for name, value in variables.items())
    if "strftime_now" in source:
        head += "{%- macro strftime_now(format) -%}" + FIXED_DATE + "{%- endmacro -%}"
    # The empty strings keep blanks at the ends of the source, which the tags around it would remove.
    body = "{%- set rendering -%}{{ '' }}" + source + "{{ '' }}{%- endset -%}"
    answered = "messages and messages[-1]['role'] == 'assistant' and not add_generation_prompt"
    text = "rendering"
    if turns.answer_end:
        without_end, has_end = f"rendering[:-{len(turns.answer_end)}]", _literal(turns.answer_end)
        text = f"({without_end} if rendering.endswith({has_end}) else rendering)"
    tail = f"{{{{ {text} + {_literal(end)} if {answered} else rendering }}}}"
    return head + body + tail


def _literal(value: object) -> str:
    """A JSON value as a literal of Jinja."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    # The escapes of JSON beyond the first plane of Unicode would be read as two characters.
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _check_rendering(model: RewardModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare the plain rendering of a conversation with its row."""
    question, answer = _PROBE
    row = encode_row(model.tokenizer, Prompt(messages=(question,)), answer.content, eos_id=model.eos_id)
    as_parts = chat_template_of(model.tokenizer).content_as_parts
    messages = [message_as_dict(message, as_parts=as_parts) for message in _PROBE]
    plain = tokenizer.apply_chat_template(messages, return_dict=False)
    with unwrap_model_for_forward(model.network) as base:
        pad_id = base.config.get_text_config().pad_token_id
    problem = fix = ""
    if list(plain) != row.input_ids:
        problem = "its plain rendering of the chat template is not the row that the heads were fitted on"
        fix = "score with paretune, or fit the model with a simpler chat template"
    elif row.input_ids[-1] == pad_id:
        problem = f"an answer ends with the padding token ({pad_id}), which transformers does not read"
        fix = "fit it from a model with another padding token"
    if problem:
        raise WiringError(f"the reward model cannot be exported: {problem}; fix: {fix}")


_PAGE = """---
library_name: transformers
pipeline_tag: text-classification
---

# Reward model

Scores an answer in a conversation: one output per objective, in the units of the labels it was fitted on.

| output | objective | offset |
| --- | --- | --- |
{table}

`score = logit + offset`. Heads of causal classifiers have no bias, so the offsets are in `config.json`
(`paretune.offset`). They do not change comparisons of answers.
{latent}
## Input

{input_format}

## Transformers

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # this folder
model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
offset = torch.tensor(model.config.paretune["offset"])


@torch.no_grad()
def scores(conversations):
{encode}
    {result}


question = {{"role": "user", "content": "When do you open?"}}
answer = {{"role": "assistant", "content": "At nine."}}
print(model.config.id2label, scores([[question, answer]]))
```

## TRL

A model given as `reward_funcs` counts with its first output alone. All outputs, as one reward function each,
with `scores` from above:

```python
def reward_function(index):
    def reward(prompts, completions, **columns):
        rows = [prompt + completion for prompt, completion in zip(prompts, completions)]
        return scores(rows)[:, index].tolist()

    reward.__name__ = model.config.id2label[index]
    return reward


reward_funcs = [reward_function(i) for i in range(model.config.num_labels)]
```

## vLLM

```sh
vllm serve . --runner pooling --dtype float32
curl http://localhost:8000/classify -H 'Content-Type: application/json' -d '{request}'
```

`probs` in the reply are the logits, since `problem_type` is `regression`; {finish}.
"""
_LATENT = """
**The logits of {names} are not in the units of the labels.** They order answers as the scores do. vLLM, and
TRL given the model itself, return these logits; `scores` below converts them.
"""
_LINEAR_RESULT = "return model(**inputs).logits + offset"
_RESULT = """\
logits = model(**inputs).logits
    columns, scale = list((logits + offset).unbind(1)), model.config.paretune["scale"]
{columns}
    return torch.stack(columns, 1)"""
_COLUMN = """\
    saved = model.config.paretune["heads"]["{name}"].items()
    head = {{key: torch.tensor(value) if isinstance(value, list) else value for key, value in saved}}
    logit = logits[:, {k}] / scale[{k}]
    columns[{k}] = ({expression}) * scale[{k}] + offset[{k}]"""
_TEMPLATE_FORMAT = """\
The conversation up to and including the answer, rendered by the chat template of this folder, without further
special tokens. The template writes nothing behind the token that ends the answer: there the heads read.
Padding is on the right. A conversation longer than the context has no score: do not truncate it."""
_TEXT_FORMAT = """\
{first} the token ids of the prompt's messages, one per line; then those of the answer, encoded on its own;
then the token {eos}. Padding is on the right. A text longer than the context has no score: do not truncate
it."""
_ENCODE_CONVERSATION = """    inputs = tokenizer.apply_chat_template(
        conversations, padding=True, return_dict=True, return_tensors="pt"
    )"""
_ENCODE_TEXT = """    rows = []
    for *prompt, answer in conversations:
        text = "\\n".join(message["content"] for message in prompt)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        ids = [*{bos}, *ids, *tokenizer(answer["content"], add_special_tokens=False).input_ids]
        rows.append([*ids, {eos}])
    inputs = tokenizer.pad({{"input_ids": rows}}, return_tensors="pt")"""


def _page(model: RewardModel, expressions: Mapping[str, str], *, has_template: bool) -> str:
    """The README of an exported model."""
    rows = zip(model.objectives, model.offset, strict=True)
    table = "\n".join(f"| {i} | {name} | {offset:.9g} |" for i, (name, offset) in enumerate(rows))
    if has_template:
        input_format = _TEMPLATE_FORMAT
        request = json.dumps(
            {"model": ".", "messages": [{"role": m.role, "content": m.content} for m in _PROBE]}
        )
        encode = _ENCODE_CONVERSATION
    else:
        bos_id = model.tokenizer.bos_token_id
        bos = [] if bos_id is None else [bos_id]
        first = f"Without a chat template: the token {bos_id}, then" if bos else "Without a chat template:"
        input_format = _TEXT_FORMAT.format(first=first, eos=model.eos_id)
        request = json.dumps({"model": ".", "input": [[*bos, 5, 6, 7, model.eos_id]]})
        encode = _ENCODE_TEXT.format(bos=bos, eos=model.eos_id)
    latent, result, finish = "", _LINEAR_RESULT, "add the offsets"
    if expressions:
        latent, finish = _LATENT.format(names=", ".join(expressions)), "convert them as `scores` does"
        index = {name: model.objectives.index(name) for name in expressions}
        columns = [_COLUMN.format(name=n, k=index[n], expression=e) for n, e in expressions.items()]
        result = _RESULT.format(columns="\n".join(columns))
    return _PAGE.format(
        table=table,
        latent=latent,
        input_format=input_format,
        encode=encode,
        result=result,
        request=request,
        finish=finish,
    )
