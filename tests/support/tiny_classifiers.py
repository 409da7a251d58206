"""Random sequence classifiers of several families in folders, with byte-level tokenizers."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
)

from support.chat_tokenizers import CHATML

CLS, SEP, PAD, END = "[CLS]", "[SEP]", "[PAD]", "<|im_end|>"
SPECIAL = [PAD, CLS, SEP, "<|im_start|>", END]

_SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
}
ENCODERS = {
    "bert": (BertConfig, {}),
    "roberta": (RobertaConfig, {"type_vocab_size": 1}),
    "deberta-v2": (
        DebertaV2Config,
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
        | {"pooler_hidden_size": 16},
    ),
    "distilbert": (DistilBertConfig, {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}),
    "electra": (ElectraConfig, {"embedding_size": 16}),
    "modernbert": (ModernBertConfig, {"cls_token_id": 1, "sep_token_id": 2}),
}
CAUSAL = {
    "llama": (LlamaConfig, {"num_key_value_heads": 1}),
    "qwen2": (Qwen2Config, {"num_key_value_heads": 1}),
    "gpt2": (GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}),
}
FAMILIES = ENCODERS | CAUSAL


def tokenizer(family):
    """Byte level; encoders add [CLS] and [SEP] around texts, causal families nothing."""
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    inputs = ["input_ids", "attention_mask"]
    if family in ENCODERS:
        second = f"{SEP} $B {SEP}" if family == "roberta" else f"$B:1 {SEP}:1"
        core.post_processor = processors.TemplateProcessing(
            single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} {second}", special_tokens=[(CLS, 1), (SEP, 2)]
        )
        inputs += ["token_type_ids"] * (family in {"bert", "electra", "deberta-v2"})
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        cls_token=CLS,
        sep_token=SEP,
        eos_token=END,
        chat_template=CHATML,
        model_input_names=inputs,
    )


def classifier(family, labels=("calm", "toxic", "rude"), *, seed=0, text_tokenizer=None, **more):
    """A random float32 classifier and its tokenizer; `more` are fields of its configuration."""
    config_class, fields = FAMILIES[family]
    text_tokenizer = text_tokenizer or tokenizer(family)
    common = {
        "vocab_size": len(text_tokenizer),
        "pad_token_id": text_tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": text_tokenizer.eos_token_id,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    config = config_class(**(_SIZE | common | fields | more))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    return model.eval(), text_tokenizer


def save_classifier(folder, family="bert", *args, **more):
    """Save a random classifier and its tokenizer; arguments as of `classifier`."""
    for part in classifier(family, *args, **more):
        part.save_pretrained(folder)
    return str(folder)
