"""A whole comparison: shared stages, tuning trials, runs, numbers, page. The same call again goes on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paretune.compare.jobs import GUARD, Job, Worker
from paretune.compare.ledger import Row, rows
from paretune.compare.numbers import numbers_of
from paretune.compare.tuning import by_judge, chosen, judged, settings_of
from paretune.config import config_hash, resolved
from paretune.config.contest import Contest, Entry
from paretune.errors import ConfigError
from paretune.files import read_json, to_json, write_atomic
from paretune.foreign import refuse_foreign
from paretune.learn.stop import StopRequest
from paretune.lock import Lock
from paretune.report.versus import versus_table, write_versus
from paretune.stages.console import Console, make_console
from paretune.stages.shared import shared_key
from paretune.stages.trial import JUDGED

DECLARED = "declared.json"
"""What was written down before the first run, and cannot be changed after it."""


def conduct(contest: Contest, console: Console | None = None) -> dict[str, Any]:
    """Make every run that is not complete, and return the numbers of compare.json.

    Raises:
        ConfigError: The folder holds another comparison, or the ranking was refused: then everything is
            written all the same.
        ParetuneError: A run failed.
        Stopped: SIGTERM came; it was passed on, and every run under way has a checkpoint.
    """
    console = console or make_console()
    contest.folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(contest.folder, "")
    try:
        declare(contest)
        with console, StopRequest() as stop:
            found = _Conduct(contest, console, stop).whole()
    finally:
        lock.release()
    return found


def declare(contest: Contest) -> None:
    """Write down what a comparison promises before its first run, or hold it to what it promised.

    Raises:
        ConfigError: It says something else now.
    """
    said = contest.said
    now = {
        "schema": "paretune/declared/1",
        "budget": said.budget.model_dump(),
        "reference": said.reference,
        "tuning": said.tuning.declared() if said.tuning else None,
        "level": said.level,
        "draws": said.draws,
    }
    path = contest.folder / DECLARED
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
class _Conduct:
    contest: Contest
    console: Console
    stop: StopRequest
    shared: dict[Path, int] = field(default_factory=dict)
    """Folder of stages that were made once -> their seed."""

    def whole(self) -> dict[str, Any]:
        contest = self.contest
        trials = [trial for method in contest.said.methods for trial in contest.tried(method)]
        kept = contest.runs()
        self._refuse_others(trials)
        self._refuse_others(kept if not trials else [])
        stages = 3 + bool(trials)
        self._stage("shared", 1, stages, self._shared_jobs([*trials, *kept]))
        tuned: dict[str, Any] = {}
        if trials:
            codes = self._stage("tuning", 2, stages, [self._job(trial, trial=True) for trial in trials])
            tuned = chosen(contest, codes)
            write_atomic(contest.folder / "tuning.json", to_json(tuned))
        entries = contest.runs(settings_of(tuned))
        self._refuse_others(entries)
        self._stage("runs", stages - 1, stages, [self._job(entry) for entry in entries])
        return self._report(entries, tuned, stages)

    def _report(self, entries: list[Entry], tuned: dict[str, Any], stages: int) -> dict[str, Any]:
        folder = self.contest.folder
        self.console.open("report", stages, stages)
        ledger: list[Row] = rows(self.contest, entries, self.shared)
        lines = "".join(to_json(row).replace("\n ", "").replace("\n", "") + "\n" for row in ledger)
        write_atomic(folder / "ledger.jsonl", lines)
        found = numbers_of(self.contest, entries, ledger, tuned)
        write_atomic(folder / "compare.json", to_json(found))
        path = write_versus(folder)
        self.console.say(f"\n{versus_table(found)}\n")
        self.console.close(str(path))
        return found

    def _stage(self, name: str, index: int, of: int, jobs: list[Job]) -> dict[str, int]:
        """Work off the jobs that are not complete; folder -> exit code of every one."""
        left = [job for job in jobs if not _complete(job)]
        self.console.open(name, index, of)
        done = len(jobs) - len(left)

        def tell(ended: int, line: str) -> None:
            self.console.progress(done + ended, len(jobs), line)

        codes = Worker(self.contest.said.jobs, self.stop, tell).work_off(left)
        self.stop.obey(f"the stage {name}")
        known = f", {done} of them complete before" if done else ""
        self.console.close(f"{len(jobs)} {'run' if len(jobs) == 1 else 'runs'}{known}")
        folders = {job.label: str(job.folder) for job in jobs}
        failed = {str(job.folder): GUARD for job in jobs if _stopped_itself(job)}
        return {folders[label]: code for label, code in codes.items()} | failed

    def _shared_jobs(self, entries: Iterable[Entry]) -> list[Job]:
        """One job for each seed and each way of making policy, reward and judge."""
        found = {}
        for entry in entries:
            folder = self._made(entry)
            if folder not in found:
                self.shared[folder] = entry.seed
                e = entry.experiment
                elsewhere = e.model_copy(update={"run": e.run.model_copy(update={"folder": str(folder)})})
                recipe = self._recipe(folder.name, resolved(elsewhere))
                found[folder] = Job(
                    label=f"seed-{entry.seed} for all",
                    arguments=("run", str(recipe), "--until", "judge"),
                    folder=folder,
                    log=self.contest.folder / "logs" / f"{folder.name}.log",
                )
        return list(found.values())

    def _job(self, entry: Entry, *, trial: bool = False) -> Job:
        e = entry.experiment
        folder = Path(e.run.folder)
        name = "-".join(folder.relative_to(self.contest.folder).parts)
        asked = trial and by_judge(self.contest)
        more = ("--until", JUDGED if asked else "trial") if trial else ()
        return Job(
            label=f"{entry.method} {folder.name}" if trial else entry.label,
            arguments=(
                "run",
                str(self._recipe(name, resolved(e))),
                "--shared",
                str(self._made(entry)),
                *more,
            ),
            folder=folder,
            log=self.contest.folder / "logs" / f"{name}.log",
            may_fail=trial,
            judged=asked,
        )

    def _made(self, entry: Entry) -> Path:
        return self.contest.folder / "shared" / f"seed-{entry.seed}-{shared_key(entry.experiment)[:12]}"

    def _recipe(self, name: str, text: str) -> Path:
        """The recipe of one run, whole, so that the run can be made alone."""
        path = self.contest.folder / "recipes" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"# Made by paretune compare; every key and where it comes from.\n{text}")
        return path

    def _refuse_others(self, entries: Iterable[Entry]) -> None:
        """Refuse, before anything is made, what a folder of this name holds of another comparison."""
        wrong = []
        for entry in entries:
            e = entry.experiment
            try:
                refuse_foreign(Path(e.run.folder), config_hash(e), resolved(e))
            except ConfigError as error:
                wrong.append(str(error))
        if wrong:
            raise ConfigError("\n".join(wrong))


def _complete(job: Job) -> bool:
    """Whether the run is over: for good, or, of a trial, because training stopped itself."""
    book: Mapping[str, Any] = read_json(job.folder / "run.json") or {}
    whole = judged(job.folder) or not job.judged
    return (book.get("status") == "done" and whole) or _stopped_itself(job)


def _stopped_itself(job: Job) -> bool:
    book: Mapping[str, Any] = read_json(job.folder / "run.json") or {}
    return job.may_fail and book.get("status") == "failed" and book.get("exit_code") == GUARD
