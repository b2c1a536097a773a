"""The estimate of a cross-validation for new locations, from its folds or from a comparison of splits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.data.test_folds import places
from tests.data.test_splits import dataset
from tests.messages import mentions

from efficientnetv2.data.folds import assign_folds
from efficientnetv2.evaluation.distribution_shift import (
    PROBE,
    NewPlaceEstimate,
    SplitComparison,
    TrainDistance,
    fold_train_distance,
    new_place_estimate,
)
from efficientnetv2.metrics.confidence_intervals import Difference

METRICS = ("macro_f1", "top1")
MODELS = "the trained models"
FAR = TrainDistance("place", 40, 0, 43.7)


def comparison(low: float, high: float = 0.2, subject: str = MODELS) -> SplitComparison:
    """Random folds are better by 0.1, with the interval ``low`` to ``high``."""
    return SplitComparison(
        subject,
        dict.fromkeys(METRICS, 0.9),
        dict.fromkeys(METRICS, 0.8),
        dict.fromkeys(METRICS, Difference(0.1, low, high)),
    )


@pytest.mark.parametrize("low", [0.05, -0.05])
def test_folds_by_place_measure_new_locations(low):
    found = new_place_estimate("place", [comparison(low)], FAR)
    assert found.verdict == "That is what is measured here."
    assert mentions(found.text, comparison(low).sentence(), "5", "44")
    assert new_place_estimate("place", [], FAR).verdict == "That is what is measured here."


def test_neighbors_across_a_block_border_are_counted():
    """Two images are 1 km apart on two sides of a block border; the other images are isolated."""
    latitude, longitude = [0.5, 0.5, 10.5, 10.5, 20.5, 20.5], [0.9955, 1.0045, 0.5, 5.5, 0.5, 5.5]
    data = dataset([0, 1] * 3, latitude=latitude, longitude=longitude)
    parts = [(np.flatnonzero(np.arange(6) % 2 != side), np.flatnonzero(np.arange(6) % 2 == side)) for side in (0, 1)]
    distance = fold_train_distance(data, parts)
    assert (distance.known, distance.near) == (6, 2)
    found = new_place_estimate("place", [], distance)
    assert found.verdict == "That is measured here in part."
    assert mentions(found.text, "2", "6", "33.3", "5")
    assert found.known
    many_near = new_place_estimate("place", [], replace(distance, near=4))
    assert (many_near.verdict, many_near.known) == ("Not measured.", False)
    few_near = new_place_estimate("place", [], replace(distance, known=101))
    assert (few_near.verdict, few_near.known) == ("That is what is measured here, except for 2 images.", True)
    assert "2 images of 101" in few_near.text
    assert "Larger blocks" not in few_near.text
    assert new_place_estimate("place", [], replace(distance, known=100)).verdict == "That is measured here in part."


def test_distance_is_to_the_training_images_of_each_fold():
    """Random folds have training images nearby. Folds by place do not: places are 300 km apart."""
    data, contents = dataset(np.tile([0, 1, 0, 1], 20), **places(80)), np.arange(80)
    assignments = {by: assign_folds(data, k=4, seed=0, contents=contents, by=by) for by in ("class", "place")}
    found = {
        by: fold_train_distance(data, [(part.train_rows, part.val_rows) for part in assignment.parts])
        for by, assignment in assignments.items()
    }
    assert found["place"].near == 0 < found["class"].near
    assert found["place"].known == found["class"].known == 80
    assert fold_train_distance(dataset([0, 1]), [(np.array([0]), np.array([1]))]) is None


def test_comparison_of_splits_estimates_new_locations():
    worse = new_place_estimate("class", [comparison(0.05)], None)
    assert (worse.verdict, worse.text, worse.known) == ("Worse.", comparison(0.05).sentence(), True)
    same = comparison(-0.05, 0.01)
    assert new_place_estimate("class", [same], FAR) == NewPlaceEstimate(
        "No worse beyond chance.", same.sentence(), known=True
    )


@pytest.mark.parametrize(
    ("subject", "verdict"),
    [(PROBE, "Not measured for the model; the probe is not conclusive."), (MODELS, "Too few images.")],
)
def test_wide_interval_is_no_evidence(subject, verdict):
    """From -0.05 to +0.15, a loss of 0.15 is as possible as no loss."""
    found = new_place_estimate("class", [comparison(-0.05, 0.15, subject)], FAR)
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
def test_comparison_of_the_probe_is_not_a_result_of_the_model(low, high, verdict):
    """On our land cover, the probe loses ten points at new locations. Three trained models per fold lose under two."""
    probe = comparison(low, high, PROBE)
    found = new_place_estimate("class", [probe], FAR)
    assert (found.verdict, found.known) == (verdict, False)
    assert found.text.startswith(probe.sentence())
    assert found.text.endswith("train with both rules of folds:")
    assert found.command == "effnetv2 crossval DATA --compare-splits"
    trained = new_place_estimate("class", [comparison(low, high), probe], FAR)
    assert trained.text == comparison(low, high).sentence(), "a comparison of the models has priority"


@pytest.mark.parametrize(
    ("subject", "metrics"), [(PROBE, "the metrics of the trained model"), ("the trained models", "the metrics")]
)
def test_sentence_names_the_compared_models(subject, metrics):
    sentence = comparison(0.05, 0.2, subject).sentence()
    assert mentions(sentence, subject)
    assert mentions(sentence, metrics, "location")


def test_wide_interval_is_not_called_chance_alone():
    """A loss of 15 points is as possible as none."""
    wide = comparison(-0.05, 0.15)
    assert mentions(wide.sentence(), "2 points", "not excluded")
    assert "only within chance" not in wide.sentence()
    assert "only within chance" in comparison(-0.05, 0.01).sentence()


def test_lower_metrics_of_random_folds_are_not_optimistic():
    better = Difference(-0.03, -0.05, -0.01)
    found = replace(comparison(0.0), difference=dict.fromkeys(METRICS, better))
    assert not found.is_optimistic
    assert found.sentence().startswith(
        "Random folds are not optimistic: metrics of the trained models are higher by location"
    )
    assert "differ only within chance" not in found.sentence()
    assert new_place_estimate("class", [found], FAR).verdict == "No worse beyond chance."


def test_unmeasured_estimate_gives_the_known_distances():
    assert new_place_estimate("class", [], None) is None, "no question without places and groups"
    near = new_place_estimate("class", [], TrainDistance("place", 40, 10, 9.1))
    assert mentions(near.text, "10", "40", "25.0", "5")
    assert near.command == "effnetv2 crossval DATA --by place"
    new_group = new_place_estimate("group", [], TrainDistance("group", 40, 0))
    assert (new_group.verdict, new_group.about) == ("These are new groups.", "groups")
    assert new_group.text == "No image is of a group with training images."
    assert not new_group.known, "groups are not places"
    known_group = new_place_estimate("auto", [], TrainDistance("group", 40, 10))
    assert (known_group.verdict, known_group.command) == ("Not measured.", None)
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
def test_distant_images_are_new_locations_for_every_rule(by, groups, verdict):
    found = new_place_estimate(by, [], replace(FAR, groups=groups))
    assert (found.verdict, found.known) == (verdict, verdict != "Not measured.")
    assert mentions(found.text, "44")
    assert found.command is None or verdict == "Not measured."
