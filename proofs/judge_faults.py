"""Prove that an LLM judge survives a faulty endpoint: a score or a reason for all, nothing paid twice.

    python proofs/judge_faults.py [ITEMS]

An endpoint on 127.0.0.1 answers 70 % of the requests; the others are a timeout, error 429, error 500 or half
a JSON object. A process rates the items and is killed (kill -9) in the middle; a second one resumes. Then the
caps on requests and on cost are tried in the same way. The exit code is 1 if anything does not hold.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.judge_server import JudgeServer, serve  # noqa: E402

FAULT_RATE, TIMEOUT, STALL, CONCURRENCY = 0.3, 4.0, 4.5, 32
RATER = """
import json, sys
from pathlib import Path
from paretune.data.records import Message, Prompt, Sample
from paretune.reward.judge_requests import JudgeEndpoint, JudgeLimits
from paretune.reward.llm_judge import LlmJudgeScorer
from paretune.reward.rubric import Rubric

url, folder, items, limits, timeout, concurrency = json.loads(sys.argv[1])
rubric = Rubric.model_validate({"criteria": {
    "politeness": {"text": "Polite?", "levels": {"rude": 0, "neutral": 1, "polite": 2}},
    "facts": {"text": "True?", "points": {"min": 1, "max": 5}},
}})
judge = LlmJudgeScorer(
    rubric=rubric,
    endpoint=JudgeEndpoint(
        base_url=url, model="judge", timeout=timeout, max_concurrency=concurrency
    ),
    limits=JudgeLimits(**limits),
    cache_dir=Path(folder),
)
prompts = [Prompt(messages=(Message("user", f"item {i}"),)) for i in range(items)]
samples = [Sample(prompt=prompt, response="an answer") for prompt in prompts]
scores = judge(samples)
print(json.dumps({
    "scored": int((~scores.isnan().any(1)).sum()), "unscored": int(scores.isnan().any(1).sum()),
    "reasons": dict(judge.failures.reasons), "metrics": dict(judge.metrics),
    "cost": judge.client.cache.usage("").cost, "requests": judge.client.cache.usage("").requests,
}))
"""


def rater(
    server: JudgeServer, folder: Path, items: int, limits: dict[str, float] | None = None
) -> subprocess.Popen[str]:
    """A process that rates the items."""
    arguments = json.dumps([server.url, str(folder), items, limits or {}, TIMEOUT, CONCURRENCY])
    return subprocess.Popen(
        [sys.executable, "-c", RATER, arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )


def kill_after(process: subprocess.Popen[str], server: JudgeServer, requests: int) -> bool:
    """Kill -9 as soon as the endpoint has seen so many requests; False if the process ended before."""
    while len(server.bodies) < requests and process.poll() is None:
        time.sleep(0.005)
    killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1.0)  # the endpoint finishes what it had begun
    return killed


def cached(folder: Path) -> int:
    """Number of replies in a cache."""
    connection = sqlite3.connect(folder / "replies.sqlite")
    try:
        return connection.execute("SELECT count(*) FROM replies").fetchone()[0]
    finally:
        connection.close()


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process printed at its end."""
    output, _ = process.communicate()
    return json.loads(output.splitlines()[-1])


def faults_and_kill(folder: Path, items: int, checks: dict[str, bool]) -> None:
    """All items, with a kill in the middle."""
    with serve(JudgeServer(fault_rate=FAULT_RATE, stall=STALL)) as server:
        start = time.perf_counter()
        killed = kill_after(rater(server, folder, items), server, int(items * 0.7))
        kept, answered, seen = cached(folder), Counter(server.answered), len(server.bodies)
        result = result_of(rater(server, folder, items))
        seconds = time.perf_counter() - start
        twice = sorted(item for item, count in server.answered.items() if count > 1)
        lost = [item for item in twice if answered[item]]
        print(f"requests before the kill -9: {seen}; answers sent {answered.total()}, kept {kept}")
        print(f"requests in all: {len(server.bodies)}; faults {dict(server.faults)}; {seconds:.0f} s")
        print(f"scored {result['scored']}, NaN {result['unscored']}; reasons {result['reasons']}")
        print(f"answered twice: {len(twice)}, of these in flight at the kill {len(lost)}")
        reasons = sum(result["reasons"].values())
        checks["killed in the middle"] = killed and 0 < kept < items
        checks["every item is scored or has a reason"] = (
            result["scored"] + result["unscored"] == items and result["unscored"] == reasons
        )
        checks["kept replies are not asked for again"] = result["metrics"]["cached"] == kept
        checks["answered twice: only what was in flight at the kill"] = (
            twice == lost and len(twice) <= CONCURRENCY
        )
        # Counted before they are sent: some of those at the kill were not.
        unsent = result["requests"] - len(server.bodies)
        checks["requests are counted over the kill"] = 0 <= unsent <= CONCURRENCY


def caps(folder: Path, items: int, checks: dict[str, bool]) -> None:
    """Caps on requests and on cost over a kill and a resume."""
    for name, limits in (
        ("requests", {"max_requests": items // 4}),
        ("cost", {"max_cost": items / 10, "input_price": 1000.0, "output_price": 1000.0}),
    ):
        with serve(JudgeServer(fault_rate=FAULT_RATE, stall=STALL)) as server:
            kill_after(rater(server, folder / name, items, limits), server, items // 8)
            result = result_of(rater(server, folder / name, items, limits))
            # An endpoint bills what it generates, whether or not somebody waits for it: all but 429 and 500.
            spent = 0.11 * (len(server.bodies) - server.faults["429"] - server.faults["500"])
            capped = sum(count for reason, count in result["reasons"].items() if reason.startswith("cap of"))
            print(f"cap on {name} {limits}: {len(server.bodies)} requests, billed {spent:.2f},")
            print(f"  counted {result['cost']:.2f}; scored {result['scored']}, not asked {capped}")
            if name == "requests":
                checks["cap on requests"] = len(server.bodies) <= limits["max_requests"] and capped > 0
            else:
                checks["cap on cost"] = spent <= result["cost"] <= limits["max_cost"] and capped > 0


def main() -> None:
    """Run all parts and print what holds."""
    items = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    checks: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as folder:
        faults_and_kill(Path(folder) / "all", items, checks)
        caps(Path(folder), items, checks)
    for name, holds in checks.items():
        print(f"{'yes' if holds else 'NO '}  {name}")
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    main()
