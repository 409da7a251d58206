"""CUDA against CPU numbers, and GRPO steps of the paper's sizes against the forecast of `paretune plan`.

    python proofs/gpu_proof.py [--device cuda] [--minutes 8] [--output FOLDER]

Random weights, LoRA of rank 16 on a bfloat16 base, 64 prompts x 8 responses, prompts of 256 tokens, responses
of 512. A short step comes first; if the whole step would not end in its share of the minutes, it has fewer
prompts, and the table says how many. Writes gpu-proof.json and gpu-proof.md into the folder.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from synthetic_run import Setting, forecast, grpo_from_parts, training_context, workload_of

from paretune.models.forward.logprobs import compute_outputs
from paretune.models.model_passes import response_logprobs
from paretune.plan.devices import DEVICES, Device, cpu_device
from paretune.plan.published_models import PUBLISHED_CONFIGS
from paretune.plan.roofline import StepTime, estimate_step
from paretune.rl.context import TrainingContext
from paretune.rl.loop import rollout_and_score, train
from paretune.run.folder import Run, read_jsonl

TINY = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "vocab_size": 512,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}
PAPER = Setting(
    config=TINY,
    prompts=64,
    generations=8,
    prompt_tokens=256,
    response_tokens=512,
    max_tokens_per_pass=16384,
    lora_rank=16,
    dtype="bfloat16",
    device="cuda",
)
PHASES = ("rollout", "score", "model_passes", "update")
MAX_GAP = 1e-3
"""Largest difference of a log-probability between CUDA and CPU in float32."""


def compare_devices(device: str) -> dict[str, Any]:
    """One batch on the CPU and on the device in float32: log-probabilities and gradients."""
    setting = replace(
        PAPER,
        config=TINY,
        dtype="float32",
        device="cpu",
        prompts=4,
        generations=4,
        prompt_tokens=20,
        response_tokens=24,
    )
    spec, context = grpo_from_parts(setting), training_context(setting)
    batch, _ = rollout_and_score(spec, context, 0, 0)
    results = {}
    for name in ("cpu", device):
        model = context.models.policy.to(name)
        logprobs = response_logprobs(model, batch).cpu()
        outputs = compute_outputs(model, batch, frozenset({"entropy"}), temperature=1.0)
        model.zero_grad()
        outputs.logprobs[batch.response_mask.to(outputs.logprobs.device)].sum().backward()
        grads = [p.grad.detach().float().cpu().flatten() for p in model.parameters() if p.grad is not None]
        results[name] = (logprobs, torch.cat(grads))
    (cpu_logprobs, cpu_grads), (logprobs, grads) = results["cpu"], results[device]
    sampled = batch.require("rollout_logprobs")
    mask = batch.response_mask
    return {
        "tokens": int(mask.sum()),
        "logprob_gap": float((cpu_logprobs - logprobs)[mask].abs().max()),
        "gradient_gap": float((cpu_grads - grads).norm() / cpu_grads.norm()),
        "sampler_gap": float((sampled - logprobs)[mask].abs().max()),
    }


def timed_steps(setting: Setting, context: TrainingContext, steps: int) -> tuple[dict[str, float], float]:
    """Seconds of the phases of the last step, and the peak memory of all in bytes."""
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        train(grpo_from_parts(setting), context, max_steps=steps, seed=0, run=run, save_steps=1000)
        line = read_jsonl(Path(folder) / "timing.jsonl")[-1]
    peak = torch.cuda.max_memory_allocated() if setting.device == "cuda" else 0
    return {name: float(line.get(name) or 0.0) for name in PHASES}, float(peak)


def step_of_size(config: dict[str, Any], device: Device, setting: Setting, seconds: float) -> dict[str, Any]:
    """A step of one size: measured, forecast, and the scale at which it was measured."""
    setting = replace(setting, config=config)
    if forecast(setting).peak > device.memory:
        setting = replace(setting, gradient_checkpointing="recompute")
    begin = time.perf_counter()
    context = training_context(setting)
    built = time.perf_counter() - begin
    # The second of two short steps: the first one compiles and allocates.
    short = replace(setting, prompts=2, response_tokens=max(setting.response_tokens // 8, 4))
    trial, _ = timed_steps(short, replace(context, prompts_for_step=_prompts(short)), 2)
    prompts = setting.prompts
    while (
        prompts > 2 and _projected_seconds(trial, short, replace(setting, prompts=prompts)) > seconds - built
    ):
        prompts //= 2
    measured_setting = replace(setting, prompts=prompts)
    measured, peak = timed_steps(
        measured_setting, replace(context, prompts_for_step=_prompts(measured_setting)), 1
    )
    expected: StepTime = estimate_step(workload_of(measured_setting), device)
    memory = forecast(measured_setting)
    names = {"model_passes": "model passes"}
    phases = expected.phases
    return {
        "prompts": prompts,
        "of_prompts": setting.prompts,
        "gradient_checkpointing": setting.gradient_checkpointing,
        "build_seconds": built,
        "measured": measured,
        "forecast": {n: phases[names.get(n, n)].seconds for n in PHASES if names.get(n, n) in phases},
        "peak_gb": peak / 1e9,
        "forecast_peak_gb": (memory.peak - memory.resident.get("CUDA context", 0.0)) / 1e9,
        "setting": {key: value for key, value in asdict(measured_setting).items() if key != "config"},
    }


def _prompts(setting: Setting) -> Any:
    from synthetic_run import random_prompts

    return lambda step: random_prompts(step, setting)


def _projected_seconds(trial: dict[str, float], short: Setting, whole: Setting) -> float:
    """Seconds of a step, from those of the short one: decoding goes by steps, everything else by tokens."""
    waves = -(-whole.prompts * whole.generations // 256)
    rollout = trial["rollout"] * waves * whole.response_tokens / short.response_tokens
    tokens = workload_of(whole).shape().num_tokens / workload_of(short).shape().num_tokens
    return 1.3 * rollout + tokens * sum(trial[name] for name in PHASES if name != "rollout")


def markdown(results: dict[str, Any]) -> str:
    """The results as a page."""
    gaps = results["devices"]
    lines = [
        f"CUDA against CPU, float32, {gaps['tokens']} tokens: log-probabilities differ by at most "
        f"{gaps['logprob_gap']:.1e}, gradients by {gaps['gradient_gap']:.1e} relative; sampler against "
        f"trainer {gaps['sampler_gap']:.1e}.",
        "",
        "| model | prompts | "
        + " | ".join(f"{name}, s (forecast)" for name in PHASES)
        + " | peak, GB (forecast) |",
        "| --- " * (len(PHASES) + 3) + "|",
    ]
    for name, size in results["sizes"].items():
        if "error" in size:
            lines.append(f"| {name} | {size['error']} |" + " |" * (len(PHASES) + 1))
            continue
        cells = [
            f"{size['measured'][phase]:.2f} ({size['forecast'].get(phase, 0.0):.2f})" for phase in PHASES
        ]
        memory = f"{size['peak_gb']:.1f} ({size['forecast_peak_gb']:.1f})"
        lines.append(
            f"| {name} | {size['prompts']} of {size['of_prompts']} | {' | '.join(cells)} | {memory} |"
        )
    return "\n".join(lines) + "\n"


def prove(
    configs: dict[str, dict[str, Any]], setting: Setting, device: Device, seconds: float, output: Path
) -> dict[str, Any]:
    """Compare devices, measure every size, and write both files after each, so that a cut run leaves some."""
    begin = time.perf_counter()
    results: dict[str, Any] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if setting.device == "cuda" else "CPU",
        "devices": compare_devices(setting.device),
        "sizes": {},
    }
    for index, (name, config) in enumerate(configs.items()):
        left = seconds - (time.perf_counter() - begin)
        share = left / (len(configs) - index)
        try:
            results["sizes"][name] = step_of_size(config, device, setting, share)
        except torch.OutOfMemoryError as error:
            results["sizes"][name] = {"error": str(error).splitlines()[0]}
        if setting.device == "cuda":
            torch.cuda.empty_cache()
        output.mkdir(parents=True, exist_ok=True)
        (output / "gpu-proof.json").write_text(json.dumps(results, indent=1) + "\n")
        (output / "gpu-proof.md").write_text(markdown(results))
    return results


def main() -> None:
    """Run the proof; exit with 1 if CUDA and CPU disagree."""
    parser = argparse.ArgumentParser(description="CUDA against CPU, and steps against the forecast.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", "runs/gpu-proof")))
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.exit(3, "no CUDA device; fix: run this on a machine with one, or --device cpu for a trial\n")
    cuda = arguments.device == "cuda"
    small = replace(
        PAPER, prompts=4, generations=4, prompt_tokens=16, response_tokens=32, device="cpu", dtype="float32"
    )
    results = prove(
        dict(PUBLISHED_CONFIGS) if cuda else {"tiny": TINY},
        PAPER if cuda else small,
        DEVICES["h200"] if cuda else cpu_device(1e11, 16e9),
        60 * arguments.minutes,
        arguments.output,
    )
    print(markdown(results))
    raise SystemExit(results["devices"]["logprob_gap"] > MAX_GAP)


if __name__ == "__main__":
    main()
