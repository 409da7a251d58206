"""Prove that a refactoring changes no number: record a fixed set of short runs, compare two recordings.

    python proofs/same_numbers.py record --out FILE [--edition first|second] [--only PATTERN] [--folder DIR]
    python proofs/same_numbers.py compare OLD NEW [--keys FILE]

`record` runs the paretune that is importable, single threaded: every algorithm on the toy task, a short demo,
a short run on real data, and a small comparison of two methods. Addresses of the values:

    RUN|metrics|folder|stage|step|key     every value of every metrics.jsonl
    RUN|counts|folder|stage|step|key      what timing.jsonl counts: tokens, calls, FLOPs; not clock and memory
    RUN|json|folder|file.path.of.keys     numbers, booleans and nulls of evaluations, reports and comparisons
    RUN|weights|folder|model/tensor       SHA-256 of type, shape and bytes of every tensor

Strings, times, memory, paths, versions and hashes of configurations are left out.

`compare` translates the addresses of OLD by a table (default: same_numbers_keys.json beside this file) of
sections runs, folders, stages, metrics (counts too), json and weights, each {old pattern: new pattern}, and
expected, {address pattern: reason}. In a pattern `{name}` stands for one part of a key (parts end at "." in
json, at "/" elsewhere), `{name...}` for any text; a json pattern also renames everything below it. The rules
of a section are applied one after the other, in the order of the file. The patterns of `expected` are matched
like file names (`*`) against addresses in new names. The exit code is 1 if a value differs or is missing on
one side and that is not expected, or if a run failed. `--keys ''` compares without a table.
"""

import argparse
import fnmatch
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial, reduce
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1")  # before torch is imported

Values = Mapping[str, Any]
Tensors = Mapping[str, Mapping[str, Any]]
"""Name of a model -> its tensors by name."""

KEYS = Path(__file__).with_name("same_numbers_keys.json")
# ======== EDITION "first": the names of commit 0736d53 ========


