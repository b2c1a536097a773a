"""Error-adjusted areas: the example of the paper, a simulation, and errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from tests.messages import mentioning

from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.area import Estimate, adjusted_areas

# Olofsson et al. (2014), Table 8: sample counts by mapped class (rows) and true class (columns), and the mapped pixels
# of 30 m.
NAMES = ("deforestation", "forest gain", "stable forest", "stable non-forest")
COUNTS = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]
PIXELS = [200_000, 150_000, 3_200_000, 6_450_000]
HECTARES = 10_000_000 * 0.09


def test_example_of_the_paper():
    """Section 5: 21,158 ± 6,158 ha of deforestation. Accuracies to the printed digits."""
    found = adjusted_areas(COUNTS, PIXELS, NAMES)
    lost = found.classes["deforestation"].share
    assert lost.value * HECTARES == pytest.approx(21_158, abs=1)
    assert lost.margin * HECTARES == pytest.approx(6_158, abs=1)
    assert (round(found.accuracy.value, 2), round(found.accuracy.margin, 2)) == (0.95, 0.02)
    users = [found.classes[name].users_accuracy for name in NAMES]
    assert [(round(one.value, 2), round(one.margin, 2)) for one in users] == [
        (0.88, 0.07), (0.73, 0.10), (0.93, 0.04), (0.96, 0.02),
    ]  # fmt: skip
    producers = [found.classes[name].producers_accuracy.value for name in NAMES]
    assert [round(one, 2) for one in producers] == [0.75, 0.85, 0.93, 0.96]


def test_margins_equal_those_of_resampling():
    """Areas and producer's accuracies: 1.96 standard deviations of 20,000 redrawn samples of each stratum."""
    found = adjusted_areas(COUNTS, PIXELS, NAMES)
    rng = np.random.default_rng(0)
    weight = np.array(PIXELS) / sum(PIXELS)
    joint = np.stack(
        [
            w * rng.multinomial(sum(row), np.array(row) / sum(row), size=20_000) / sum(row)
            for w, row in zip(weight, COUNTS, strict=True)
        ],
        axis=1,
    )  # (draws, mapped, true)
    true = joint.sum(axis=1)
    producers = joint.diagonal(axis1=1, axis2=2) / true
    for k, name in enumerate(NAMES):
        one = found.classes[name]
        assert one.share.margin == pytest.approx(1.96 * true[:, k].std(), rel=0.03)
        # A ratio: its variance is an approximation for large samples.
        assert one.producers_accuracy.margin == pytest.approx(1.96 * producers[:, k].std(), rel=0.15)


@given(
    st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=3, max_size=3),
    st.lists(st.integers(1, 10_000), min_size=3, max_size=3),
)
def test_area_fractions_sum_to_one(counts, mapped):
    counts = np.array(counts) + 2 * np.eye(3, dtype=int)
    found = adjusted_areas(counts, mapped, "abc")
    assert sum(one.share.value for one in found.classes.values()) == pytest.approx(1)
    assert sum(one.mapped for one in found.classes.values()) == pytest.approx(1)
    for one in found.classes.values():
        assert 0 <= one.share.value <= 1


def test_map_without_errors_is_its_own_estimate():
    found = adjusted_areas(np.diag([10, 20]), [30, 70], "ab")
    assert [one.share.value for one in found.classes.values()] == [0.3, 0.7]
    assert found.accuracy.value == 1


def test_intervals_have_95_percent_coverage():
    """A map that misses a fifth of a rare class, sampled a thousand times, mostly where the class is missed."""
    rng = np.random.default_rng(0)
    truth = np.array([[0.04, 0.02], [0.01, 0.93]])  # fractions of the area: rows mapped, columns true
    weight = truth.sum(axis=1)
    covered, biased = 0, 0
    for _ in range(1000):
        counts = np.array([rng.multinomial(n, row / row.sum()) for n, row in zip((100, 1500), truth, strict=True)])
        share = adjusted_areas(counts, weight, ("rare", "rest")).classes["rare"].share
        covered += abs(share.value - truth[:, 0].sum()) <= share.margin
        biased += abs(share.value - weight[0]) <= share.margin
    assert 0.92 <= covered / 1000 <= 0.98
    assert biased < covered  # pixel counts give 0.06 for a true area of 0.05


def test_mapped_class_without_samples_is_named():
    with pytest.raises(InputError, match=mentioning("forest gain", "50")):
        adjusted_areas([[66, 0], [1, 0]], [1, 1], ("deforestation", "forest gain"))


def test_class_not_on_the_map_needs_no_samples():
    found = adjusted_areas([[9, 1], [0, 0]], [10, 0], ("a", "b")).classes["b"]
    assert found.users_accuracy is None
    assert found.share.value == pytest.approx(0.1)
    assert found.producers_accuracy is not None
    assert found.producers_accuracy.value == 0


def test_thousands_of_classes_give_the_results_of_the_used_classes():
    """The largest number of classes of a map: a dense matrix would be 34 GB."""
    names = [f"class {k}" for k in range(65_535)]
    met = np.array([7, 900, 21_000, 65_534])
    rows, columns = (met[places] for places in np.nonzero(np.array(COUNTS)))
    mapped = np.zeros(len(names))
    mapped[met] = PIXELS
    many = adjusted_areas(
        coo_array((np.array(COUNTS)[np.nonzero(COUNTS)], (rows, columns)), shape=(len(names),) * 2), mapped, names
    )
    few = adjusted_areas(COUNTS, PIXELS, NAMES)
    assert many.accuracy == few.accuracy
    assert [many.classes[names[k]] for k in met] == list(few.classes.values())
    assert list(many.classes) == names
    assert many.classes["class 8"].share == Estimate(0.0, 0.0)
