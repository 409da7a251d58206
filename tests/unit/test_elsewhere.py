"""The classes that stand for those of transformers and peft have the same instances."""

import subprocess
import sys
from pathlib import Path

import peft
import pytest
import transformers
from jaxtyping import TypeCheckError

import paretune
from paretune.core import types
from paretune.models.lora import LoraSpec, add_lora, lora_target_names
from support.tiny_models import tiny_model, tiny_tokenizer


def test_instances_are_those_of_the_class_itself():
    there = {
        "PeftModel": peft.PeftModel,
        "PreTrainedModel": transformers.PreTrainedModel,
        "PreTrainedTokenizerBase": transformers.PreTrainedTokenizerBase,
    }
    assert set(types.__all__) == set(there)
    plain = tiny_model("llama", 11)
    for thing in (
        plain,
        tiny_tokenizer(),
        add_lora(tiny_model("llama", 11), LoraSpec(r=1), 0),
        plain.lm_head,
        None,
    ):
        for name, real in there.items():
            assert isinstance(thing, getattr(types, name)) == isinstance(thing, real)


def test_calls_are_checked_against_them():
    with pytest.raises(TypeCheckError):
        lora_target_names(tiny_tokenizer())


def test_nothing_is_an_instance_before_the_class_is_loaded():
    code = (
        "import sys, types\n"
        "from paretune.elsewhere import PeftModel, PreTrainedModel\n"
        "assert not isinstance(3, PreTrainedModel | PeftModel)\n"
        "assert 'transformers' not in sys.modules\n"
        "sys.modules['peft.peft_model'] = types.ModuleType('half loaded')\n"
        "assert not isinstance(3, PeftModel)\n"
    )
    source = str(Path(paretune.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": source})
