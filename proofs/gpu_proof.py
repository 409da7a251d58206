"""CUDA against CPU numbers, and GRPO steps of the paper's sizes against the forecast of `paretune plan`.

    python proofs/gpu_proof.py [--device cuda] [--minutes 8] [--output FOLDER] [--wheels FOLDER]

Random weights, LoRA of rank 16 on a bfloat16 base, 64 prompts x 8 responses, prompts of 256 tokens, responses
of 512. A short step comes first; if the whole step would not end in its share of the minutes, it has fewer
prompts, and the table says how many. A step of TRL's GRPOTrainer at the smallest size is measured where `trl`
can be imported, or lies with what it needs as wheels in a folder. Each part is a process of its own that is
killed at the end of its share, so that the minutes are never exceeded. Writes gpu-proof.json and gpu-proof.md
into the folder after each part.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
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
from paretune.rl.loop import train
from paretune.rl.rollout import rollout_and_score
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
START_SECONDS = 30
"""Of a part, for its imports, the start of CUDA and the first compiled kernels."""
DEVICES_PART, TRL_PART = "devices", "trl"
TRL_PACKAGES = ("trl", "datasets", "accelerate")
Part = Callable[[str, float], dict[str, Any]]
"""Measures the part of this name in so many seconds; a failure is {"error": one line}."""


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


def trl_step(setting: Setting, folder: Path) -> dict[str, Any]:
    """Seconds of the second of two steps of TRL's GRPOTrainer, without vLLM, and its peak memory."""
    from datasets import Dataset
    from peft import LoraConfig
    from synthetic_run import random_model, random_prompts, word_tokenizer
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    begins: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        """The time at which each step begins, and the end."""

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            """Before the rollout of the step."""
            begins.append(time.perf_counter())

        on_train_end = on_step_begin

    def parity(completion_ids: list[list[int]], **_: Any) -> list[float]:
        """The share of even words, as in our run."""
        return [sum(i % 2 == 0 for i in ids) / max(len(ids), 1) for ids in completion_ids]

    texts = [prompt.messages[0].content for step in (0, 1) for prompt in random_prompts(step, setting)]
    cuda = setting.device == "cuda"
    rows = setting.prompts * setting.generations
    rows_of_pass = max(setting.max_tokens_per_pass // (setting.prompt_tokens + setting.response_tokens), 1)
    while rows % rows_of_pass:
        rows_of_pass -= 1
    args = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=rows_of_pass,
        gradient_accumulation_steps=rows // rows_of_pass,
        num_generations=setting.generations,
        max_completion_length=setting.response_tokens,
        max_steps=2,
        beta=0.04,
        learning_rate=1e-6,
        bf16=cuda,
        use_cpu=not cuda,
        gradient_checkpointing=setting.gradient_checkpointing == "recompute",
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    trainer = GRPOTrainer(
        model=random_model(setting),
        reward_funcs=parity,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=word_tokenizer(setting.config["vocab_size"]),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return {"prompts": setting.prompts, "seconds": begins[-1] - begins[-2], "peak_gb": peak / 1e9}


def trl_part(setting: Setting, seconds: float, wheels: Path | None) -> dict[str, Any]:
    """TRL's step at half the prompts until it fits into its time, or why it was left out."""
    with tempfile.TemporaryDirectory() as folder:
        for wheel in sorted(wheels.glob("*.whl")) if wheels is not None else ():
            zipfile.ZipFile(wheel).extractall(Path(folder) / "wheels")
        sys.path.append(str(Path(folder) / "wheels"))  # packages that are installed come first
        missing = [name for name in TRL_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            return {"error": f"TRL left out: {', '.join(missing)} cannot be imported; fix: --wheels FOLDER"}
        begin = time.perf_counter()
        short = replace(setting, prompts=2, response_tokens=max(setting.response_tokens // 8, 4))
        trial = trl_step(short, Path(folder) / "out")["seconds"]
        left = seconds - (time.perf_counter() - begin)
        tokens = setting.response_tokens / short.response_tokens
        prompts = setting.prompts
        # Two steps; TRL decodes all rows at one time, so that the time grows at most as the rows.
        while prompts > 2 and 2 * trial * tokens * prompts / short.prompts > left:
            prompts //= 2
        return trl_step(replace(setting, prompts=prompts), Path(folder) / "out")


def markdown(results: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [
        _devices_line(results["devices"]),
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
    trl = results.get(TRL_PART)
    if trl is not None:
        step = f"a step of {trl.get('prompts')} prompts took {trl.get('seconds', 0.0):.2f} s, peak "
        lines += ["", trl.get("error") or f"TRL: {step}{trl['peak_gb']:.1f} GB."]
    return "\n".join(lines) + "\n"


def _devices_line(gaps: dict[str, Any]) -> str:
    if "error" in gaps:
        return f"CUDA against CPU: {gaps['error']}"
    return (
        f"CUDA against CPU, float32, {gaps['tokens']} tokens: log-probabilities differ by at most "
        f"{gaps['logprob_gap']:.1e}, gradients by {gaps['gradient_gap']:.1e} relative; sampler against "
        f"trainer {gaps['sampler_gap']:.1e}."
    )


def prove(sizes: list[str], measure: Part, device_name: str, seconds: float, output: Path) -> dict[str, Any]:
    """Compare devices, measure every size and TRL, and write both files after each part.

    Args:
        sizes: Names of the sizes.
        measure: Measures a part within its share of the seconds.
        device_name: For the page.
        seconds: Of all parts together.
        output: Folder of the files.
    """
    begin = time.perf_counter()
    results: dict[str, Any] = {"torch": torch.__version__, "device": device_name, "devices": {}, "sizes": {}}
    parts = [DEVICES_PART, *sizes, TRL_PART]
    for index, name in enumerate(parts):
        left = seconds - (time.perf_counter() - begin)
        result = measure(name, left / (len(parts) - index))
        (results["sizes"] if name in sizes else results)[name] = result
        output.mkdir(parents=True, exist_ok=True)
        (output / "gpu-proof.json").write_text(json.dumps(results, indent=1) + "\n")
        (output / "gpu-proof.md").write_text(markdown(results))
    return results


def measure_part(name: str, seconds: float, *, cuda: bool, wheels: Path | None) -> dict[str, Any]:
    """One part in this process."""
    small = replace(
        PAPER, prompts=4, generations=4, prompt_tokens=16, response_tokens=32, device="cpu", dtype="float32"
    )
    setting, device = (PAPER, DEVICES["h200"]) if cuda else (small, cpu_device(1e11, 16e9))
    configs = sizes_of(cuda)
    try:
        if name == DEVICES_PART:
            return compare_devices(setting.device)
        if name == TRL_PART:
            return trl_part(replace(setting, config=next(iter(configs.values()))), seconds, wheels)
        return step_of_size(configs[name], device, setting, seconds)
    except torch.OutOfMemoryError as error:
        return {"error": str(error).splitlines()[0]}


def sizes_of(cuda: bool) -> dict[str, dict[str, Any]]:
    """Name -> configuration: the published sizes, or a tiny one for a CPU."""
    return dict(PUBLISHED_CONFIGS) if cuda else {"tiny": TINY}


def run_apart(command: list[str], seconds: float) -> dict[str, Any]:
    """The last line that the command prints, as JSON; the process is killed after so many seconds."""
    try:
        done = subprocess.run(command, check=False, timeout=max(seconds, 1.0), capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {seconds:.0f} s, its share of the time"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {"error": f"exit code {done.returncode}: {lines[-1]}"}
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result


def main() -> None:
    """Run the proof; exit with 1 if CUDA and CPU disagree or were not compared."""
    parser = argparse.ArgumentParser(description="CUDA against CPU, and steps against the forecast.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", "runs/gpu-proof")))
    parser.add_argument("--wheels", type=Path, help="folder with wheels of trl and what it needs")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cuda = arguments.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.exit(3, "no CUDA device; fix: run this on a machine with one, or --device cpu for a trial\n")
    if arguments.part:
        seconds = 60 * arguments.minutes - START_SECONDS
        print(json.dumps(measure_part(arguments.part, seconds, cuda=cuda, wheels=arguments.wheels)))
        return

    def measure(name: str, seconds: float) -> dict[str, Any]:
        options = ["--device", arguments.device, "--part", name, "--minutes", str(seconds / 60)]
        wheels = ["--wheels", str(arguments.wheels)] if arguments.wheels is not None else []
        return run_apart([sys.executable, __file__, *options, *wheels], seconds)

    device_name = torch.cuda.get_device_name() if cuda else "CPU"
    results = prove(list(sizes_of(cuda)), measure, device_name, 60 * arguments.minutes, arguments.output)
    print(markdown(results))
    raise SystemExit(not results["devices"].get("logprob_gap", 1.0) <= MAX_GAP)


if __name__ == "__main__":
    main()
