"""A scorer of one's own: any object with `names` that returns one row of numbers per response."""

import math
from collections.abc import Sequence

import torch

import paretune as pt


class Answers:
    """1 if the response contains the answer that its prompt has in the column `answer`; NaN without one."""

    names = ("correct",)

    def __call__(self, samples: Sequence) -> torch.Tensor:
        """Scores [B, 1]."""
        answers = [sample.prompt.columns.get("answer") for sample in samples]
        pairs = zip(samples, answers, strict=True)
        return torch.tensor([[math.nan if a is None else float(a in s.response)] for s, a in pairs])


if __name__ == "__main__":
    rows = [
        {"prompt": "What is 6 x 7?", "response": "It is 42.", "answer": "42"},
        {"prompt": "What is 6 x 8?", "response": "It is 42.", "answer": "48"},
        {"prompt": "How are you?", "response": "Fine."},
    ]
    print(pt.score(Answers(), rows)["correct"].to_pylist())
