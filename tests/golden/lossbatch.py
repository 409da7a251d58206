"""Published inputs of a loss as a batch: one prompt token before what was published."""

import torch
import torch.nn.functional as F
from torch import nn

from paretune.core.batch import Batch, Outputs
from paretune.core.reductions import token_weights
from paretune.models.forward.logprobs import compute_outputs


def shifted(x):
    """One column of zeros in front, where the prompt stands."""
    return F.pad(x, (1, 0))


def batch_of(mask, advantages=None, *, weight, **fields):
    """A batch whose response tokens are those of the mask, [B, T] fields shifted past the prompt."""
    respond = shifted(mask.bool())
    attend = respond.clone()
    attend[:, 0] = True
    rows = len(mask)
    unscored = torch.full((rows, 1), torch.nan)
    if advantages is not None:
        spread = advantages if advantages.ndim == 2 else advantages[:, None].expand(mask.shape)
        fields["advantages"] = torch.where(mask.bool(), spread, 0.0)[..., None]
    return Batch(
        input_ids=torch.zeros_like(respond, dtype=torch.long),
        attention_mask=attend,
        response_mask=respond,
        group=torch.arange(rows),
        truncated=torch.zeros(rows, dtype=torch.bool),
        objectives=("reward",),
        scores=unscored,
        rewards=unscored,
        loss_weights=shifted(weight),
        **{name: F.pad(x, (0, 0, 1, 0)) if x.ndim == 3 else shifted(x) for name, x in fields.items()},
    )


def outputs(logp, mask, **more):
    """What a forward pass gives: 0 where nobody responds."""
    return Outputs(logprobs=shifted(torch.where(mask.bool(), logp, 0.0)), **more)


def weights(mask, mode, length=1, empty_rows="include"):
    """The part that makes denominators, on published masks, in float64."""
    return token_weights(mask.bool(), mode, length, empty_rows)


def token_mean(x, batch):
    """Mean over response tokens of something a loss watches."""
    return x[batch.response_mask].mean()


class Logits(nn.Module):
    """A causal model whose hidden states are the published logits, under a head that changes nothing."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits
        vocab = logits.shape[-1]
        self.head = nn.Linear(vocab, vocab, bias=False, dtype=logits.dtype)
        self.head.weight.data = torch.eye(vocab, dtype=logits.dtype)
        self.config = Config()
        self.base_model = Body(self)

    def get_output_embeddings(self):
        return self.head

    def get_input_embeddings(self):
        return self.head


class Body:
    def __init__(self, model):
        self.model = (model,)

    def __call__(self, **asked):
        return Answer(self.model[0].logits)


class Answer:
    def __init__(self, logits):
        self.last_hidden_state = logits


class Config:
    model_type = "published"

    def get_text_config(self):
        return self


def asked(logits, tokens, respond, temperature=1.0):
    """Log-probability and entropy by our forward pass: logits[:, t] are those of tokens[:, t + 1]."""
    width = tokens.shape[1]
    batch = batch_of(torch.ones(len(tokens), width - 1), weight=torch.zeros(len(tokens), width - 1))
    batch = batch.replace(input_ids=tokens, response_mask=respond)
    return compute_outputs(Logits(logits), batch, frozenset({"entropy"}), temperature=temperature)
