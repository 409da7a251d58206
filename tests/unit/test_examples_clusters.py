"""The examples for SLURM and Kubernetes: their syntax, and that commands and recipes in them exist."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from paretune.cli import app
from paretune.config.shipped import bundled_recipes

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
SLURM = sorted((EXAMPLES / "slurm").glob("*.sbatch"))
KUBERNETES = sorted((EXAMPLES / "kubernetes").glob("*.yaml"))


def check_command(words: list[str], name: str) -> None:
    """The words after `paretune` are a command and a recipe, that of the file's name."""
    assert words[0] in get_command(app).commands
    assert words[1] in bundled_recipes()
    assert words[1] == name


def test_there_are_examples() -> None:
    assert {path.stem for path in SLURM} == {"paper-0.5b", "paper-7b", "paper-14b"}
    assert {path.stem for path in KUBERNETES} == {"paper-0.5b", "paper-7b"}


@pytest.mark.parametrize("path", SLURM, ids=lambda path: path.stem)
def test_slurm(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", path], check=False, capture_output=True).returncode == 0
    (command,) = re.findall(r"paretune ([^'\n]+)", text)
    check_command(command.split(), path.stem)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.M))
    assert {"requeue", "signal"} <= options.keys()
    assert re.search(r'"\$code" -eq 75 \]; then\s+scontrol requeue "\$SLURM_JOB_ID"', text)
    num_gpus = {"paper-0.5b": 1, "paper-7b": 8, "paper-14b": 64}[path.stem]
    if num_gpus > 1:
        assert int(options["nodes"]) * int(options["ntasks-per-node"]) == num_gpus
        for name in (
            "RANK=$SLURM_PROCID",
            "LOCAL_RANK=$SLURM_LOCALID",
            "WORLD_SIZE=",
            "MASTER_ADDR",
            "MASTER_PORT=",
        ):
            assert name in text


@pytest.mark.parametrize("code", [0, 2, 75])
def test_slurm_requeues_on_75_only(tmp_path: Path, code: int) -> None:
    """With stand-ins for srun and scontrol that write down how they were called."""
    for name, body in (("srun", f"exit {code}"), ("scontrol", f'echo "$@" >> {tmp_path}/calls')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a,b"}
    environment |= {"SLURM_NTASKS": "8"}
    script = EXAMPLES / "slurm" / "paper-7b.sbatch"
    done = subprocess.run(["bash", script], check=False, env=environment, capture_output=True)
    assert done.returncode == code
    calls = (tmp_path / "calls").read_text().splitlines()
    assert ("requeue 7" in calls) == (code == 75)


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_kubernetes(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    (job,) = [document for document in documents if document["kind"] == "Job"]
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a podFailurePolicy needs it
    (container,) = pod["containers"]
    rules = {
        tuple(rule["onExitCodes"]["values"]): rule
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert rules[75,]["action"] == "Ignore"
    assert rules[2, 3, 4]["action"] == "FailJob"
    assert all(rule["onExitCodes"]["containerName"] == container["name"] for rule in rules.values())
    words = " ".join(container["command"]).split("paretune ", 1)[1].split()
    check_command(words, path.stem)
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    if spec.get("completionMode") == "Indexed":
        variables = {each["name"]: each["value"] for each in container["env"]}
        assert int(variables["WORLD_SIZE"]) == spec["completions"] == spec["parallelism"]
        service = next(document for document in documents if document["kind"] == "Service")
        assert service["metadata"]["name"] == pod["subdomain"]
        assert variables["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
        assert "RANK=$JOB_COMPLETION_INDEX" in " ".join(container["command"])