class First:
    """Everything that depends on the names used by the code of commit 0736d53.

    Modules are imported by name, as text, so that tools which rename identifiers leave this class alone.
    """

    program = "from paretune.cli import main; main()"
    metrics_file, counts_file = "metrics.jsonl", "timing.jsonl"
    stage_key, step_key, incumbent = "stage", "step", "offsets"
    clock_keys = "seconds|sample|score|measure|learn|save|idle|(device_)?memory|tokens_per_second/.*"
    json_left_out = "seconds|(peak_)?(device_)?memory"
    json_files = """eval=eval/final/eval.json compare=compare.json
        reward=reward/report.json judge=judge/report.json"""
    weight_files = """policy=policy/model.safetensors reward=reward/model/model.safetensors
        judge=judge/model/model.safetensors final=final/model.safetensors
        adapter=final/adapter/adapter_model.safetensors checkpoint=checkpoints/step-*/weights.safetensors
        optimizer=checkpoints/step-*/optimizer.safetensors"""  # the last file that matches
    renamed: ClassVar[dict[str, str]] = {}  # regular expression -> text, for the commands and the comparison
    folder_hash = r"-[0-9a-f]{12}(?=/|$)"  # in names of folders, depends on the text of the configuration

    # Arguments of commands; {a,b} stands for both, as in a shell, and SHARED for the shared folder.
    demo = """run demo run.folder=run run.threads=1 run.steps=8 run.checkpoint_every=4
        learn.prompts=6 learn.lr=1e-3 algorithm.n=4 algorithm.max_new=32 evaluate.n=1 evaluate.draws=2000
        data.world.prompts=80 data.world.test_prompts=40 data.world.rated=320 data.world.demonstrations=2000
        {policy.sft,reward.fit}.{epochs=1,batch=16}"""
    real = """run real-small run.folder=run run.threads=1 run.steps=4 run.checkpoint_every=2
        data.root=SHARED/data policy.path=SHARED/models/dialogue-7m
        learn.prompts=4 learn.lr=3e-4 algorithm.n=4 algorithm.max_new=16 evaluate.n=1 evaluate.draws=2000
        reward.fit.epochs=1 {reward,judge}.fit.batch=16
        data.prompts.{harmful,benign,lookalike}.most=40 data.test.{harmful,benign,lookalike}.most=8
        reward.{,test_}ratings.{politeness,safety,topical,persona,chitchat,assistant}.{most=8,max_tokens=96}
        reward.{,test_}pairs.{harmless,helpful}.{most=8,max_tokens=96}
        judge.{,test_}ratings.toxicity.{most=8,max_tokens=96}
        judge.{,test_}pairs.{detoxified,overall,scenarios}.{most=8,max_tokens=96}
        judge.{,test_}pairs.{safer,feedback,instructions}.{most=8,max_tokens=96}"""
    comparison = """
name: same-numbers
folder: comparison
recipe: demo
seeds: [0, 1]
budget: {currency: reward_calls, amount: 64}
methods:
  grpo: ['algorithm={name: grpo, n: 4, max_new: 24, kl: 0.04}']
  ppo_max: ['algorithm={name: ppo_max, max_new: 24, critic_alone: 1}', learn.prompts=16]
set: [policy.lora.r=4, policy.sft.epochs=1, reward.fit.epochs=1, learn.prompts=4, learn.lr=1e-3,
  run.threads=1, data.world.prompts=60, data.world.test_prompts=24, data.world.rated=200,
  data.world.demonstrations=800, evaluate.n=1, evaluate.draws=1000]
reference: {politeness: 0, meaningfulness: 0, actionability: 0, safety: 0}
draws: 500
"""

    def experiments(self) -> dict[str, Callable[[Path], Tensors]]:
        """Name -> what trains something in an empty folder and returns tensors that no file of it holds."""
        names = import_module("paretune.algorithms").ALGORITHMS
        commands = {"demo": self.demo, "real-small": self.real, "compare": "compare comparison.yaml"}
        return {f"algorithm/{name}": partial(self.run_toy, name) for name in names} | {
            name: partial(self.run_command, arguments) for name, arguments in commands.items()
        }

    def run_command(self, arguments: str, folder: Path) -> Tensors:
        """One command in the folder, which holds the file of the comparison."""
        comparison, words = replaced(self.comparison, self.renamed), expanded(arguments)
        (folder / "comparison.yaml").write_text(comparison, encoding="utf-8")
        command([self.program, *(replaced(word, self.renamed) for word in words)], folder)
        return {}

    def run_toy(self, name: str, folder: Path) -> Tensors:
        """One algorithm on the toy task, made and trained by the helpers of the tests."""
        sys.path.insert(0, str(checkout() / "tests"))
        battery, evolving, toy = map(import_module, ("battery", "evolving", "toy"))
        if name == "essa":
            world = evolving.fitted(folder / "fit")
            state, _ = evolving.searched(folder / "run", world=world, steps=4)
            return {
                "policy": world.models.policy.state_dict(),
                "search": {"offsets": getattr(state, self.incumbent)},
            }
        recipe = battery.recipe_of(name)
        world = battery.world_of(recipe, folder)
        toy.trained(folder / "run", world, recipe, steps=6, every=3)
        models = {"policy": world.models.policy, "critic": world.models.critic, **world.models.frozen}
        return {role: model.state_dict() for role, model in models.items() if model is not None}


# ======== EDITION "second": the names after the refactoring ========


class Second(First):
    """The names after the refactoring: keys of commands by the section `commands` of the table."""

    clock_keys = "seconds|rollout|score|model_passes|update|checkpoint|other|peak_.*|tokens_per_second/.*"
    json_files = """eval=eval/final/eval.json compare=benchmark.json
        reward=reward/report.json judge=judge/report.json"""
    weight_files = First.weight_files.replace("policy/model", "sft/model")
    incumbent = "incumbent"
    renamed: ClassVar[dict[str, str]] = json.loads(KEYS.read_text(encoding="utf-8"))["commands"]


