"""Prove that an over-optimized training is flagged, and that a checkpoint near its best one is kept.

    python proofs/selection.py [FOLDER] [SEED ...]

The help desk with a planted bias: raters prefer long responses by far, nothing holds the policy back, and
the training reward rises to the end while the true scores fall. A policy and a biased reward model are fitted
once; then every seed trains on it, evaluates every few steps on held-out prompts, and keeps a step. The
weights of all evaluated steps are put aside, and the ground truth scores their responses to the test prompts,
which chose nothing. The first seed trains again with early stopping. The exit code is 1 if anything does not
hold.
"""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from paretune.config import load_config
from paretune.evaluate.generate import generate, prompt_clusters
from paretune.evaluate.selection import SelectionSpec, prompt_gains, scaled_changes
from paretune.evaluate.statistics import simultaneous_intervals
from paretune.experiment import align, pipeline
from paretune.experiment.console import PlainConsole
from paretune.experiment.dry_run import check_run
from paretune.experiment.resolved import resolve
from paretune.experiment.step_evaluation import StepEvaluations, step_folder
from paretune.models.load import ModelSpec, load_policy
from paretune.models.sharding import copy_full
from paretune.rollout.sampler import LocalSampler
from paretune.run.folder import read_json, read_jsonl
from paretune.training.checkpoint import load_latest_checkpoint
from paretune.worlds import get_world

MAX_STEPS, EVAL_STEPS, EVAL_PROMPTS, PATIENCE, TOLERANCE = 32, 4, 192, 2, 0.9
RECIPE = """\
name: planted
data:
  world: {num_prompts: 600, num_test_prompts: 240, num_ratings: 1200, num_demonstrations: 8000, num_raters: 2,
          rater_noise: 0.1, length_bias: 0.35, missing_rate: 0.3}
policy:
  path: world
  sft: {num_train_epochs: 2, learning_rate: 5e-3, batch_size: 32}
reward:
  objectives: {politeness: {}, meaningfulness: {}, actionability: {}, safety: {}}
  training: {num_train_epochs: 4, learning_rate: 2e-3, batch_size: 32}
judge: ground_truth
objectives: {politeness: {}, meaningfulness: {}, actionability: {}, safety: {}}
algorithm: {name: grpo, num_generations: 8, max_new_tokens: 64, kl_coef: 0.0}
training: {learning_rate: 2e-4, prompts_per_step: 8}
run: {max_steps: 32, save_steps: 8, num_threads: 1}
evaluate: {num_generations: 1}
"""


def settings(base: Path, folder: Path, seed: int, *more: str) -> list[str]:
    """Overrides of the alignment of one seed on the fitted policy and reward model."""
    reward = "policy.sft=null", f"policy.path={base / 'sft'}", f"reward={{path: {base / 'reward' / 'model'}}}"
    world = "data.world={num_prompts: 600, num_test_prompts: 240}"
    step = f"evaluate.eval_steps={EVAL_STEPS}", f"evaluate.eval_prompts={EVAL_PROMPTS}"
    rule = "evaluate.select_checkpoint=lower_bound"
    return [*reward, world, *step, rule, f"run.seed={seed}", f"run.output_dir={folder}", *more]


def true_gains(recipe: Path, overrides: list[str], base: Path, folder: Path) -> dict[int, dict[str, Any]]:
    """Step -> true gain on the test prompts, and the objectives that the ground truth shows to be worse."""
    config = load_config(recipe, overrides)
    prompts = check_run(resolve(config)).dataset.test_prompts
    policy = load_policy(ModelSpec(path=str(base / "sft"), device="cpu"))
    weights, names = dict(policy.model.named_parameters()), tuple(config.objectives)
    spec = SelectionSpec(weights=config.final_weights)

    def scores() -> dict[str, Any]:
        out = generate(LocalSampler(policy, names), prompts, max_new_tokens=64, seed=77)
        scorer = get_world().scorer()
        judged = scorer(out.samples).double().numpy()
        return {name: judged[:, [scorer.names.index(name)]] for name in names}

    before, gains = scores(), {}
    for step in range(EVAL_STEPS, MAX_STEPS + 1, EVAL_STEPS):
        stored = load_latest_checkpoint(folder / "checkpoints" / "candidates" / step_folder(step), print)
        assert stored is not None
        copy_full(stored.load_tree("weights"), weights)
        changes = scaled_changes(spec, before, scores())
        gain = simultaneous_intervals(prompt_gains(spec, changes)[:, None], clusters=prompt_clusters(prompts))
        each = simultaneous_intervals(changes, clusters=prompt_clusters(prompts))
        gains[step] = {
            "gain": float(gain.mean[0]),
            "low": float(gain.low[0]),
            "high": float(gain.high[0]),
            "changes": dict(zip(names, each.mean.tolist(), strict=True)),
            "worse": [name for name, high in zip(names, each.high, strict=True) if high < 0],
        }
    return gains


