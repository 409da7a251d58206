"""The fields of TRL 1.16's configurations, and which of them a recipe has no key for."""

from collections.abc import Mapping
from typing import Any

GRPO, DPO, REWARD = "GRPOConfig", "DPOConfig", "RewardConfig"
TRAINERS: Mapping[str, str] = {GRPO: "GRPOTrainer", DPO: "DPOTrainer", REWARD: "RewardTrainer"}
"""Configuration -> the trainer that takes it."""

COMMON_DEFAULTS: Mapping[str, Any] = {
    "output_dir": None,
    "run_name": None,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "warmup_ratio": None,
    "optim": "adamw_torch_fused",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "bf16": None,
    "gradient_checkpointing": True,
    "save_steps": 500,
    "save_total_limit": None,
    "seed": 42,
    "use_cpu": False,
    "eval_strategy": "no",
    "model_init_kwargs": None,
    "model_name_or_path": None,
    "model_revision": "main",
    "dtype": "float32",
    "use_peft": False,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "lora_target_modules": None,
    "dataset_name": None,
    "dataset_config": None,
    "dataset_train_split": "train",
    "dataset_test_split": "test",
    "datasets": None,
}
"""Fields that a recipe has keys for, in every trainer, and their defaults."""
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    GRPO: {
        "num_generations": 8,
        "num_generations_eval": None,
        "max_completion_length": 512,
        "generation_batch_size": None,
        "steps_per_generation": None,
        "temperature": 1.0,
        "chat_template_kwargs": None,
        "loss_type": "dapo",
        "multi_objective_aggregation": "sum_then_normalize",
        "scale_rewards": "group",
        "beta": 0.0,
        "use_bias_correction_kl": True,
        "num_iterations": 1,
        "epsilon": 0.2,
        "epsilon_high": None,
        "delta": None,
        "importance_sampling_level": "token",
        "mask_truncated_completions": False,
        "top_entropy_quantile": 1.0,
        "entropy_coef": 0.0,
        "off_policy_mask_threshold": None,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
        "reward_weights": None,
        "reward_funcs": None,
        "reward_model_name_or_path": None,
    },
    DPO: {
        "beta": 0.1,
        "loss_type": "sigmoid",
        "label_smoothing": 0.0,
        "max_length": 1024,
        "activation_offloading": False,
    },
    REWARD: {"learning_rate": 1e-4, "max_length": 1024, "activation_offloading": False},
}
"""Further ones of each trainer, or with another default."""

_WHOLE = "responses are sampled from the whole distribution, as the loss assumes; remove it"
_NO_DROPOUT = "models run without dropout"
_SAMPLER = "the sampler is chosen by the section rollout; for vLLM see docs/vllm.md"
_LOGS = "metrics, samples and events are always in the run folder"
_EXPORT = "`paretune export RUN` makes the folder of a model, and uploads it with --push"
_SPEED = "affects speed or memory only; paretune plans that itself"
_ONE_DEVICE = "torchrun or srun starts the processes; see docs/scale.md"
_ALWAYS = "paretune does that always"
_EVALUATION = "the evaluation comes before and after the training; see the section evaluate"
_RESUME = "`paretune run` goes on from the last checkpoint by itself"

_COMMON_WITHOUT_EFFECT: Mapping[str, str] = {
    _LOGS: """logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
        include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to
        project trackio_space_id trackio_bucket_id trackio_static_space_id""",
    _EXPORT: """push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
        save_only_model save_on_each_node""",
    _SPEED: """torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config
        use_cache torch_empty_cache_steps gradient_checkpointing_kwargs
        activation_checkpointing activation_checkpointing_kwargs attn_implementation
        skip_memory_metrics pad_to_multiple_of dataloader_drop_last dataloader_num_workers
        dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
        dataloader_multiprocessing_context dataloader_in_order length_column_name
        dataset_num_proc""",
    _ONE_DEVICE: """average_tokens_across_devices accelerator_config ddp_find_unused_parameters
        ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout local_rank
        ignore_bias_buffers""",
    _ALWAYS: "full_determinism enable_jit_checkpoint do_train",
    _EVALUATION: """eval_steps eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start
        eval_do_concat_batches eval_use_gather_object eval_accumulation_steps
        include_for_metrics batch_eval_metrics bf16_full_eval fp16_full_eval
        metric_for_best_model greater_is_better do_eval do_predict""",
    _RESUME: "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint",
    "every draw comes from run.seed": "data_seed",
    "set by the model class": "lora_task_type label_names",
    "only read with quantized weights": "bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage",
    "for debugging of TRL": "debug",
    _NO_DROPOUT: "disable_dropout",
    "every column reaches the scorers": "remove_unused_columns",
}
_WITHOUT_EFFECT: Mapping[str, Mapping[str, str]] = {
    GRPO: {
        _SAMPLER: """use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_server_base_url
        vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port
        vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size
        vllm_importance_sampling_correction vllm_importance_sampling_mode
        vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
        vllm_importance_sampling_cap cache_implementation use_transformers_continuous_batching
        transformers_continuous_batching_config use_transformers_paged
        ds3_gather_for_generation""",
        _LOGS: """log_completions log_multimodal num_completions_to_print log_unique_prompts
        log_completions_hub_repo""",
        "only read with sync_ref_model": "ref_model_mixup_alpha ref_model_sync_steps",
        "only read with use_adaptive_entropy": """entropy_coef_min entropy_coef_max entropy_coef_delta
        entropy_target""",
    },
    DPO: {
        _SPEED: "padding_free precompute_ref_log_probs precompute_ref_batch_size",
        "only read with sync_ref_model": "ref_model_mixup_alpha ref_model_sync_steps",
        "only read with another f_divergence_type": "f_alpha_divergence_coef",
        "padding is known by its position": "pad_token",
    },
    REWARD: {"padding is known by its position": "pad_token"},
}

