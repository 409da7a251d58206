"""One optimiser step has the same gradient for every cut into micro-batches."""

from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.training.microbatch import padded_microbatch_indices

quick = settings(max_examples=60, deadline=None, derandomize=True)


@quick
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    budget=st.integers(1, 200),
    grouped=st.booleans(),
    data=st.data(),
)
def test_every_row_once_within_the_budget_and_groups_whole(lengths, budget, grouped, data):
    group = [data.draw(st.integers(0, 4)) for _ in lengths] if grouped else None
    parts = padded_microbatch_indices(lengths, budget, group)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    for part in parts:
        units = {row if group is None else group[row] for row in part}
        tokens = len(part) * max(lengths[row] for row in part)
        assert tokens <= budget or len(units) == 1
        if group is not None:
            assert all(row in part for row in range(len(lengths)) if group[row] in units)


def test_a_generous_budget_makes_one_part_and_the_longest_rows_come_first():
    assert padded_microbatch_indices([3, 9, 5], 1000) == [[0, 1, 2]]
    assert padded_microbatch_indices([3, 9, 5], 9) == [[1], [2], [0]]
    assert padded_microbatch_indices([], 10) == []