def prove_seed(recipe: Path, base: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Train one seed to the end, and compare the kept step with the truly best one."""
    overrides, start = settings(base, folder, seed), time.time()
    pipeline.run_pipeline(load_config(recipe, overrides), PlainConsole())
    selection = read_json(folder / "eval" / "selection.json")
    final = read_json(folder / "eval" / "final" / "eval.json")
    assert selection is not None
    assert final is not None
    truth = true_gains(recipe, overrides, base, folder)
    best = max(truth, key=lambda step: truth[step]["gain"])
    kept = selection["selected_step"]
    return {
        "seed": seed,
        "flagged": any(text.startswith("Over-optimized") for text in final["warnings"]),
        "turning_step": selection["turning_step"],
        "kept": kept,
        "best": best,
        "kept_is_worse_in": truth[kept]["worse"],
        "share_of_best": truth[kept]["gain"] / truth[best]["gain"],
        "true_gains": truth,
        "judged": {
            e["step"]: (e["gain"], e["low"], e["high"], e["reward_gain"]) for e in selection["evaluations"]
        },
        "minutes": (time.time() - start) / 60,
    }


def prove_stop(recipe: Path, base: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Train one seed with early stopping: the steps that it took, and what it says to have saved."""
    overrides = settings(base, folder, seed, f"evaluate.early_stopping_patience={PATIENCE}")
    pipeline.run_pipeline(load_config(recipe, overrides), PlainConsole())
    selection = read_json(folder / "eval" / "selection.json") or {}
    steps = [line for line in read_jsonl(folder / "metrics.jsonl") if line["stage"] == "align"]
    return {"steps": len(steps), "kept": selection["selected_step"], "stopping": selection["early_stopping"]}


def main(folder: Path, seeds: list[int]) -> bool:
    """Run the proof; prints one line per seed, and returns whether everything holds."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    recipe, base = folder / "recipe.yaml", folder / "base"
    recipe.write_text(RECIPE)
    if not (base / "reward" / "model").exists():
        pipeline.run_pipeline(load_config(recipe, [f"run.output_dir={base}"]), PlainConsole(), until="judge")
    # All evaluated weights are put aside here, as the truth is measured on each.
    setattr(align, "remove_candidates", lambda ctx: None)  # noqa: B010 - a name of another module
    setattr(StepEvaluations, "_drop_losers", lambda self, evaluations: None)  # noqa: B010
    results, holds = [], True
    for seed in seeds:
        result = prove_seed(recipe, base, folder / f"seed-{seed}", seed)
        results.append(result)
        holds &= result["flagged"] and result["share_of_best"] >= TOLERANCE
        print(json.dumps(result), flush=True)
        (folder / "results.json").write_text(json.dumps(results, indent=1))
        shutil.rmtree(folder / f"seed-{seed}" / "checkpoints")
    stop = prove_stop(recipe, base, folder / "early", seeds[0])
    claimed = stop["stopping"] and stop["stopping"]["saved_fraction"]
    holds &= bool(claimed) and abs(claimed - (1 - stop["steps"] / MAX_STEPS)) < 1e-9
    holds &= stop["kept"] == results[0]["kept"]
    print(json.dumps(stop), flush=True)
    num_flagged = sum(each["flagged"] for each in results)
    num_near = sum(each["share_of_best"] >= TOLERANCE for each in results)
    num_worse = sum(bool(each["kept_is_worse_in"]) for each in results)
    print(
        f"{num_flagged} of {len(seeds)} flagged; {num_near} of {len(seeds)} kept within 10 % of the largest "
        f"true gain; {num_worse} of {len(seeds)} kept a step that the truth shows to lose in an objective"
    )
    print("holds" if holds else "DOES NOT HOLD")
    return holds


if __name__ == "__main__":
    given = sys.argv[1:]
    target = Path(given[0] if given else ".venv/proof-selection")
    sys.exit(0 if main(target, [int(x) for x in given[1:]] or list(range(5))) else 1)
