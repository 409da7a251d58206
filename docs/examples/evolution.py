"""Evolution strategies: the parts, offsets of singular values, and the progress of two strategies.

python docs/examples/evolution.py
"""

import torch
from small import block, table
from torch import Tensor

from paretune.algorithms.evolution import essa
from paretune.models.lora_svd import svd_factors, trainable_count
from paretune.rl.evolution.search import CmaES, IsotropicES, SearchStrategy, centered_ranks


def parts() -> None:
    """The spec, as `paretune check` prints it."""
    block("parts")
    print("\n".join(essa({"polite": 1.0, "safety": 1.0}).describe()))


def offsets() -> None:
    """B = diag(3, 1), A = diag(2, 1): offsets of the largest singular value of each."""
    block("offsets")
    b, a = (
        svd_factors(torch.diag(torch.tensor([3.0, 1.0]))),
        svd_factors(torch.diag(torch.tensor([2.0, 1.0]))),
    )
    rows: list[list[object]] = []
    for left, right in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (-4.0, 0.0)):
        product = b.reconstruct(torch.tensor([left])) @ a.reconstruct(torch.tensor([right]))
        rows.append([f"B {left:+g}, A {right:+g}", *(f"{x:g}" for x in product.diagonal().tolist())])
    table(("offset", "first", "second"), rows)


def sizes() -> None:
    """Layers times 4 projections times 2 factors times the searched values."""
    block("sizes")
    rows: list[list[object]] = []
    for layers, rank, fraction in ((28, 8, 1.0), (28, 2, 1.0), (28, 32, 0.1), (64, 8, 1.0), (80, 4, 1.0)):
        rows.append(
            [str(layers), str(rank), f"{fraction:g}", str(layers * 4 * 2 * trainable_count(rank, fraction))]
        )
    table(("layers", "rank", "fraction", "N"), rows)


def progress() -> None:
    """Fitness is the negative squared distance from (1, ..., 1), without and with noise of std 1."""
    block("progress")
    strategies: dict[str, SearchStrategy] = {
        "cma": CmaES(population_size=16),
        "isotropic": IsotropicES(population_size=16),
    }
    rows: list[list[object]] = []
    for name, strategy in strategies.items():
        for noise in (0.0, 1.0):
            search, distances = strategy.init_state(10, 0.1), [10.0]
            rng = torch.Generator().manual_seed(0)
            for generation in range(100):
                x = search.ask(0, generation)
                error = noise * torch.randn(len(x), generator=rng, dtype=torch.float64)
                search.tell(_fitness(x) + error)
                if generation in {9, 29, 99}:
                    distances.append(-float(_fitness(search.mean)))
            rows.append([f"{name}, noise {noise:g}", *(f"{x:.3f}" for x in distances), f"{search.sigma:.3f}"])
    table(("distance^2 after", "0", "10", "30", "100", "sigma"), rows)


def ties() -> None:
    """Ranks of six candidates with ties."""
    block("ties")
    for fitness in ([0.1, 0.5, 0.3, 0.9, 0.2, 0.7], [0.0, 1.0, 0.0, 1.0, 1.0, 0.0], [0.5] * 6):
        ranks = ", ".join(f"{x:g}" for x in centered_ranks(torch.tensor(fitness)).tolist())
        print(f"{fitness}: {ranks}")


def _fitness(x: Tensor) -> Tensor:
    return -((x - 1) ** 2).sum(-1)


def main() -> None:
    """Print the numbers of the page."""
    parts()
    offsets()
    sizes()
    progress()
    ties()


if __name__ == "__main__":
    main()
