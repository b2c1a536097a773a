"""What a cross-validation says of new places: by its own folds, or by others next to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.data.test_folds import places
from tests.data.test_splits import dataset
from tests.messages import mentions

from efficientnetv2.data.folds import assign_folds
from efficientnetv2.evaluation.generalization import (
    PROBE,
    NewPlaceEstimate,
    SplitComparison,
    TrainDistance,
    fold_train_distance,
    new_place_estimate,
)
from efficientnetv2.metrics.confidence_intervals import Difference

FIGURES = ("macro_f1", "top1")
NETWORKS = "the trained models"
FAR = TrainDistance("place", 40, 0, 43.7)


def beside(low: float, high: float = 0.2, what: str = NETWORKS) -> SplitComparison:
    """Random folds are better by 0.1, which may be ``low`` to ``high``."""
    return SplitComparison(
        what,
        dict.fromkeys(FIGURES, 0.9),
        dict.fromkeys(FIGURES, 0.8),
        dict.fromkeys(FIGURES, Difference(0.1, low, high)),
    )


@pytest.mark.parametrize("low", [0.05, -0.05])
def test_by_place_the_figure_is_that_of_new_places_whatever_random_folds_reach(low):
    found = new_place_estimate("place", [beside(low)], FAR)
    assert found.verdict == "That is what is measured here."
    assert mentions(found.text, beside(low).sentence(), "5", "44")
    assert new_place_estimate("place", [], FAR).verdict == "That is what is measured here."


def test_neighbors_across_the_border_of_a_block_are_counted():
    """Two images 1 km apart, on two sides of the meridian where blocks of a degree meet; the others lie alone."""
    latitude, longitude = [0.5, 0.5, 10.5, 10.5, 20.5, 20.5], [0.9955, 1.0045, 0.5, 5.5, 0.5, 5.5]
    data = dataset([0, 1] * 3, latitude=latitude, longitude=longitude)
    parts = [(np.flatnonzero(np.arange(6) % 2 != side), np.flatnonzero(np.arange(6) % 2 == side)) for side in (0, 1)]
    near = fold_train_distance(data, parts)
    assert (near.known, near.near) == (6, 2)
    found = new_place_estimate("place", [], near)
    assert found.verdict == "That is measured here in part."
    assert mentions(found.text, "2", "6", "33.3", "5")
    assert found.known
    mostly = new_place_estimate("place", [], replace(near, near=4))
    assert (mostly.verdict, mostly.known) == ("Not measured.", False)
    hardly = new_place_estimate("place", [], replace(near, known=101))
    assert (hardly.verdict, hardly.known) == ("That is what is measured here, except for 2 images.", True)
    assert "2 images of 101" in hardly.text
    assert "Larger blocks" not in hardly.text
    assert new_place_estimate("place", [], replace(near, known=100)).verdict == "That is measured here in part."


def test_each_fold_is_asked_what_its_own_network_learnt():
    """At random each has a neighbor that taught; by place none, for the places lie 300 km from each other."""
    data, contents = dataset(np.tile([0, 1, 0, 1], 20), **places(80)), np.arange(80)
    dealt = {by: assign_folds(data, k=4, seed=0, contents=contents, by=by) for by in ("class", "place")}
    found = {
        by: fold_train_distance(data, [(part.train_rows, part.val_rows) for part in one.parts])
        for by, one in dealt.items()
    }
    assert found["place"].near == 0 < found["class"].near
    assert found["place"].known == found["class"].known == 80
    assert fold_train_distance(dataset([0, 1]), [(np.array([0]), np.array([1]))]) is None


def test_otherwise_the_comparison_says_how_it_would_be_in_new_places():
    worse = new_place_estimate("class", [beside(0.05)], None)
    assert (worse.verdict, worse.text, worse.known) == ("Worse.", beside(0.05).sentence(), True)
    alike = beside(-0.05, 0.01)
    assert new_place_estimate("class", [alike], FAR) == NewPlaceEstimate(
        "No worse beyond chance.", alike.sentence(), known=True
    )


@pytest.mark.parametrize(
    ("what", "verdict"),
    [(PROBE, "Not measured for the model; the probe is not conclusive."), (NETWORKS, "Too few images.")],
)
def test_too_few_pictures_are_no_assurance(what, verdict):
    """Of -0.05 to +0.15 a loss of 0.15 is as possible as none."""
    found = new_place_estimate("class", [beside(-0.05, 0.15, what)], FAR)
    assert (found.verdict, found.known) == (verdict, False)
    assert "(-5.0 to +15.0)" in found.text


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.05, 0.2, "Not measured for the model; the probe is worse there."),
        (-0.05, 0.01, "Not measured for the model; the probe is no worse there beyond chance."),
        (-0.05, 0.15, "Not measured for the model; the probe is not conclusive."),
    ],
)
def test_what_the_probe_loses_in_new_places_is_not_taken_for_the_network_s(low, high, verdict):
    """On our own land cover the probe loses ten points in new places, three trained networks a fold less than two."""
    asked = beside(low, high, PROBE)
    found = new_place_estimate("class", [asked], FAR)
    assert (found.verdict, found.known) == (verdict, False)
    assert found.text.startswith(asked.sentence())
    assert found.text.endswith("train with both rules of folds:")
    assert found.command == "effnetv2 crossval DATA --compare-splits"
    trained = new_place_estimate("class", [beside(low, high), asked], FAR)
    assert trained.text == beside(low, high).sentence(), "where networks were compared, they answer"


@pytest.mark.parametrize(
    ("what", "whose"), [(PROBE, "the metrics of the trained model"), ("the trained models", "the metrics")]
)
def test_it_is_a_figure_of_the_network_that_is_quoted(what, whose):
    said = beside(0.05, 0.2, what).sentence()
    assert mentions(said, what)
    assert mentions(said, whose, "location")


def test_figures_that_are_better_by_place_are_not_called_alike():
    better = Difference(-0.03, -0.05, -0.01)
    found = replace(beside(0.0), difference=dict.fromkeys(FIGURES, better))
    assert not found.is_optimistic
    assert found.sentence().startswith(
        "Random folds are not optimistic: metrics of the trained models are higher by location"
    )
    assert "differ only within chance" not in found.sentence()
    assert new_place_estimate("class", [found], FAR).verdict == "No worse beyond chance."


def test_what_is_not_measured_says_so_and_what_is_known():
    assert new_place_estimate("class", [], None) is None, "of images without places and groups it is no question"
    near = new_place_estimate("class", [], TrainDistance("place", 40, 10, 9.1))
    assert mentions(near.text, "10", "40", "25.0", "5")
    assert near.command == "effnetv2 crossval DATA --by place"
    new = new_place_estimate("group", [], TrainDistance("group", 40, 0))
    assert (new.verdict, new.about) == ("These are new groups.", "groups")
    assert new.text == "No image is of a group with training images."
    assert not new.known, "groups are no places"
    parted = new_place_estimate("auto", [], TrainDistance("group", 40, 10))
    assert (parted.verdict, parted.command) == ("Not measured.", None)
    period = new_place_estimate("time", [], None)
    assert (period.verdict, period.about) == ("That is what is measured here.", "period")
    assert period.text.startswith("Each model predicted the period that follows")


@pytest.mark.parametrize(
    ("by", "groups", "verdict"),
    [
        ("class", None, "These are new locations."),
        ("group", TrainDistance("group", 40, 0), "These are new locations and groups."),
        ("time", None, "These are new locations."),
        ("time", TrainDistance("group", 40, 4), "Not measured."),
    ],
)
def test_pictures_that_lie_apart_are_new_places_by_whatever_rule(by, groups, verdict):
    found = new_place_estimate(by, [], replace(FAR, groups=groups))
    assert (found.verdict, found.known) == (verdict, verdict != "Not measured.")
    assert mentions(found.text, "44")
    assert found.command is None or verdict == "Not measured."
