"""The real vLLM: these tests need the environment of `make test-vllm`, and no other run collects them."""

import os

import pytest

from support.tiny_models import tiny_model, tiny_tokenizer
from support.vllm_process import MAX_LEN

collect_ignore_glob = [] if os.environ.get("PARETUNE_TEST_VLLM") else ["test_*.py"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random model of a size that vLLM's CPU kernels accept, with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    # 32 numbers per head: the smallest size that vLLM's CPU attention has.
    model = tiny_model("llama", len(tokenizer), width=128, heads=4, context=MAX_LEN, initial=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
