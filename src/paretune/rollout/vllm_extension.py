"""Worker extension of vLLM: loads weights, and says what the worker holds.

vLLM imports this module in its workers by `worker_extension_cls` and adds the methods to them, so it imports
nothing that a server need not have. Arguments arrive as text when a server is asked over HTTP.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


class WeightLoader:
    """Methods that every vLLM worker gets; `model_runner` and `vllm_config` are the worker's."""

    model_runner: Any
    vllm_config: Any
    _loaded_version: str = ""

    def paretune_load_weights(self, folder: str, version: str) -> list[str]:
        """Load the safetensors files of a folder.

        Args:
            folder: As `save_pretrained` wrote it.
            version: Kept, and returned by `paretune_facts`.
        """
        if not Path(folder).is_dir():
            # vLLM would take it for a name on the hub, and be left without any weights.
            raise FileNotFoundError(
                f"{folder} does not exist on the engine's host: see rollout.shared_folder"
            )
        self._loaded_version = ""  # a load that fails leaves neither the old weights nor the new ones
        self.model_runner.reload_weights(weights_path=folder)
        return self._finish_loading(version)

    def paretune_load_tensors(self, tensors: Iterable[tuple[str, Any]], version: str) -> list[str]:
        """Load tensors by name, where the worker is in the trainer's process."""
        self._loaded_version = ""
        self.model_runner.reload_weights(weights_iterator=iter(tensors))
        return self._finish_loading(version)

    def _finish_loading(self, version: str) -> list[str]:
        # On a CPU, linear layers keep packed copies of their weights. vLLM 0.32 does not renew that of a tied
        # head on a reload: the head would silently stay the old one.
        head = getattr(self.model_runner.get_model(), "lm_head", None)
        head = getattr(head, "base_layer", head)
        if head is not None and getattr(head, "quant_method", None) is not None:
            head.quant_method.process_weights_after_loading(head)
        self._loaded_version = version
        return [version]

    def paretune_facts(self) -> dict[str, Any]:
        """The model, the limits, and the version of the weights that were loaded last."""
        model, lora = self.vllm_config.model_config, self.vllm_config.lora_config
        return {
            "version": self._loaded_version,
            "dtype": str(model.dtype).removeprefix("torch."),
            "vocab_size": int(model.get_vocab_size()),
            "hidden_size": int(model.get_hidden_size()),
            "num_layers": int(model.hf_text_config.num_hidden_layers),
            "max_model_len": int(model.max_model_len),
            "max_lora_rank": 0 if lora is None else int(lora.max_lora_rank),
            "logprobs_mode": str(model.logprobs_mode),
            "device": str(self.vllm_config.device_config.device_type),
            "chunked_prefill": bool(self.vllm_config.scheduler_config.enable_chunked_prefill),
        }
