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
    than half a prompt of a pass comes to none: `pool_quotas` says so.
    """

    pools: tuple[tuple[Prompt, ...], ...]
    sampling_weights: tuple[float, ...]
    prompts_per_step: int
    """Prompts a step."""
    seed: int

    def __post_init__(self) -> None:
        assert all(self.pools)
        assert all(share > 0 for share in self.sampling_weights)

    def __call__(self, step: int) -> tuple[Prompt, ...]:
        """The prompts of one step."""
        every = [prompt for pool in self.pools for prompt in pool]
        first = step * self.prompts_per_step
        places = range(first, first + self.prompts_per_step)
        return tuple(every[self._epoch_order(place // len(every))[place % len(every)]] for place in places)

    def pool_quotas(self) -> tuple[int, ...]:
        """How many prompts of a pass each pool gives."""
        return _pool_quotas(tuple(len(pool) for pool in self.pools), self.sampling_weights)

    def count_drawn(self, num_steps: int) -> tuple[int, ...]:
        """How many prompts each pool gives in so many steps."""
        ends = list(accumulate(len(pool) for pool in self.pools))
        if not ends:
            return ()
        passes, rest = divmod(num_steps * self.prompts_per_step, ends[-1])
        begun = Counter(bisect_right(ends, i) for i in self._epoch_order(passes)[:rest])
        return tuple(passes * quota + begun[k] for k, quota in enumerate(self.pool_quotas()))

    def _epoch_order(self, epoch: int) -> Sequence[int]:
        return _mix_pools(tuple(len(pool) for pool in self.pools), self.sampling_weights, epoch, self.seed)


@lru_cache(maxsize=4)
def _mix_pools(
    sizes: tuple[int, ...], sampling_weights: tuple[float, ...], epoch: int, seed: int
) -> tuple[int, ...]:
    """Prompt numbers of one pass, in order."""
    picked: list[int] = []
    for k, (size, quota) in enumerate(zip(sizes, _pool_quotas(sizes, sampling_weights), strict=True)):
        offset = sum(sizes[:k])
        for place in range(epoch * quota, (epoch + 1) * quota):
            order = _pool_permutation(size, place // size, k, seed)
            picked.append(offset + order[place % size])
    shuffle = numpy_generator(seed, epoch, "mix prompts").permutation(len(picked))
    return tuple(picked[i] for i in shuffle)


def _pool_quotas(sizes: tuple[int, ...], sampling_weights: tuple[float, ...]) -> tuple[int, ...]:
    """Prompts of each pool in a pass."""
    total, whole = sum(sizes), sum(sampling_weights)
    ends = [round(total * sum(sampling_weights[: k + 1]) / whole) for k in range(len(sizes))]
    return tuple(end - begin for begin, end in zip([0, *ends], ends, strict=False))


@lru_cache(maxsize=64)
def _pool_permutation(size: int, epoch: int, pool: int, seed: int) -> tuple[int, ...]:
    """The order in which one pool is read in its turn-th reading."""
    return tuple(numpy_generator(seed, epoch, "order prompts", pool).permutation(size).tolist())
