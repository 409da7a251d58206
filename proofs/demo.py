"""Checks the claims about the demo on several seeds: `make proof-demo [SEEDS="0 1 2"]`.

For every seed: less than five minutes; all four true objectives better, with simultaneous 95 % intervals
above 0; refusals of look-alike prompts up by at most five percentage points; every head of the reward model
at a rank correlation of at least 0.9 with the ground truth on held-out prompts.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MAX_SECONDS, MAX_REFUSAL_RISE, MIN_SPEARMAN = 300, 0.05, 0.9


def main(seeds: list[str]) -> int:
    """Run the demo once per seed and print its results; exit code 1 if a claim failed."""
    num_failed = 0
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
            num_failed += 1
            continue
        evaluation = json.loads((folder / "eval" / "final" / "eval.json").read_text())
        report = json.loads((folder / "reward" / "report.json").read_text())
        checks = check_claims(evaluation, report, seconds)
        num_failed += sum(not passed for passed in checks.values())
        print(summary(seed, evaluation, report, seconds, checks), flush=True)
    print(f"{num_failed} claims failed")
    return min(num_failed, 1)


def check_claims(evaluation: dict[str, Any], report: dict[str, Any], seconds: float) -> dict[str, bool]:
    """Claim -> whether it holds."""
    lookalike = evaluation["refusal_rate"]["lookalike"]
    checks = {f"{name} better": o["verdict"] == "better" for name, o in evaluation["objectives"].items()}
    checks |= {f"{name} spearman": o["spearman"] >= MIN_SPEARMAN for name, o in report["objectives"].items()}
    checks["refusals of look-alikes"] = lookalike["after"] - lookalike["before"] <= MAX_REFUSAL_RISE
    checks["seconds"] = seconds < MAX_SECONDS
    return checks


def summary(
    seed: str, evaluation: dict[str, Any], report: dict[str, Any], seconds: float, checks: dict[str, bool]
) -> str:
    """The results of one seed as text."""
    lines = [f"seed {seed}: {seconds:.0f} s"]
    for name, o in evaluation["objectives"].items():
        change = (
            f"{o['before']:.2f} -> {o['after']:.2f}, {o['change']:+.2f} [{o['low']:+.2f}, {o['high']:+.2f}]"
        )
        lines.append(
            f"  {name:<15} {change}  {o['verdict']}  head rho {report['objectives'][name]['spearman']:.3f}"
        )
    for category, rate in evaluation["refusal_rate"].items():
        lines.append(
            f"  refusals of {category:<9} {100 * rate['before']:.0f} % -> {100 * rate['after']:.0f} %"
        )
    lines.append(f"  KL {evaluation['kl']['k3']:.2f} nats per response")
    failed = [name for name, passed in checks.items() if not passed]
    return "\n".join([*lines, "  FAILED: " + ", ".join(failed) if failed else "  all claims hold"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["0", "1", "2"]))
