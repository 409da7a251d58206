import moocore
import numpy as np
import pytest

from paretune.core.errors import DataError
from paretune.core.pareto import hypervolume, nondominated


@pytest.mark.parametrize("table", [[1.0, 2.0], [[1.0, np.nan]], [[np.inf, 0.0]]])
def test_points_must_be_a_table_of_finite_numbers(table):
    with pytest.raises(DataError, match=r"numbers of shape|finite"):
        nondominated(np.array(table))


def test_reference_point_must_have_one_number_per_objective():
    with pytest.raises(DataError, match=r"shape \(3,\), but the points have 2 objectives"):
        hypervolume(np.array([[1.0, 2.0]]), np.zeros(3))


def test_points_below_the_reference_point_contribute_nothing():
    points = np.array([[1.0, 2.0], [-1.0, 9.0], [0.0, 9.0]])
    assert hypervolume(points, np.zeros(2)) == 2.0
    assert hypervolume(points[:0], np.zeros(2)) == 0.0


def test_duplicates_are_kept_or_reduced_to_the_first():
    points = np.array([[1.0, 1.0], [0.0, 0.5], [1.0, 1.0]])
    assert nondominated(points).tolist() == [True, False, True]
    assert nondominated(points, "first").tolist() == [True, False, False]


def test_one_objective_has_the_maximum_as_its_front():
    points = np.array([[1.0], [3.0], [2.0]])
    assert nondominated(points).tolist() == [False, True, False]
    assert hypervolume(points, np.array([0.5])) == 2.5


@pytest.mark.parametrize("num_objectives", [2, 3, 4, 5])
def test_hypervolume_of_random_fronts_equals_moocore_and_inclusion_exclusion(num_objectives):
    rng = np.random.default_rng(num_objectives)
    for num_points in (1, 5, 9):
        points, corner = rng.normal(size=(num_points, num_objectives)), np.full(num_objectives, -1.0)
        volume = hypervolume(points, corner)
        assert volume == pytest.approx(moocore.hypervolume(-points, -corner), rel=1e-12)
        # The union of the boxes between the corner and each point: alternating sums over all subsets.
        total = 0.0
        for subset in range(1, 2**num_points):
            chosen = points[[i for i in range(num_points) if subset >> i & 1]]
            box = np.prod(np.maximum(chosen.min(0) - corner, 0.0))
            total += box if len(chosen) % 2 else -box
        assert volume == pytest.approx(total, rel=1e-9, abs=1e-12)
