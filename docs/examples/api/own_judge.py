"""A judge of one's own: a scorer with an identity, so that a report can say whether it is independent."""

from collections.abc import Sequence

import torch

import paretune as pt

GREETINGS = ("hello", "hi", "good morning", "welcome")


class Greeting:
    """How many of the first 20 characters a greeting takes, at most 1."""

    names = ("greeting",)
    identity = "greetings of the support team, version 3"
    """Two scorers of one identity are not independent of each other."""

    def __call__(self, samples: Sequence) -> torch.Tensor:
        """Scores [B, 1]."""
        starts = [sample.response[:20].lower() for sample in samples]
        found = [max((len(word) for word in GREETINGS if word in start), default=0) for start in starts]
        return torch.tensor([[min(length / 5, 1.0)] for length in found])


if __name__ == "__main__":
    from tiny import tiny_policy

    prompts = [f"Customer {i} writes: hello" for i in range(12)]
    result = pt.evaluate(
        tiny_policy(seed=0),
        tiny_policy(seed=1),
        judges={
            "the support team": Greeting(),
            "short": pt.scorers.rule("length", max=8),
        },
        prompts=prompts,
        max_new_tokens=8,
        bootstrap_samples=200,
    )
    for name, row in result.results["objectives"].items():
        print(name, "judged by", row["judge"], "- independent" if row["independent"] else "- not independent")
