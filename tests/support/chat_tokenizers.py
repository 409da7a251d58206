"""Byte-level tokenizers with small chat templates, one per kind of template."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paretune.data.records import Message, Prompt

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML
SPECIAL = ["<s>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer(template=None, bos="<s>"):
    """A byte-level tokenizer; ids 0 to 2 are special."""
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, chat_template=template)


def prompt(*messages):
    return Prompt(messages=tuple(Message(*message) for message in messages), id="p1")


_HEAD = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
_ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n"
_TOOLS = (
    "{% if m.tool_calls %}{% for call in m.tool_calls %}<call>{{ call.function.name }}</call>"
    "{% endfor %}{% endif %}"
)
TEMPLATES = {
    "plain": CHATML,
    "trims": _HEAD + "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}" + _ASK + "{% endif %}",
    "opens a thought": _HEAD + "{{ m['content'] }}<|im_end|>\n{% endfor %}" + _ASK + "<think>\n{% endif %}",
    "empty thought": _HEAD
    + "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    + "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    + _ASK
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    + "{% endif %}",
    "drops thoughts": _HEAD
    + "{{ m['content'].split('</think>')[-1] }}<|im_end|>{% endfor %}"
    + _ASK
    + "<think>\n{% endif %}",
    "space before the end": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
    "{{ m['content'] | trim }} [/INST]{% else %} {{ m['content'] | trim }} <|im_end|>{% endif %}{% endfor %}",
    "words": "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}",
    "default system": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}" + CHATML,
    "parts": _HEAD
    + "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    + _ASK
    + "{% endif %}",
    "tools": _HEAD + _TOOLS + "{{ m['content'] }}<|im_end|>\n{% endfor %}" + _ASK + "{% endif %}",
    "two ends": _HEAD
    + "{{ m['content'] }}{% if m['role'] == 'assistant' and loop.last %}<s>{% else %}<|im_end|>{% endif %}"
    + "{% endfor %}"
    + _ASK
    + "{% endif %}",
    "next turn": "{% for m in messages %}{{ '<|im_start|>' if m['role'] == 'user' else '<|im_end|>' }}"
    "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|im_end|>{% endif %}",
}
"""A template of each kind; the name says what is special."""
