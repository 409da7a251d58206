"""Hand-made batches, and the toy task as a training context, for the tests of credit, loss and rl."""

import copy
import hashlib
import inspect

import torch

from paretune.algorithms import ALGORITHMS
from paretune.algorithms.grpo import grpo
from paretune.core.batch import Batch
from paretune.credit.constraints import Constraint
from paretune.models.load import PolicyModel
from paretune.models.model_passes import Models
from paretune.rl.context import TrainingContext
from paretune.rl.loop import train
from paretune.rl.state import trainable_parameters
from paretune.rollout.sampler import LocalSampler
from paretune.run.folder import Run
from paretune.training.optimizer import OptimizerConfig
from support.tiny_models import tiny_model
from support.toy import OBJECTIVES, PAD, STOP, VOCAB, ToyScorer, toy_prompts, toy_tokenizer

WEIGHTS = {"even": 0.5, "high": 0.5}


def graded(scores, group=None, objectives=None, respond=None, lengths=None):
    """A batch of one-token prompts whose responses have these scores."""
    scores = torch.as_tensor(scores, dtype=torch.get_default_dtype())
    scores = scores[:, None] if scores.ndim == 1 else scores
    rows = len(scores)
    lengths = lengths or [2] * rows
    width = 1 + max(lengths) if respond is None else respond.shape[1]
    if respond is None:
        respond = torch.tensor([[0 < t <= n for t in range(width)] for n in lengths])
    attend = respond.clone()
    attend[:, 0] = True
    return Batch(
        input_ids=torch.arange(rows * width).reshape(rows, width) % 7,
        attention_mask=attend,
        response_mask=respond,
        group=torch.zeros(rows, dtype=torch.long) if group is None else torch.tensor(group),
        truncated=torch.zeros(rows, dtype=torch.bool),
        objectives=tuple(objectives or [f"k{k}" for k in range(scores.shape[1])]),
        scores=scores,
        rewards=scores,
    )


def advance(step, batch, seed=0):
    """Apply one credit step from its initial state: the batch and the metrics."""
    out, _, metrics = step.apply_stateful(batch, step.init_state(), torch.Generator().manual_seed(seed))
    return out, metrics


def toy_recipe(**more):
    """GRPO on the toy task; short responses."""
    return grpo(WEIGHTS, **({"num_generations": 8, "max_new_tokens": 6} | more))


def algorithm(name, **more):
    """An algorithm by name on the toy's objectives, with a constraint if it takes constraints."""
    function = ALGORITHMS[name]
    # A custom one takes them only if one of its parts does.
    if "constraints" in inspect.signature(function).parameters and name != "custom":
        more.setdefault("constraints", (Constraint("even", 0.5),))
    return function(WEIGHTS, **more)


def toy_world(seed=0, *, lr=1e-2, scorers=None, prompts=None, **more):
    """A tiny random policy on the toy task, with its initial weights frozen as the reference."""
    model = tiny_model("llama", VOCAB, seed=seed, width=16, layers=1, heads=2, context=32, stop=STOP, pad=PAD)
    language = PolicyModel(model=model, tokenizer=toy_tokenizer(), eos_ids=(STOP,), pad_id=PAD)
    reference = copy.deepcopy(model).requires_grad_(False)
    return TrainingContext(
        models=Models(policy=model, frozen={"reference": reference}),
        sampler=LocalSampler(language, OBJECTIVES),
        scorers=scorers or (ToyScorer(),),
        objectives=OBJECTIVES,
        prompts_for_step=prompts or (lambda step: toy_prompts(step, 6)),
        optim_config=OptimizerConfig(learning_rate=lr),
        **more,
    )


def digest(world):
    """SHA-256 of all trained weights."""
    rows = [p.detach().numpy().tobytes() for p in trainable_parameters(world.models).values()]
    return hashlib.sha256(b"".join(rows)).hexdigest()


def trained(folder, world=None, recipe=None, *, steps=4, seed=0, every=2, **more):
    """Train on the toy task: the digest of the weights, and the bytes of metrics.jsonl."""
    world, recipe, run = world or toy_world(), recipe or toy_recipe(), Run(folder)
    train(recipe, world, max_steps=steps, seed=seed, run=run, save_steps=every, **more)
    return digest(world), (folder / "metrics.jsonl").read_bytes()


class Cut(Exception):
    """A simulated power failure."""


def stop_after(steps):
    """An `on_step` callback that interrupts the run after so many steps."""

    def on_step(step, *rest):
        if step + 1 == steps:
            raise Cut

    return on_step
