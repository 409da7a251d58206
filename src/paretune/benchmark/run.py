"""Execution of a benchmark: shared stages, tuning trials, runs, results, page.

The same call again resumes: complete runs are kept, interrupted ones continue from their checkpoints.
"""

from collections.abc import Iterable, Mapping, Sequence
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
from paretune.experiment.tuning_trial import JUDGED_TRIAL, TRIAL
from paretune.report.benchmark_page import benchmark_table, write_benchmark_report
from paretune.run.compat import EVALUATION_SECTIONS, check_resumable, free_folder
from paretune.run.io import read_json, to_json, write_atomic
from paretune.run.lock import RunLock
from paretune.training.guards import StopRequest

PREREGISTRATION_FILE = "preregistration.json"
"""Budget and statistics, written before the first run and fixed from then on."""


def run_benchmark(spec: BenchmarkSpec, console: Console | None = None) -> dict[str, Any]:
    """Execute every run that is not complete and return the content of benchmark.json.

    Raises:
        ConfigError: The output folder holds another benchmark.
        ParetuneError: A run failed.
        RunInterrupted: SIGTERM arrived; it was forwarded, and every run in progress has a checkpoint.
    """
    console = console or make_console()
    spec.output_dir.mkdir(parents=True, exist_ok=True)
    lock = RunLock(spec.output_dir, "")
    try:
        preregister(spec)
        with console, StopRequest() as stop:
            return BenchmarkRunner(spec, console, stop).run()
    finally:
        lock.release()


def preregister(spec: BenchmarkSpec, folder_key: str = "output_dir") -> None:
    """Write the preregistration before the first run, or compare the benchmark with the existing one.

    Args:
        spec: The benchmark.
        folder_key: The key that names its folder.

    Raises:
        ConfigError: A preregistered value has changed.
    """
    config = spec.config
    current = {
        "schema": "paretune/preregistration/2",
        "budget": config.budget.model_dump(),
        "reference_point": config.reference_point,
        "tuning": config.tuning.model_dump(mode="json") if config.tuning else None,
        "confidence_level": config.confidence_level,
        "bootstrap_samples": config.bootstrap_samples,
    }
    path = spec.output_dir / PREREGISTRATION_FILE
    registered = read_json(path)
    if registered is None:
        write_atomic(path, to_json(current))
        return
    # Compared as JSON text: the file has no tuples, and 1 and 1.0 differ.
    changed = [
        key
        for key in current
        if key not in registered or to_json({"": current[key]}) != to_json({"": registered[key]})
    ]
    if changed:
        raise ConfigError(
            "\n".join(
                f"{path}: {key}: differs from the value preregistered before the first run; "
                f"fix: restore it, or write {folder_key}={free_folder(spec.output_dir)}"
                for key in changed
            )
        )


