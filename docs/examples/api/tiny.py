"""Tiny random models for the examples; with a real model, write `pt.load_policy("path or hub name")`."""

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from paretune.models.load import PolicyModel, as_policy_model

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Letters, digits and punctuation, one token each."""
    pieces = ["<end>", "<pad>", "<unk>", *string.ascii_letters, *string.digits, *string.punctuation, "▁"]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    core.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", pad_token="<pad>", unk_token="<unk>"
    )


def tiny_policy(seed: int = 0) -> PolicyModel:
    """A causal language model with random weights."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), eos_token_id=0, bos_token_id=None, pad_token_id=1, **SIZE
        )
        return as_policy_model(AutoModelForCausalLM.from_config(config), tokenizer)


def save_tiny_classifier(folder: Path) -> Path:
    """Save a classifier of calm and angry texts with random weights."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), pad_token_id=1, id2label={0: "calm", 1: "angry"}, **SIZE
        )
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
