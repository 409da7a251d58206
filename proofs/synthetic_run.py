"""A GRPO run on a model of random weights, without files: for proofs of memory and speed.

Imports neither `config` nor `experiment`, so that it runs where the packages that read recipes are missing:
of pydantic it needs the name `Field` alone, which annotates arguments; without pydantic a stand-in has it.
"""

import importlib.util
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

if importlib.util.find_spec("pydantic") is None:
    stand_in = types.ModuleType("pydantic")
    stand_in.Field = lambda *_, **__: None  # type: ignore[attr-defined]
    sys.modules["pydantic"] = stand_in

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from paretune.credit.aggregation import WeightedSum
from paretune.credit.base import chain
from paretune.credit.normalization import BroadcastToTokens, GroupNormalize
from paretune.data.records import Message, Prompt, Sample
from paretune.loss.base import WeightedLoss
from paretune.loss.kl import KlToReference
from paretune.loss.policy import ClippedSurrogate
from paretune.models.load import PolicyModel
from paretune.models.lora import AdapterDisabledModel, LoraSpec, add_lora
from paretune.models.model_passes import Models, OldLogprobs, RefLogprobs
from paretune.models.model_size import config_model_size
from paretune.plan.devices import DEVICES, cpu_device
from paretune.plan.memory import MemoryEstimate, estimate_memory
from paretune.plan.workload import Workload
from paretune.reward.model import RewardModel, RewardModelScorer
from paretune.rl.algorithm_spec import AlgorithmSpec, LossAggregation
from paretune.rl.context import TrainingContext
from paretune.rollout.sampler import LocalSampler, OnPolicy
from paretune.training.optimizer import OptimizerConfig

OBJECTIVE = "length"
SPECIAL_TOKENS = 2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One measured step."""

    config: dict[str, Any]
    """Fields of the model's configuration, `model_type` included."""
    prompts: int
    generations: int
    prompt_tokens: int
    response_tokens: int
    max_tokens_per_pass: int
    lora_rank: int | None = None
    dtype: str = "float32"
    gradient_checkpointing: str = "none"
    reward_model: bool = False
    """Score by a reward model of the policy's size; else by the lengths of the responses."""
    device: str = "cpu"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The precision of the base model."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with as many words as the model has embeddings: one token per word."""
    words = {"<pad>": 0, "<end>": 1} | {f"w{i}": i for i in range(SPECIAL_TOKENS, vocab_size)}
    inner = Tokenizer(WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")


def random_prompts(step: int, setting: Setting) -> list[Prompt]:
    """Different prompts of exactly `prompt_tokens` tokens, a function of the step."""
    rng = np.random.default_rng(step)
    words = rng.integers(
        SPECIAL_TOKENS, setting.config["vocab_size"], (setting.prompts, setting.prompt_tokens)
    )
    return [
        Prompt(messages=(Message("user", " ".join(f"w{i}" for i in row)),), id=f"{step}-{index}")
        for index, row in enumerate(words.tolist())
    ]


class ParityScorer:
    """The share of even words in a response: differs within groups, so that there is a gradient."""

    names = (OBJECTIVE,)

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """One row per sample."""
        ids = [sample.response_ids or (0,) for sample in samples]
        return torch.tensor([[sum(i % 2 == 0 for i in row) / len(row)] for row in ids])


def random_model(setting: Setting, auto_class: Any = AutoModelForCausalLM, **more: Any) -> Any:
    """Random weights, built on the device in the precision of the setting."""
    config = AutoConfig.for_model(**setting.config, eos_token_id=1, pad_token_id=0, **more)
    default = torch.get_default_dtype()
    torch.set_default_dtype(setting.torch_dtype)
    try:
        with torch.device(setting.device), torch.random.fork_rng():
            torch.manual_seed(0)
            return auto_class.from_config(config).eval()
    finally:
        torch.set_default_dtype(default)


def grpo_from_parts(setting: Setting) -> AlgorithmSpec:
    """The parts of `algorithms.grpo`, whose package needs pydantic."""
    return AlgorithmSpec(
        name="grpo",
        rollout=OnPolicy(num_generations=setting.generations, max_new_tokens=setting.response_tokens),
        reward_steps=chain(WeightedSum({OBJECTIVE: 1.0})),
        model_passes=(OldLogprobs(source="rollout"), RefLogprobs()),
        credit=chain(GroupNormalize("group"), BroadcastToTokens()),
        losses=(WeightedLoss(1.0, ClippedSurrogate(0.2, 0.2)), WeightedLoss(0.04, KlToReference())),
        loss_aggregation=LossAggregation("seq_mean_token_mean"),
    )


def workload_of(setting: Setting) -> Workload:
    """The setting as `paretune plan` sees it."""
    size = config_model_size(AutoConfig.for_model(**setting.config))
    assert size is not None
    weight_bytes = 4 if setting.dtype == "float32" else 2
    return Workload(
        policy=size.with_lora(setting.lora_rank),
        lora=setting.lora_rank is not None,
        weight_bytes=weight_bytes,
        moment_bytes=8,
        references=0 if setting.lora_rank is not None else 1,
        scorers=(size,) if setting.reward_model else (),
        scorer_bytes=float(weight_bytes * size.num_params) if setting.reward_model else 0.0,
        critic=False,
        prompts=setting.prompts,
        generations=setting.generations,
        prompt_tokens=setting.prompt_tokens,
        response_tokens=setting.response_tokens,
        max_tokens_per_pass=setting.max_tokens_per_pass,
        gradient_checkpointing=setting.gradient_checkpointing,
        model_passes=1,
        iterations=1,
        generates=True,
    )


def forecast(setting: Setting) -> MemoryEstimate:
    """The memory that `paretune plan` expects."""
    device = cpu_device(1.0, 0.0) if setting.device == "cpu" else DEVICES["h200"]
    return estimate_memory(workload_of(setting), device)


def training_context(setting: Setting) -> TrainingContext:
    """Models, sampler, scorer and prompts of the setting, as a run has them."""
    lora = None if setting.lora_rank is None else LoraSpec(r=setting.lora_rank, alpha=2 * setting.lora_rank)

    def policy() -> PolicyModel:
        model = random_model(setting)
        network = model if lora is None else add_lora(model, lora, 0).to(setting.device)
        return PolicyModel(model=network, tokenizer=tokenizer, eos_ids=(1,), pad_id=0)

    tokenizer = word_tokenizer(setting.config["vocab_size"])
    trained = policy()
    reference = (
        AdapterDisabledModel(trained.model) if lora is not None else policy().model.requires_grad_(False)
    )
    scorer: Any = ParityScorer()
    if setting.reward_model:
        labels = {"num_labels": 1, "id2label": {0: OBJECTIVE}, "label2id": {OBJECTIVE: 0}}
        network = random_model(setting, AutoModelForSequenceClassification, **labels).requires_grad_(False)
        network.score.float()
        scorer = RewardModelScorer(
            RewardModel(network, trained.tokenizer, eos_id=1, scale=[1.0], offset=[0.0])
        )
    return TrainingContext(
        models=Models(policy=trained.model, frozen={"reference": reference}),
        sampler=LocalSampler(policy=trained, objectives=(OBJECTIVE,)),
        scorers=(scorer,),
        objectives=(OBJECTIVE,),
        prompts_for_step=lambda step: random_prompts(step, setting),
        optim_config=OptimizerConfig(learning_rate=1e-6),
        max_tokens_per_pass=setting.max_tokens_per_pass,
        strict_token_limit=True,
        gradient_checkpointing=setting.gradient_checkpointing,  # type: ignore[arg-type]
    )
