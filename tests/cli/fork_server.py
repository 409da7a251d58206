"""Imports everything once, then forks a process per command: imports take most of the time of a tiny run.

Reads a line of JSON per command; prints the process id, and its exit code when it has ended.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from importlib import import_module
from types import SimpleNamespace

IMPORTED = (
    "paretune.benchmark.run",
    "paretune.experiment.pipeline",
    "paretune.worlds.helpdesk.model",
    "paretune.worlds.helpdesk.world",
    "nltk.stem.porter",
    "nltk.translate.meteor_score",
    "peft",
    "pyarrow.dataset",
    "scipy.stats",
    "sklearn.linear_model",
    "sklearn.pipeline",
    "sklearn.preprocessing",
    "transformers.models.llama.modeling_llama",
)


class Forked:
    """A job of a benchmark as a fork of the benchmark's process: as much of `Popen` as that needs."""

    def __init__(self, command, *, stdin, stdout, stderr):
        from paretune.benchmark.processes import CLI_COMMAND

        assert (stdin, stderr) == (subprocess.DEVNULL, subprocess.STDOUT)
        assert tuple(command[: len(CLI_COMMAND)]) == CLI_COMMAND
        self.returncode = None
        # What waits to be written would be written by both.
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            run_program(command[len(CLI_COMMAND) :], stdout.fileno(), stdout.fileno())

    def _wait(self, how):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def poll(self):
        return self._wait(os.WNOHANG)

    def wait(self):
        return self._wait(0)

    def terminate(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def run_program(arguments, stdout, stderr):
    """Run the command line with these file descriptors, and end this process."""
    from paretune.cli import main

    code = 1
    try:
        for at, file in enumerate((os.open(os.devnull, os.O_RDONLY), stdout, stderr)):
            os.dup2(file, at)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        sys.argv[1:] = arguments
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def import_all():
    """What a run imports, so that no fork has to; the jobs of a benchmark become forks."""
    for name in IMPORTED:
        import_module(name)
    # A killed process loses nothing that it wrote; only a power failure does.
    os.fsync = lambda descriptor: None
    processes = import_module("paretune.benchmark.processes")
    processes.subprocess = SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)


def serve():
    for line in sys.stdin:
        said = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.chdir(said["cwd"])
            files = (os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in said["files"])
            run_program(said["arguments"], *files)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


# A run with several processes imports this file in each of them.
if __name__ == "__main__":
    import_all()
    serve()
