"""Unequal right-padded rows of random tokens, and batches of them."""

import torch

from paretune.core.batch import Batch

VOCAB = 37

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
"""A network of two layers, in the words that configurations of transformers share."""


def rows(lengths=(9, 6, 3), starts=(4, 2, 1), seed=0):
    width = max(lengths)
    tokens = torch.randint(2, VOCAB, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    place = torch.arange(width)
    attend = place < torch.tensor(lengths)[:, None]
    return tokens.masked_fill(~attend, 0), attend, attend & (place >= torch.tensor(starts)[:, None])


def batch_of(tokens, attend, respond):
    nothing = torch.full((len(tokens), 1), torch.nan)
    return Batch(
        input_ids=tokens,
        attention_mask=attend,
        response_mask=respond,
        group=torch.arange(len(tokens)),
        truncated=torch.zeros(len(tokens), dtype=torch.bool),
        objectives=("a",),
        scores=nothing,
        rewards=nothing,
    )
