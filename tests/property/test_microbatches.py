"""Micro-batches contain every row once, respect the token limit and keep groups together."""

from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.training.microbatch import padded_microbatch_indices

quick = settings(max_examples=60, deadline=None, derandomize=True)


@quick
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    max_tokens=st.integers(1, 200),
    grouped=st.booleans(),
    data=st.data(),
)
def test_micro_batches_cover_rows_once_within_the_limit_with_whole_groups(lengths, max_tokens, grouped, data):
    group = [data.draw(st.integers(0, 4)) for _ in lengths] if grouped else None
    microbatches = padded_microbatch_indices(lengths, max_tokens, group)
    assert sorted(row for microbatch in microbatches for row in microbatch) == list(range(len(lengths)))
    for microbatch in microbatches:
        units = {row if group is None else group[row] for row in microbatch}
        tokens = len(microbatch) * max(lengths[row] for row in microbatch)
        assert tokens <= max_tokens or len(units) == 1
        if group is not None:
            assert all(row in microbatch for row in range(len(lengths)) if group[row] in units)


def test_a_large_limit_gives_one_micro_batch_and_longest_rows_come_first():
    assert padded_microbatch_indices([3, 9, 5], 1000) == [[0, 1, 2]]
    assert padded_microbatch_indices([3, 9, 5], 9) == [[1], [2], [0]]
    assert padded_microbatch_indices([], 10) == []