# ======== Nothing below depends on names that change ========

EDITIONS = {"first": First, "second": Second}
SHOWN = 40  # groups of addresses printed of every list; the counts are always those of the whole list


def checkout() -> Path:
    """The folder of the checkout whose package is imported."""
    import paretune

    return Path(paretune.__file__).resolve().parents[2]


def replaced(text: str, rules: Mapping[str, str]) -> str:
    """The text after all replacements of regular expressions."""
    return reduce(lambda result, rule: re.sub(*rule, result), rules.items(), text)


def expanded(text: str) -> Iterator[str]:
    """The words of a text, those with {a,b} in them once for every choice."""
    shared = os.environ.get("PARETUNE_SHARED", str(checkout().parent / "shared"))
    for word in text.split():
        parts = [part.split(",") for part in re.split(r"[{}]", word)]
        yield from ("".join(choice).replace("SHARED", shared) for choice in itertools.product(*parts))


def command(arguments: list[str], folder: Path) -> None:
    """Run a Python program with arguments in a process of its own, with the package that is imported here."""
    environment = {**os.environ, "PYTHONPATH": str(checkout() / "src")}
    line = [sys.executable, "-c", *arguments]
    result = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"exit code {result.returncode}: {(result.stdout + result.stderr)[-2000:]}")


def record(out: Path, edition_name: str, only: str, root: Path) -> int:
    """Run the experiments in folders below `root` and write their numbers; 1 if one of them failed."""
    import torch

    torch.set_num_threads(1)
    edition = EDITIONS[edition_name]()
    print(f"package {checkout()}, edition {edition_name}, runs in {root}", flush=True)
    values: dict[str, Any] = {}
    failed, seconds = dict[str, str](), dict[str, float]()
    for name, experiment in edition.experiments().items():
        if not fnmatch.fnmatchcase(name, only):
            continue
        folder, begin = root / name, time.monotonic()
        folder.mkdir(parents=True)
        torch.manual_seed(0)
        try:
            pairs = list(harvest(name, folder, edition, experiment(folder)))
            if len(dict(pairs)) < len(pairs):
                raise RuntimeError("two values have one address")
            values.update(pairs)
        except Exception as error:
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {error}"
        seconds[name] = round(time.monotonic() - begin, 1)
        print(f"{name:26} {seconds[name]:6.1f} s, {len(values)} values so far", flush=True)
    print(f"{counted(values)}, {sum(seconds.values()):.0f} s, {len(failed)} failed -> {out}")
    content = {"edition": edition_name, "seconds": seconds, "failed": failed, "values": values}
    out.write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")
    return min(len(failed), 1)


def counted(addresses: Iterable[str]) -> str:
    """How many runs and values there are, and how many of every kind."""
    heads = [address.split("|", 2)[:2] for address in addresses]
    kinds = [kind for _, kind in heads]
    each = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return f"{len({run for run, _ in heads})} runs, {len(heads)} values ({each})"


def harvest(run: str, folder: Path, edition: First, tensors: Tensors) -> Iterator[tuple[str, Any]]:
    """Address and value of every number that a run wrote, and of the tensors that it returned."""
    from safetensors.torch import load_file

    for model, state in tensors.items():
        yield from hashes(f"{run}|weights||{model}", state)
    for path in sorted([folder, *folder.rglob("*")]):
        name = re.sub(edition.folder_hash, "", path.relative_to(folder).as_posix())
        yield from lines(path / edition.metrics_file, f"{run}|metrics|{name}", edition, "")
        yield from lines(path / edition.counts_file, f"{run}|counts|{name}", edition, edition.clock_keys)
        for label, file in labelled(edition.json_files):
            if (path / file).is_file():
                content = json.loads((path / file).read_text(encoding="utf-8"))
                yield from leaves(content, f"{run}|json|{name}|{label}", edition.json_left_out)
        for label, pattern in labelled(edition.weight_files):
            for file in sorted(path.glob(pattern))[-1:]:
                yield from hashes(f"{run}|weights|{name}|{label}", load_file(file))


