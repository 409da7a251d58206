"""Stage 2: the policy that alignment starts from, where it has to be taught first."""

from shutil import rmtree

import torch

from paretune.chance import seed_of
from paretune.config.rules import WORLD
from paretune.data.world_model import policy_config
from paretune.learn.fit import Imitation, fit
from paretune.models.load import Language, as_language, device_named, load_policy, save_model
from paretune.stages.gather import policy_tokenizer
from paretune.stages.work import Work, fitting


def teach(work: Work) -> str:
    """Fit the starting policy to the demonstrations and save it; or say which one is given."""
    policy = work.experiment.policy
    if policy.sft is None:
        return f"{policy.path}, as it is"
    if not work.folder("policy", "config.json").exists():
        language = taught(work, "policy", work.experiment.run.seed)
        save_model(language.model, language.tokenizer, work.folder("policy"))
    rmtree(work.folder("checkpoints", "policy"), ignore_errors=True)
    return f"imitates {len(work.material.demonstrations):,} demonstrations, good and bad alike"


def taught(work: Work, name: str, seed: int, *, start: bool = False) -> Language:
    """A policy fitted to the demonstrations; `name` is the folder of its checkpoints while that lasts.

    Args:
        work: The experiment.
        name: Of the folder.
        seed: Decides the order of the demonstrations, and the weights of a policy that has none yet.
        start: Fit the start of the alignment once more, instead of what that was made from.
    """
    policy = work.experiment.policy
    assert policy.sft is not None
    if start or policy.path != WORLD:
        language = load_policy(work.start if start else work.given, seed=seed)
    else:
        language = _newborn(work, seed)
    task = Imitation(language, work.material.demonstrations)
    fit(task, fitting(policy.sft, work.device), seed=seed, keeping=work.keeping(name), on_step=work.told())
    return language


def _newborn(work: Work, seed: int) -> Language:
    """The built-in world's policy before it has learnt anything."""
    from transformers import AutoModelForCausalLM

    tokenizer = policy_tokenizer(work.experiment)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, 0, "policy weights"))
        model = AutoModelForCausalLM.from_config(policy_config(len(tokenizer)), dtype=torch.float32)
    return as_language(model.to(device_named(work.device)), tokenizer)
