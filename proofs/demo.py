"""What the demo promises, held to it on several seeds: `make proof-demo [SEEDS="0 1 2"]`.

For every seed: under five minutes; all four true objectives better, the simultaneous 95 % interval above 0;
refusals of look-alikes up by no more than five points; every head of the reward model at a rank correlation
of at least 0.9 with the truth on unseen requests.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SECONDS, RISE, SPEARMAN = 300, 0.05, 0.9


def main(seeds: list[str]) -> int:
    """Run the demo once a seed and print a row for each; the number of broken promises."""
    broken = 0
    for seed in seeds:
        folder = Path("runs", f"proof-demo-{seed}")
        begin = time.monotonic()
        program = str(Path(sys.executable).with_name("paretune"))
        result = subprocess.run(
            [program, "demo", "--seed", seed, f"run.output_dir={folder}"],
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - begin
        if result.returncode:
            print(f"seed {seed}: exit {result.returncode}: {result.stderr.strip()}")
            broken += 1
            continue
        numbers = json.loads((folder / "eval" / "final" / "eval.json").read_text())
        report = json.loads((folder / "reward" / "report.json").read_text())
        found = promises(numbers, report, seconds)
        broken += sum(not kept for kept in found.values())
        print(row(seed, numbers, report, seconds, found), flush=True)
    print(f"{broken} promises broken")
    return min(broken, 1)


def promises(numbers: dict[str, Any], report: dict[str, Any], seconds: float) -> dict[str, bool]:
    """Each promise and whether it was kept."""
    lookalike = numbers["refusals"]["lookalike"]
    kept = {f"{name} better": o["verdict"] == "better" for name, o in numbers["objectives"].items()}
    kept |= {f"{name} spearman": o["spearman"] >= SPEARMAN for name, o in report["objectives"].items()}
    kept["refusals of look-alikes"] = lookalike["after"] - lookalike["before"] <= RISE
    kept["seconds"] = seconds < SECONDS
    return kept


def row(
    seed: str, numbers: dict[str, Any], report: dict[str, Any], seconds: float, found: dict[str, bool]
) -> str:
    """One seed, readable."""
    lines = [f"seed {seed}: {seconds:.0f} s"]
    for name, o in numbers["objectives"].items():
        change = (
            f"{o['before']:.2f} -> {o['after']:.2f}, {o['change']:+.2f} [{o['low']:+.2f}, {o['high']:+.2f}]"
        )
        lines.append(
            f"  {name:<15} {change}  {o['verdict']}  head rho {report['objectives'][name]['spearman']:.3f}"
        )
    for kind, rate in numbers["refusals"].items():
        lines.append(f"  refusals of {kind:<9} {100 * rate['before']:.0f} % -> {100 * rate['after']:.0f} %")
    lines.append(f"  KL {numbers['kl']['k3']:.2f} nats a response")
    missed = [name for name, kept in found.items() if not kept]
    return "\n".join([*lines, "  BROKEN: " + ", ".join(missed) if missed else "  all promises kept"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["0", "1", "2"]))