def labelled(text: str) -> list[list[str]]:
    """Label and path of every word of a text of label=path."""
    return [word.split("=") for word in text.split()]


def lines(path: Path, head: str, edition: First, left_out: str) -> Iterator[tuple[str, Any]]:
    """The values of a file with one JSON object a line."""
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        line = json.loads(text)
        head_of_line = f"{head}|{line.pop(edition.stage_key)}|{line.pop(edition.step_key)}"
        for key, value in line.items():
            if not re.fullmatch(left_out, key):
                yield f"{head_of_line}|{key}", value


def leaves(node: Any, head: str, left_out: str) -> Iterator[tuple[str, Any]]:
    """Address and value of every number, boolean and null; a key with a dot in it is quoted."""
    if isinstance(node, dict | list):
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node):
            if not re.fullmatch(left_out, str(key)):
                yield from leaves(inner, f'{head}."{key}"' if "." in str(key) else f"{head}.{key}", left_out)
    elif not isinstance(node, str):
        yield head, node


def hashes(head: str, state: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """SHA-256 of type, shape and bytes of every tensor."""
    import torch

    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        yield f"{head}/{name}", digest.hexdigest()


FIELDS = {  # kind -> the sections of the table that translate the parts of an address; "-": none does
    "metrics": ("runs", "-", "folders", "stages", "-", "metrics"),
    "counts": ("runs", "-", "folders", "stages", "-", "metrics"),
    "json": ("runs", "-", "folders", "json"),
    "weights": ("runs", "-", "folders", "weights"),
}
PLACEHOLDER = re.compile(r"\{(\w+)(\.\.\.)?\}")


class Table:
    """The table of renamed keys, and which of its rules were of use."""

    def __init__(self, content: Mapping[str, Mapping[str, str]]) -> None:
        if unknown := set(content) - {"commands", "expected", *itertools.chain(*FIELDS.values())}:
            raise SystemExit(f"the table has unknown sections: {', '.join(sorted(unknown))}")
        if not all(reason.strip() for reason in content.get("expected", {}).values()):
            raise SystemExit("the table expects something without a reason")
        self.content = content
        self.unused = {
            (section, old) for section, rules in content.items() if section != "commands" for old in rules
        }

    def translate(self, address: str) -> str:
        """An address in new names."""
        fields = FIELDS[address.split("|", 2)[1]]
        parts = address.split("|", len(fields) - 1)
        for index, section in enumerate(fields):
            for old, new in self.content.get(section, {}).items():
                if match := pattern_of(old, section).fullmatch(parts[index]):
                    self.unused.discard((section, old))
                    text = PLACEHOLDER.sub(lambda hole, values=match: values[hole[1]], new)
                    parts[index] = text + (match.groupdict().get("below__") or "")
        return "|".join(parts)

    def reason(self, address: str) -> str:
        """Why a difference at this place is expected; "" if it is not."""
        for pattern, reason in self.content.get("expected", {}).items():
            if fnmatch.fnmatchcase(address, pattern):
                self.unused.discard(("expected", pattern))
                return reason
        return ""


@cache
def pattern_of(text: str, section: str) -> re.Pattern[str]:
    """The regular expression of a pattern with placeholders."""
    one = r'(?:"[^"]*"|[^."]+)' if section == "json" else "[^/]+"
    pieces = [re.escape(piece) for piece in PLACEHOLDER.sub("\0", text).split("\0")]
    for index, (name, dots) in enumerate(PLACEHOLDER.findall(text), 1):
        pieces[index] = f"(?P<{name}>{'.*' if dots else one}){pieces[index]}"
    return re.compile("".join(pieces) + (r"(?P<below__>(?:\..*)?)" if section == "json" else ""))


def compare(old_path: Path, new_path: Path, table: Table) -> int:
    """Print what differs between two recordings; 1 if anything does that is not expected."""
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (old_path, new_path))
    before, after = dict[str, Any](), new["values"]
    for address, value in old["values"].items():
        name = table.translate(address)
        if name in before:
            raise SystemExit(f"the table gives two values of OLD one new address: {name}")
        before[name] = value
    both = [name for name in before if name in after]
    lists = {
        "different": [name for name in both if repr(before[name]) != repr(after[name])],
        "only in OLD": [name for name in before if name not in after],
        "only in NEW": [name for name in after if name not in before],
    }
    print(f"compared: {counted(both)}; {len(both) - len(lists['different'])} identical")
    wrong = sum(show(title, names, before, after, table) for title, names in lists.items())
    numbers = [n for n in lists["different"] if {type(before[n]), type(after[n])} <= {int, float}]
    absolute = {name: abs(before[name] - after[name]) for name in numbers}
    relative = {name: absolute[name] / max(abs(before[name]), abs(after[name]), 1e-300) for name in numbers}
    for word, apart in (("absolute", absolute), ("relative", relative)):
        if apart:
            print(f"largest {word} difference: {max(apart.values()):.6g} at {max(apart, key=apart.get)}")
    failed = [f"failed: {run}: {why}" for side in (old, new) for run, why in side["failed"].items()]
    notes = [f"note: no value matches {old} of {section}" for section, old in sorted(table.unused)]
    bad = bool(wrong or failed or not both)
    print(*failed, *notes, "NOT THE SAME" if bad else "the same", sep="\n")
    return int(bad)


