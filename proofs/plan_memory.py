"""The memory that `paretune plan` forecasts against measured peaks of GRPO steps on a CPU.

    python proofs/plan_memory.py            # all settings, as a Markdown table
    python proofs/plan_memory.py 7m lora    # one setting in this process

Each setting runs in a fresh process: the peak of its resident set, less what it was once everything had been
imported. glibc's allocator keeps freed blocks of up to 32 MiB, so that the peak of a process can exceed the
memory that it ever used at one time. With MALLOC_MMAP_THRESHOLD_ it returns them: that is the memory that the
run needs, and what the forecast is compared with. Both are measured.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 0.15
THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": "131072"}
DIALOGUE = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 704,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}
SIZES = {
    "7m": DIALOGUE,
    "30m": DIALOGUE
    | {
        "model_type": "qwen2",
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 1536,
        "vocab_size": 8192,
    },
    "120m": DIALOGUE
    | {
        "hidden_size": 768,
        "num_hidden_layers": 14,
        "num_attention_heads": 12,
        "intermediate_size": 2304,
        "vocab_size": 16384,
    },
}
KINDS = ("full", "lora")
STEPS = 2


def measure(size: str, kind: str) -> tuple[int, int]:
    """Measured and forecast bytes of a few steps in this process, without those of the imports."""
    import peft  # noqa: F401 - imported before the baseline is read
    import torch
    from synthetic_run import Setting, forecast, grpo_from_parts, training_context

    from paretune.rl.loop import train
    from paretune.run.folder import Run
    from paretune.run.system import peak_rss_bytes

    torch.set_num_threads(1)
    setting = Setting(
        config=SIZES[size],
        prompts=6,
        generations=4,
        prompt_tokens=64,
        response_tokens=64,
        max_tokens_per_pass=1024,
        lora_rank=8 if kind == "lora" else None,
        reward_model=True,
    )
    baseline = peak_rss_bytes()
    context = training_context(setting)
    with tempfile.TemporaryDirectory() as folder:
        train(grpo_from_parts(setting), context, max_steps=STEPS, seed=0, run=Run(folder), save_steps=100)
    return peak_rss_bytes() - baseline, round(forecast(setting).peak_without_process)


def run_apart(size: str, kind: str, variables: dict[str, str]) -> tuple[int, int]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, size, kind]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    measured, planned = map(int, out.split()[-2:])
    return measured, planned


def main() -> None:
    """Print the table; exit with 1 if a forecast is off by more than the limit."""
    if len(sys.argv) == 3:
        print(*measure(*sys.argv[1:]))
        return
    print("| model | trained | planned | needed | off | with glibc's defaults |")
    print("| --- | --- | --- | --- | --- | --- |")
    worst = 0.0
    for size in SIZES:
        for kind in KINDS:
            needed, planned = run_apart(size, kind, THRESHOLD)
            default, _ = run_apart(size, kind, {})
            off = planned / needed - 1
            worst = max(worst, abs(off))
            cells = [f"{value / 1e6:,.0f} MB" for value in (planned, needed)]
            row = [size, kind, *cells, f"{100 * off:+.0f} %", f"{default / 1e6:,.0f} MB"]
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"\nlargest difference {100 * worst:.0f} %, limit {100 * LIMIT:.0f} %")
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
