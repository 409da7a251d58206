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


def test_lazy_types_have_the_instances_of_the_real_classes():
    real_classes = {
        "PeftModel": peft.PeftModel,
        "PreTrainedModel": transformers.PreTrainedModel,
        "PreTrainedTokenizerBase": transformers.PreTrainedTokenizerBase,
    }
    assert set(types.__all__) == set(real_classes)
    model = tiny_model("llama", 11)
    for value in (
        model,
        tiny_tokenizer(),
        add_lora(tiny_model("llama", 11), LoraSpec(r=1), 0),
        model.lm_head,
        None,
    ):
        for name, real in real_classes.items():
            assert isinstance(value, getattr(types, name)) == isinstance(value, real)


def test_signatures_are_checked_against_lazy_types():
    with pytest.raises(TypeCheckError):
        lora_target_names(tiny_tokenizer())


def test_nothing_is_an_instance_before_the_real_module_is_loaded():
    code = (
        "import sys, types\n"
        "from paretune.core.types import PeftModel, PreTrainedModel\n"
        "assert not isinstance(3, PreTrainedModel | PeftModel)\n"
        "assert 'transformers' not in sys.modules\n"
        "sys.modules['peft.peft_model'] = types.ModuleType('half loaded')\n"
        "assert not isinstance(3, PeftModel)\n"
    )
    source = str(Path(paretune.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": source})