def is_expected(reason: str, old: Any, new: Any) -> bool:
    """Whether a difference has a reason, and is within the relative bound it states ("at most 1e-6: ...")."""
    bound = re.match(r"at most (\S+): ", reason or "")
    if not bound:
        return bool(reason)
    return abs(old - new) <= float(bound[1]) * max(abs(old), abs(new))


def show(title: str, names: list[str], before: Values, after: Values, table: Table) -> int:
    """Print one list of addresses with their values; how many of them are not expected."""
    wrong = [name for name in names if not is_expected(table.reason(name), before.get(name), after.get(name))]
    reasons = [table.reason(name) for name in names if name not in set(wrong)]
    print(f"{title}: {len(wrong)}" + (f", and {len(reasons)} expected" if reasons else ""))
    alike: dict[str, list[str]] = {}
    for name in wrong:
        alike.setdefault(re.sub(r"\d+", "#", name.partition("|")[2]), []).append(name)
    for first, *others in list(alike.values())[:SHOWN]:
        more = f" (and {len(others)} that differ in run or number)" if others else ""
        print(f"  {first}: {before.get(first, '-')!r} -> {after.get(first, '-')!r}{more}")
    if len(alike) > SHOWN:
        print(f"  ... and {len(alike) - SHOWN} more such groups")
    for reason in dict.fromkeys(reasons):
        print(f"  expected, {reasons.count(reason)} values: {reason}")
    return len(wrong)


def main() -> int:
    """Read the command line and do what it says."""
    words = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=words)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run everything and write the numbers")
    recording.add_argument("--out", type=Path, required=True)
    recording.add_argument("--edition", choices=EDITIONS, default="second", help="whose names the code has")
    recording.add_argument("--only", default="*", help="only runs of this name, such as 'algorithm/*'")
    recording.add_argument("--folder", type=Path, help="keep the run folders in this new folder")
    comparing = commands.add_parser("compare", help="compare two recordings")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    comparing.add_argument("--keys", default=str(KEYS), help="the table of renamed keys; '' for none")
    given = parser.parse_args()
    if given.command == "record":
        with tempfile.TemporaryDirectory(prefix="same-numbers-") as temporary:
            return record(given.out, given.edition, given.only, (given.folder or Path(temporary)).resolve())
    content = json.loads(Path(given.keys).read_text(encoding="utf-8")) if given.keys else {}
    return compare(given.old, given.new, Table(content))


if __name__ == "__main__":
    sys.exit(main())
