"""From prompts to a Pareto front without a recipe: two functions and a classifier as rewards, and GRPO."""

import tempfile
from pathlib import Path

from tiny import save_tiny_classifier, tiny_policy

import paretune as pt

folder = Path(tempfile.mkdtemp())
prompts = [f"Customer {i} writes: where is my order?" for i in range(24)]


def brief(completions: list, **columns: object) -> list[float]:
    """Fewer characters are better."""
    return [-len(text) / 10 for text in completions]


def vowels(completions: list, **columns: object) -> list[float]:
    """Share of vowels."""
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]


path = save_tiny_classifier(folder / "classifier")
calm = pt.scorers.classifier(path, label="angry", invert=True, name="calm")
short = pt.scorers.rule("length", unit="characters", target=4, name="brief")
points = {}
for weight in (0.2, 0.8):
    weights = {"brief": 1 - weight, "vowels": weight, "calm": 0.1}
    algorithm = pt.algorithms.grpo(weights, num_generations=4, max_new_tokens=12)
    result = pt.align(
        tiny_policy(),
        scorers=[brief, vowels, calm],
        prompts=prompts[:16],
        algorithm=algorithm,
        output_dir=folder / f"vowels-{weight}",
        max_steps=2,
        prompts_per_step=2,
        learning_rate=3e-3,
    )
    evaluation = pt.evaluate(
        result.initial_policy,
        result.policy,
        judges=[short, vowels],
        rewards=result.scorers,
        prompts=prompts[16:],
        max_new_tokens=12,
        bootstrap_samples=200,
    )
    print(f"weight {weight} of vowels\n{evaluation}\n")
    points[weight] = [each["after"] for each in evaluation.results["objectives"].values()]

front = pt.pareto_front(list(points.values()))
print("on the Pareto front:", [weight for weight, best in zip(points, front, strict=True) if best])
