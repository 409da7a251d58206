"""A whole comparison: shared stages, tuning trials, runs, numbers, page. The same call again goes on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paretune.benchmark.costs import CostRow, benchmark_costs
from paretune.benchmark.processes import EXIT_TRAINING_GUARD, Job, JobRunner
from paretune.benchmark.results import benchmark_results
from paretune.benchmark.spec import BenchmarkSpec, RunSpec
from paretune.benchmark.tuning import has_judge_scores, select_trials, selected_settings, tuned_by_judge
from paretune.config import config_hash, resolved_yaml
from paretune.core.errors import ConfigError
from paretune.experiment.console import Console, make_console
from paretune.experiment.reuse import reuse_key
from paretune.experiment.tuning_trial import JUDGED_TRIAL
from paretune.report.benchmark_page import benchmark_table, write_benchmark_report
from paretune.run.compat import check_resumable
from paretune.run.io import read_json, to_json, write_atomic
from paretune.run.lock import RunLock
from paretune.training.guards import StopRequest

PREREGISTRATION_FILE = "declared.json"
"""What was written down before the first run, and cannot be changed after it."""


def run_benchmark(spec: BenchmarkSpec, console: Console | None = None) -> dict[str, Any]:
    """Make every run that is not complete, and return the numbers of compare.json.

    Raises:
        ConfigError: The folder holds another comparison, or the ranking was refused: then everything is
            written all the same.
        ParetuneError: A run failed.
        Stopped: SIGTERM came; it was passed on, and every run under way has a checkpoint.
    """
    console = console or make_console()
    spec.output_dir.mkdir(parents=True, exist_ok=True)
    lock = RunLock(spec.output_dir, "")
    try:
        preregister(spec)
        with console, StopRequest() as stop:
            found = _BenchmarkRunner(spec, console, stop).run()
    finally:
        lock.release()
    return found


def preregister(spec: BenchmarkSpec) -> None:
    """Write down what a comparison promises before its first run, or hold it to what it promised.

    Raises:
        ConfigError: It says something else now.
    """
    said = spec.config
    now = {
        "schema": "paretune/declared/1",
        "budget": said.budget.model_dump(),
        "reference": said.reference_point,
        "tuning": said.tuning.declaration() if said.tuning else None,
        "level": said.confidence_level,
        "draws": said.bootstrap_samples,
    }
    path = spec.output_dir / PREREGISTRATION_FILE
    before = read_json(path)
    if before is None:
        write_atomic(path, to_json(now))
        return
    moved = [key for key in now if key not in before or to_json({"": now[key]}) != to_json({"": before[key]})]
    if moved:
        raise ConfigError(
            "\n".join(
                f"{path}: {key}: was declared before the first run, and is another one now; "
                "fix: put it back, or choose another name"
                for key in moved
            )
        )


@dataclass
class _BenchmarkRunner:
    spec: BenchmarkSpec
    console: Console
    stop: StopRequest
    shared_dirs: dict[Path, int] = field(default_factory=dict)
    """Folder of stages that were made once -> their seed."""

    def run(self) -> dict[str, Any]:
        contest = self.spec
        trials = [trial for method in contest.config.methods for trial in contest.tuning_specs(method)]
        kept = contest.run_specs()
        self._refuse_foreign_dirs(trials)
        self._refuse_foreign_dirs(kept if not trials else [])
        stages = 3 + bool(trials)
        self._run_jobs("shared", 1, stages, self._shared_jobs([*trials, *kept]))
        tuned: dict[str, Any] = {}
        if trials:
            codes = self._run_jobs(
                "tuning", 2, stages, [self._make_job(trial, is_trial=True) for trial in trials]
            )
            tuned = select_trials(contest, codes)
            write_atomic(contest.output_dir / "tuning.json", to_json(tuned))
        entries = contest.run_specs(selected_settings(tuned))
        self._refuse_foreign_dirs(entries)
        self._run_jobs("runs", stages - 1, stages, [self._make_job(entry) for entry in entries])
        return self._write_report(entries, tuned, stages)

    def _write_report(
        self, run_specs: list[RunSpec], tuning_results: dict[str, Any], stages: int
    ) -> dict[str, Any]:
        folder = self.spec.output_dir
        self.console.start_stage("report", stages, stages)
        ledger: list[CostRow] = benchmark_costs(self.spec, run_specs, self.shared_dirs)
        lines = "".join(to_json(row).replace("\n ", "").replace("\n", "") + "\n" for row in ledger)
        write_atomic(folder / "ledger.jsonl", lines)
        found = benchmark_results(self.spec, run_specs, ledger, tuning_results)
        write_atomic(folder / "compare.json", to_json(found))
        path = write_benchmark_report(folder)
        self.console.log(f"\n{benchmark_table(found)}\n")
        self.console.finish_stage(str(path))
        return found

    def _run_jobs(self, name: str, index: int, total: int, jobs: list[Job]) -> dict[str, int]:
        """Work off the jobs that are not complete; folder -> exit code of every one."""
        left = [job for job in jobs if not _is_complete(job)]
        self.console.start_stage(name, index, total)
        done = len(jobs) - len(left)

        def tell(ended: int, line: str) -> None:
            self.console.progress(done + ended, len(jobs), line)

        codes = JobRunner(self.spec.config.num_processes, self.stop, tell).run_all(left)
        self.stop.raise_if_stopped(f"the stage {name}")
        known = f", {done} of them complete before" if done else ""
        self.console.finish_stage(f"{len(jobs)} {'run' if len(jobs) == 1 else 'runs'}{known}")
        folders = {job.label: str(job.run_dir) for job in jobs}
        failed = {str(job.run_dir): EXIT_TRAINING_GUARD for job in jobs if _stopped_by_guard(job)}
        return {folders[label]: code for label, code in codes.items()} | failed

    def _shared_jobs(self, run_specs: Iterable[RunSpec]) -> list[Job]:
        """One job for each seed and each way of making policy, reward and judge."""
        found = {}
        for entry in run_specs:
            folder = self._shared_dir(entry)
            if folder not in found:
                self.shared_dirs[folder] = entry.seed
                e = entry.config
                elsewhere = e.model_copy(update={"run": e.run.model_copy(update={"folder": str(folder)})})
                recipe = self._write_recipe(folder.name, resolved_yaml(elsewhere))
                found[folder] = Job(
                    label=f"seed-{entry.seed} for all",
                    cli_args=("run", str(recipe), "--until", "judge"),
                    run_dir=folder,
                    log_file=self.spec.output_dir / "logs" / f"{folder.name}.log",
                )
        return list(found.values())

    def _make_job(self, run_spec: RunSpec, *, is_trial: bool = False) -> Job:
        e = run_spec.config
        folder = Path(e.run.output_dir)
        name = "-".join(folder.relative_to(self.spec.output_dir).parts)
        asked = is_trial and tuned_by_judge(self.spec)
        more = ("--until", JUDGED_TRIAL if asked else "trial") if is_trial else ()
        return Job(
            label=f"{run_spec.method} {folder.name}" if is_trial else run_spec.label,
            cli_args=(
                "run",
                str(self._write_recipe(name, resolved_yaml(e))),
                "--shared",
                str(self._shared_dir(run_spec)),
                *more,
            ),
            run_dir=folder,
            log_file=self.spec.output_dir / "logs" / f"{name}.log",
            allow_guard_exit=is_trial,
            needs_judge_scores=asked,
        )

    def _shared_dir(self, run_spec: RunSpec) -> Path:
        return self.spec.output_dir / "shared" / f"seed-{run_spec.seed}-{reuse_key(run_spec.config)[:12]}"

    def _write_recipe(self, name: str, text: str) -> Path:
        """The recipe of one run, whole, so that the run can be made alone."""
        path = self.spec.output_dir / "recipes" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"# Made by paretune compare; every key and where it comes from.\n{text}")
        return path

    def _refuse_foreign_dirs(self, run_specs: Iterable[RunSpec]) -> None:
        """Refuse, before anything is made, what a folder of this name holds of another comparison."""
        wrong = []
        for entry in run_specs:
            e = entry.config
            try:
                check_resumable(Path(e.run.output_dir), config_hash(e), resolved_yaml(e))
            except ConfigError as error:
                wrong.append(str(error))
        if wrong:
            raise ConfigError("\n".join(wrong))


def _is_complete(job: Job) -> bool:
    """Whether the run is over: for good, or, of a trial, because training stopped itself."""
    book: Mapping[str, Any] = read_json(job.run_dir / "run.json") or {}
    whole = has_judge_scores(job.run_dir) or not job.needs_judge_scores
    return (book.get("status") == "done" and whole) or _stopped_by_guard(job)


def _stopped_by_guard(job: Job) -> bool:
    book: Mapping[str, Any] = read_json(job.run_dir / "run.json") or {}
    return (
        job.allow_guard_exit
        and book.get("status") == "failed"
        and book.get("exit_code") == EXIT_TRAINING_GUARD
    )
