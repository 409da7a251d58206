"""SFT stage: supervised fine-tuning of the initial policy on demonstrations."""

import torch

from paretune.config.validate import WORLD
from paretune.core.rng import derive_seed
from paretune.experiment.context import RunContext
from paretune.experiment.data_limits import policy_tokenizer
from paretune.experiment.settings import supervised_config
from paretune.models.load import PolicyModel, as_policy_model, load_policy, resolve_device, save_model
from paretune.run.io import remove_folder
from paretune.training.supervised import SftTask, fit
from paretune.worlds import get_world


def run_sft(ctx: RunContext) -> str:
    """Fine-tune the initial policy on the demonstrations and save it, if the recipe has `policy.sft`."""
    policy = ctx.config.policy
    if policy.sft is None:
        return f"{policy.path}, without fine-tuning"
    if not ctx.has("sft", "config.json"):
        fitted = train_sft(ctx, "sft", ctx.config.run.seed)
        save_model(fitted.model, fitted.tokenizer, ctx.path("sft"))
    remove_folder(ctx.path("checkpoints", "sft"))
    return f"fine-tuned on {len(ctx.dataset.sft_demonstrations):,} demonstrations"


def train_sft(
    ctx: RunContext, checkpoint_name: str, seed: int, *, from_initial_policy: bool = False
) -> PolicyModel:
    """A policy fine-tuned on the demonstrations.

    Args:
        ctx: The run.
        checkpoint_name: Folder of the checkpoints while the training lasts.
        seed: Seed of the order of the demonstrations, and of the weights of a policy without pretrained ones.
        from_initial_policy: Fine-tune the result of the SFT stage again, instead of its base model.
    """
    policy = ctx.config.policy
    assert policy.sft is not None
    if from_initial_policy or policy.path != WORLD:
        model = load_policy(ctx.initial_policy if from_initial_policy else ctx.base_policy, seed=seed)
    else:
        model = _init_from_scratch(ctx, seed)
    fit(
        SftTask(model, ctx.dataset.sft_demonstrations),
        supervised_config(policy.sft, ctx.device),
        seed=seed,
        checkpoint_config=ctx.checkpoint_config(checkpoint_name),
        on_step=ctx.progress_callback(),
    )
    return model


def _init_from_scratch(ctx: RunContext, seed: int) -> PolicyModel:
    """The built-in world's policy with random weights."""
    from transformers import AutoModelForCausalLM

    tokenizer = policy_tokenizer(ctx.config)
    config = get_world().policy_config(len(tokenizer))
    # transformers draws from the global generator; it is restored, so that no other draw depends on this.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 0, "policy weights"))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return as_policy_model(model.to(resolve_device(ctx.device)), tokenizer)