_COMMON_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "lr_scheduler_kwargs": ((None, {}), "the schedules have no further arguments"),
    "optim_args": ((None,), "AdamW has no further arguments here"),
    "optim_target_modules": ((None,), "policy.lora.target_modules names the trained modules"),
    "adam_beta1": ((0.9,), "it is 0.9 here"),
    "adam_beta2": ((0.999,), "it is 0.999 here"),
    "adam_epsilon": ((1e-8,), "it is 1e-8 here"),
    "label_smoothing_factor": ((0, 0.0), "TRL's loss does not read it; remove it"),
    "fp16": ((False,), "take bf16, which needs no loss scaling: policy.dtype: bfloat16"),
    "tf32": ((None, False), "float32 products keep their precision; take policy.dtype: bfloat16 for speed"),
    "neftune_noise_alpha": ((None,), "there is no noise on embeddings"),
    "auto_find_batch_size": (
        (False,),
        "training.max_tokens_per_pass limits the memory, and changes no number",
    ),
    "load_best_model_at_end": ((False,), "write evaluate.eval_steps and evaluate.select_checkpoint"),
    "save_strategy": (("steps",), "checkpoints are written every run.save_steps steps"),
    "train_sampling_strategy": (("random",), "prompts come in random order"),
    "fsdp": ((None, "", []), "a run uses one device; take LoRA or a smaller model"),
    "fsdp_config": ((None,), "a run uses one device"),
    "deepspeed": ((None,), "a run uses one device; take LoRA or a smaller model"),
    "parallelism_config": ((None,), "a run uses one device"),
    "trust_remote_code": (
        (False,),
        "code of a model folder is never run; take a family that transformers has",
    ),
    "router_aux_loss_coef": ((None, 0, 0.0), "there is no load-balancing loss; 0.0 turns it off in TRL too"),
    "lora_target_parameters": ((None,), "name modules in policy.lora.target_modules"),
    "lora_modules_to_save": ((None,), "modules outside the adapter stay frozen"),
    "use_rslora": ((False,), "scale by hand: policy.lora.alpha x the square root of r"),
    "use_dora": ((False,), "take plain LoRA"),
    "load_in_8bit": ((False,), "weights are float32 or bfloat16; take policy.dtype: bfloat16"),
    "load_in_4bit": ((False,), "weights are float32 or bfloat16; take policy.dtype: bfloat16"),
    "dataset_streaming": ((False,), "data sets are read whole; max_rows limits the rows"),
    "streaming": ((False,), "data sets are read whole; max_rows limits the rows"),
    "test_split_size": ((None,), "set data.holdout_fraction"),
}
_REFUSED: Mapping[str, Mapping[str, tuple[tuple[Any, ...], str]]] = {
    GRPO: {
        "top_p": ((1.0, 1, None), _WHOLE),
        "top_k": ((0, -1, None), _WHOLE),
        "min_p": ((None, 0.0), _WHOLE),
        "repetition_penalty": ((1.0, 1), "make it an objective: a scorer with rule: repetition"),
        "generation_kwargs": ((None, {}), "only max_new_tokens and temperature can be set"),
        "vllm_structured_outputs_regex": ((None,), "make it an objective: a scorer with rule: regex"),
        "shuffle_dataset": ((True, None), "prompts come in random order"),
        "cast_lm_head_to_fp32": ((False,), "take policy.dtype: float32"),
        "sync_ref_model": ((False,), "the reference stays the initial policy; lower beta"),
        "use_adaptive_entropy": ((False,), "set a constant entropy_coef"),
        "max_tool_calling_iterations": ((None,), "policies that call tools cannot be trained"),
    },
    DPO: {
        "loss_weights": ((None,), "one loss_type at a time"),
        "ld_alpha": ((None,), "the tokens of both responses count alike"),
        "f_divergence_type": (("reverse_kl",), "take reverse_kl"),
        "use_weighting": ((False,), "pairs have equal weights"),
        "discopop_tau": ((0.05,), "it is 0.05 here"),
        "sync_ref_model": ((False,), "the reference stays the initial policy"),
        "truncation_mode": (("keep_start",), "pairs longer than max_length are dropped"),
    },
    REWARD: {
        "center_rewards_coefficient": ((None,), "only differences of its scores count; remove it"),
        "chat_template_path": ((None,), "the chat template is that of the model folder"),
        "eos_token": ((None,), "stop tokens are those of the model folder"),
    },
}


def default_values(config: str) -> dict[str, Any]:
    """Field -> its default, of the fields that a recipe has keys for."""
    return {**COMMON_DEFAULTS, **DEFAULTS[config]}


def reasons_without_effect(config: str) -> dict[str, str]:
    """Field -> why it has no effect here."""
    groups = [*_COMMON_WITHOUT_EFFECT.items(), *_WITHOUT_EFFECT[config].items()]
    return {name: reason for reason, names in groups for name in names.split()}


def refused_values(config: str) -> dict[str, tuple[tuple[Any, ...], str]]:
    """Field -> the values that change nothing, and what to do instead of any other."""
    return {**_COMMON_REFUSED, **_REFUSED[config]}


def known_fields(config: str) -> frozenset[str]:
    """All fields of the configuration, of the model and of the data set."""
    return (
        frozenset(default_values(config))
        | frozenset(reasons_without_effect(config))
        | frozenset(refused_values(config))
    )
