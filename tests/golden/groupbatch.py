"""Published pairs and lists as groups of rows."""

import torch
from lossbatch import Logits, batch_of, outputs, weights

from paretune.core.reductions import group_sum
from paretune.models.forward.logprobs import compute_outputs


def rows_of(sums, lengths, signal, group, **fields):
    """Rows with these sums of log-probabilities, spread evenly over their tokens: outputs and batch."""
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    each = {name: torch.where(mask, (x / lengths)[:, None], 0.0) for name, x in fields.items()}
    batch = batch_of(mask, weight=weights(mask, "seq_mean_token_mean"), **each)
    batch = batch.replace(group=group, rewards=signal, scores=signal)
    return outputs((sums / lengths)[:, None].expand(mask.shape), mask), batch


def pairs_of(chosen, rejected, reference_chosen, reference_rejected, length=1, others=None):
    """Groups of two, all chosen rows first; `others` are columns of the signal beside the preference."""
    num = len(chosen)
    signal = torch.cat([torch.ones(num, 1), torch.zeros(num, 1)])
    if others is not None:
        signal = torch.cat([signal, others], 1)
    out, batch = rows_of(
        torch.cat([chosen, rejected]),
        torch.full((2 * num,), float(length)),
        signal,
        torch.arange(num).repeat(2),
        ref_logprobs=torch.cat([reference_chosen, reference_rejected]),
    )
    names = ("preferred", *(f"other{i}" for i in range(1, signal.shape[1])))
    return out, batch.replace(objectives=names)


def read(logits, labels, reference=None, respond=None):
    """Our forward pass on published logits; a label of -100 is not asked, nor is the first."""
    labels = labels.long()
    if respond is None:
        respond = (labels != -100) & (torch.arange(labels.shape[1]) > 0)
    blank = torch.ones(len(labels), labels.shape[1] - 1)
    batch = batch_of(blank, weight=blank).replace(input_ids=labels.clamp(min=0), response_mask=respond)
    batch = batch.replace(
        attention_mask=torch.ones_like(respond), loss_weights=weights(respond, "seq_mean_token_mean")
    )
    if reference is None:
        return compute_outputs(Logits(logits), batch), batch
    frozen = Logits(reference)
    batch = batch.replace(ref_logprobs=compute_outputs(frozen, batch).logprobs)
    wants = frozenset({"ref_policy_kl"})
    return compute_outputs(Logits(logits), batch, wants, references={"reference": frozen}), batch


def evenly(batch):
    """The weights scaled so that every group counts the same, also where a response is empty."""
    whole = group_sum(batch.loss_weights.sum(-1, keepdim=True), batch.group)
    return batch.replace(loss_weights=batch.loss_weights / whole / len(batch.group.unique()))
