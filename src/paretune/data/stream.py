"""Which prompts a step gets: a function of (seed, step), so that a resumed run reads on where it stopped."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from paretune.chance import numpy_generator
from paretune.data.records import Prompt


@dataclass(frozen=True)
class PromptStream:
    """Prompts of several pools, mixed by share, shuffled anew in every pass.

    A pass holds as many prompts as all pools together; a pool with a small share is not used up in one pass
    and goes on where it stopped in the next; one with a large share is repeated. A share that comes to less
    than half a prompt of a pass comes to none: `quotas` says so.
    """

    pools: tuple[tuple[Prompt, ...], ...]
    shares: tuple[float, ...]
    size: int
    """Prompts a step."""
    seed: int

    def __post_init__(self) -> None:
        assert all(self.pools)
        assert all(share > 0 for share in self.shares)

    def __call__(self, step: int) -> tuple[Prompt, ...]:
        """The prompts of one step."""
        every = [prompt for pool in self.pools for prompt in pool]
        first = step * self.size
        places = range(first, first + self.size)
        return tuple(every[self._pass(place // len(every))[place % len(every)]] for place in places)

    def quotas(self) -> tuple[int, ...]:
        """How many prompts of a pass each pool gives."""
        return _quotas(tuple(len(pool) for pool in self.pools), self.shares)

    def drawn(self, steps: int) -> tuple[int, ...]:
        """How many prompts each pool gives in so many steps."""
        ends = list(accumulate(len(pool) for pool in self.pools))
        if not ends:
            return ()
        passes, rest = divmod(steps * self.size, ends[-1])
        begun = Counter(bisect_right(ends, i) for i in self._pass(passes)[:rest])
        return tuple(passes * quota + begun[k] for k, quota in enumerate(self.quotas()))

    def _pass(self, number: int) -> Sequence[int]:
        return _mixed(tuple(len(pool) for pool in self.pools), self.shares, number, self.seed)


@lru_cache(maxsize=4)
def _mixed(sizes: tuple[int, ...], shares: tuple[float, ...], number: int, seed: int) -> tuple[int, ...]:
    """Prompt numbers of one pass, in order."""
    picked: list[int] = []
    for k, (size, quota) in enumerate(zip(sizes, _quotas(sizes, shares), strict=True)):
        offset = sum(sizes[:k])
        for place in range(number * quota, (number + 1) * quota):
            order = _order(size, place // size, k, seed)
            picked.append(offset + order[place % size])
    shuffle = numpy_generator(seed, number, "mix prompts").permutation(len(picked))
    return tuple(picked[i] for i in shuffle)


def _quotas(sizes: tuple[int, ...], shares: tuple[float, ...]) -> tuple[int, ...]:
    """Prompts of each pool in a pass."""
    total, whole = sum(sizes), sum(shares)
    ends = [round(total * sum(shares[: k + 1]) / whole) for k in range(len(sizes))]
    return tuple(end - begin for begin, end in zip([0, *ends], ends, strict=False))


@lru_cache(maxsize=64)
def _order(size: int, turn: int, pool: int, seed: int) -> tuple[int, ...]:
    """The order in which one pool is read in its turn-th reading."""
    return tuple(numpy_generator(seed, turn, "order prompts", pool).permutation(size).tolist())
