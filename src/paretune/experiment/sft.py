"""Stage 2: the policy that alignment starts from, where it has to be taught first."""

from shutil import rmtree

import torch

from paretune.config.validate import WORLD
from paretune.core.rng import derive_seed
from paretune.experiment.context import RunContext, supervised_config
from paretune.experiment.data import policy_tokenizer
from paretune.models.load import PolicyModel, as_policy_model, load_policy, resolve_device, save_model
from paretune.training.supervised import SftTask, fit
from paretune.worlds.helpdesk.model import policy_config


def run_sft(ctx: RunContext) -> str:
    """Fit the starting policy to the demonstrations and save it; or say which one is given."""
    policy = ctx.config.policy
    if policy.sft is None:
        return f"{policy.path}, as it is"
    if not ctx.path("policy", "config.json").exists():
        language = train_sft(ctx, "policy", ctx.config.run.seed)
        save_model(language.model, language.tokenizer, ctx.path("policy"))
    rmtree(ctx.path("checkpoints", "policy"), ignore_errors=True)
    return f"imitates {len(ctx.dataset.sft_demonstrations):,} demonstrations, good and bad alike"


def train_sft(
    ctx: RunContext, checkpoint_name: str, seed: int, *, from_initial_policy: bool = False
) -> PolicyModel:
    """A policy fitted to the demonstrations; `checkpoint_name` is the folder of its checkpoints while that lasts.

    Args:
        ctx: The experiment.
        checkpoint_name: Of the folder.
        seed: Decides the order of the demonstrations, and the weights of a policy that has none yet.
        from_initial_policy: Fit the start of the alignment once more, instead of what that was made from.
    """
    policy = ctx.config.policy
    assert policy.sft is not None
    if from_initial_policy or policy.path != WORLD:
        language = load_policy(ctx.initial_policy if from_initial_policy else ctx.base_policy, seed=seed)
    else:
        language = _init_from_scratch(ctx, seed)
    task = SftTask(language, ctx.dataset.sft_demonstrations)
    fit(
        task,
        supervised_config(policy.sft, ctx.device),
        seed=seed,
        checkpoint_config=ctx.checkpoint_config(checkpoint_name),
        on_step=ctx.progress_callback(),
    )
    return language


def _init_from_scratch(ctx: RunContext, seed: int) -> PolicyModel:
    """The built-in world's policy before it has learnt anything."""
    from transformers import AutoModelForCausalLM

    tokenizer = policy_tokenizer(ctx.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 0, "policy weights"))
        model = AutoModelForCausalLM.from_config(policy_config(len(tokenizer)), dtype=torch.float32)
    return as_policy_model(model.to(resolve_device(ctx.device)), tokenizer)