@dataclass
class BenchmarkRunner:
    """Runs the stages of a benchmark, each run in a process of its own."""

    spec: BenchmarkSpec
    console: Console
    stop: StopRequest
    reuse_from: Path | None = None
    """An earlier run whose policy, reward model and judge become the shared stages of the first seed."""
    folder_key: str = "output_dir"
    """The key that names the folder."""
    isolate_failures: bool = False
    """A run that fails does not stop the others."""
    shared_dirs: dict[Path, int] = field(default_factory=dict)
    """Folder of shared stages -> their seed."""

    def run(self) -> dict[str, Any]:
        """Run all stages, and return the content of benchmark.json."""
        spec = self.spec
        trials = [trial for method in spec.config.methods for trial in spec.tuning_specs(method)]
        untuned_runs = spec.run_specs()
        # Tuned settings are not known yet: with trials, the folders of the runs are checked after tuning.
        self._refuse_foreign_dirs(trials)
        self._refuse_foreign_dirs(untuned_runs if not trials else [])
        num_stages = 3 + bool(trials)
        self.fit_shared([*trials, *untuned_runs], num_stages)
        tuning_results: dict[str, Any] = {}
        if trials:
            jobs = [self._make_job(trial, is_trial=True) for trial in trials]
            exit_codes = self._run_jobs("tuning", 2, num_stages, jobs)
            tuning_results = select_trials(spec, exit_codes)
            write_atomic(spec.output_dir / "tuning.json", to_json(tuning_results))
        runs = spec.run_specs(selected_settings(tuning_results))
        self.run_all(runs, "runs", num_stages - 1, num_stages)
        return self._write_report(runs, tuning_results, num_stages)

    def fit_shared(self, run_specs: Sequence[RunSpec], num_stages: int) -> None:
        """Fit policy, reward model and judge of these runs, once per seed and configuration."""
        self._run_jobs("shared", 1, num_stages, self._shared_jobs(run_specs))

    def run_all(self, run_specs: Sequence[RunSpec], name: str, index: int, num_stages: int) -> dict[str, int]:
        """Run what is not complete of these runs; run folder -> exit code of every run that has one.

        Raises:
            ConfigError: A folder belongs to another benchmark; nothing was started.
            ParetuneError: A run failed, unless failures are isolated.
        """
        self._refuse_foreign_dirs(run_specs)
        return self._run_jobs(name, index, num_stages, [self._make_job(run) for run in run_specs])

    def log_file(self, run_spec: RunSpec) -> Path:
        """The output of a run."""
        return self.spec.output_dir / "logs" / f"{self._job_name(run_spec)}.log"

    def _write_report(
        self, run_specs: list[RunSpec], tuning_results: dict[str, Any], num_stages: int
    ) -> dict[str, Any]:
        output_dir = self.spec.output_dir
        self.console.start_stage("report", num_stages, num_stages)
        costs: list[CostRow] = benchmark_costs(self.spec, run_specs, self.shared_dirs)
        # One row per line: to_json indents.
        lines = "".join(to_json(row).replace("\n ", "").replace("\n", "") + "\n" for row in costs)
        write_atomic(output_dir / "costs.jsonl", lines)
        results = benchmark_results(self.spec, run_specs, costs, tuning_results)
        write_atomic(output_dir / "benchmark.json", to_json(results))
        page = write_benchmark_report(output_dir)
        self.console.log(f"\n{benchmark_table(results)}\n")
        self.console.finish_stage(str(page))
        return results

    def _run_jobs(self, name: str, index: int, total: int, jobs: list[Job]) -> dict[str, int]:
        """Run the jobs that are not complete; run folder -> exit code of every job that has one."""
        pending = [job for job in jobs if not _is_complete(job)]
        self.console.start_stage(name, index, total)
        num_complete = len(jobs) - len(pending)

        def on_progress(num_finished: int, message: str) -> None:
            self.console.progress(num_complete + num_finished, len(jobs), message)

        codes = JobRunner(self.spec.config.num_processes, self.stop, on_progress).run_all(pending)
        self.stop.raise_if_stopped(f"the stage {name}")
        before = f", {num_complete} of them complete before" if num_complete else ""
        self.console.finish_stage(f"{len(jobs)} {'run' if len(jobs) == 1 else 'runs'}{before}")
        run_dirs = {job.label: str(job.run_dir) for job in jobs}
        stopped = {str(job.run_dir): EXIT_TRAINING_GUARD for job in jobs if _stopped_by_guard(job)}
        return {run_dirs[label]: code for label, code in codes.items()} | stopped

    def _shared_jobs(self, run_specs: Iterable[RunSpec]) -> list[Job]:
        """One job per seed and per configuration of initial policy, reward model and judge."""
        jobs = {}
        for spec in run_specs:
            shared_dir = self._shared_dir(spec)
            if shared_dir not in jobs:
                self.shared_dirs[shared_dir] = spec.seed
                run = spec.config.run.model_copy(update={"output_dir": str(shared_dir)})
                config = spec.config.model_copy(update={"run": run})
                recipe = self._write_recipe(shared_dir.name, resolved_yaml(config))
                jobs[shared_dir] = Job(
                    label=f"shared stages of seed {spec.seed}",
                    cli_args=("run", str(recipe), "--until", "judge", *self._reused(spec)),
                    run_dir=shared_dir,
                    log_file=self.spec.output_dir / "logs" / f"{shared_dir.name}.log",
                )
        return list(jobs.values())

    def _make_job(self, run_spec: RunSpec, *, is_trial: bool = False) -> Job:
        run_dir = Path(run_spec.config.run.output_dir)
        name = self._job_name(run_spec)
        recipe = self._write_recipe(name, resolved_yaml(run_spec.config))
        needs_judge_scores = is_trial and tuned_by_judge(self.spec)
        until = ("--until", JUDGED_TRIAL if needs_judge_scores else TRIAL) if is_trial else ()
        return Job(
            label=f"{run_spec.method} {run_dir.name}" if is_trial else run_spec.label,
            cli_args=("run", str(recipe), "--reuse-from", str(self._shared_dir(run_spec)), *until),
            run_dir=run_dir,
            log_file=self.log_file(run_spec),
            allow_guard_exit=is_trial,
            may_fail=self.isolate_failures,
            needs_judge_scores=needs_judge_scores,
        )

    def _job_name(self, run_spec: RunSpec) -> str:
        return "-".join(Path(run_spec.config.run.output_dir).relative_to(self.spec.output_dir).parts)

    def _reused(self, run_spec: RunSpec) -> tuple[str, ...]:
        """Options that reuse an earlier run, which has one seed; the stages of other seeds are fitted."""
        if self.reuse_from is None or run_spec.seed != self.spec.config.seeds[0]:
            return ()
        return ("--reuse-from", str(self.reuse_from))

    def _shared_dir(self, run_spec: RunSpec) -> Path:
        # 12 hex digits of the key keep the name short; the full key is checked when stages are reused.
        return self.spec.output_dir / "shared" / f"seed-{run_spec.seed}-{reuse_key(run_spec.resolved)[:12]}"

    def _write_recipe(self, name: str, text: str) -> Path:
        """Write the complete recipe of one run, which reproduces the run on its own."""
        path = self.spec.output_dir / "recipes" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"# Made by paretune: every key and its origin.\n{text}")
        return path

    def _refuse_foreign_dirs(self, run_specs: Iterable[RunSpec]) -> None:
        """Refuse run folders that belong to another benchmark, before anything is started."""
        problems = []
        for run_spec in run_specs:
            config = run_spec.resolved.config  # as the run itself hashes it
            try:
                run_hash = config_hash(config, without=EVALUATION_SECTIONS)
                check_resumable(Path(config.run.output_dir), run_hash, resolved_yaml(config))
            except ConfigError as error:
                problems.append(str(error).partition("; fix: ")[0])
        if problems:
            fix = f"write {self.folder_key}={free_folder(self.spec.output_dir)}, or remove this folder"
            raise ConfigError("\n".join(f"{problem}; fix: {fix}" for problem in problems))


def _is_complete(job: Job) -> bool:
    """Whether the run finished, or is a trial that a training guard stopped."""
    run_info: Mapping[str, Any] = read_json(job.run_dir / "run.json") or {}
    scored = has_judge_scores(job.run_dir) or not job.needs_judge_scores
    return (run_info.get("status") == "done" and scored) or _stopped_by_guard(job)


def _stopped_by_guard(job: Job) -> bool:
    run_info: Mapping[str, Any] = read_json(job.run_dir / "run.json") or {}
    return (
        job.allow_guard_exit
        and run_info.get("status") == "failed"
        and run_info.get("exit_code") == EXIT_TRAINING_GUARD
    )
