"""Adapters by their singular values, against numbers of numpy."""

import pytest
import torch
from cases import Case, cases

from paretune.models.lora_svd import svd_factors


@pytest.mark.parametrize("case", cases("essa_lora_svd"))
def test_lora_svd_matches_numpy(case: Case) -> None:
    """Only what is added moves, so other ways to give new values are turned into what they add."""
    scaling, mode = case.params["scaling"], case.params["mode"]
    factors = {}
    for key in ("A", "B"):
        part, given = svd_factors(case.input(key)), case.input(f"new_{key.lower()}")
        case.check(part.s, case.expected[f"S_{key}"])
        now = part.s[: len(given)]
        offset = {"add": given, "replace": given - now, "scale": (given - 1) * now}[mode]
        case.check(torch.cat([now + offset, part.s[len(given) :]]), case.expected[f"S_{key}_new"])
        factors[key] = (part.reconstruct(torch.zeros(0, dtype=torch.float64)), part.reconstruct(offset))
    for i, (delta, values) in enumerate((("delta_w0", "sv_delta_w0"), ("delta_w", "sv_delta_w"))):
        product = scaling * factors["B"][i] @ factors["A"][i]
        case.check(product, case.expected[delta])
        case.check(torch.linalg.svdvals(product), case.expected[values])
