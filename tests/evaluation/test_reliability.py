"""The section on calibration and abstention says what the numbers say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from tests.messages import mentions

from efficientnetv2.evaluation import report
from efficientnetv2.evaluation.reliability import TemperatureScaling, reliability_section
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.metrics.calibration import expected_calibration_error, fit_temperature
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.metric_intervals import bootstrap_intervals
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.utils.random_key import Key


@pytest.fixture(scope="module")
def overconfident():
    """Logits three times too large of 1,500 images in 3 classes, and labels drawn from the honest ones."""
    generator = np.random.default_rng(0)
    honest = generator.normal(size=(1500, 3)) * 1.5
    cumulated = softmax(honest, axis=1).cumsum(axis=1)
    labels = (generator.random((1500, 1)) > cumulated).sum(axis=1).clip(max=2)
    return labels, 3 * honest


def test_a_temperature_fitted_elsewhere_lowers_the_error_here(overconfident):
    labels, logits = overconfident
    temperature = fit_temperature(labels[:500], logits[:500])
    before, after = softmax(logits[500:], axis=1), softmax(logits[500:] / temperature, axis=1)
    found = reliability_section(labels[500:], after, scaled=TemperatureScaling(temperature, 500, "minival", before))
    told = found.data["calibration"]
    assert told["ece"] == pytest.approx(expected_calibration_error(labels[500:], after))
    assert told["ece"] < 0.05 < 0.15 < told["ece_before"]
    assert mentions(found.calibrated, "500", "minival")
    for scale, word in ((1, "overconfident"), (9, "underconfident")):
        sure = reliability_section(labels, softmax(logits / scale, axis=1))
        assert mentions(sure.calibrated, word)
        assert mentions(sure.verdict, word)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (
            (Calibration(1.2, 60, "minival"), Calibration(1.414, 58, "minival")),
            ("2", "temperature", "1.2", "1.41", "58", "60", "minival"),
        ),
        ((None, Calibration(1.2, 60, "minival"), None), ("3", "1", "temperature", "1.2", "60", "minival")),
        ((None, None), ("temperature", "minival=0.1")),
    ],
)
def test_temperatures_of_several_networks_are_told_and_none_is_advised(members, said, overconfident):
    labels, logits = overconfident
    found = reliability_section(labels, softmax(logits, axis=1), members=members)
    assert mentions(found.calibrated, *said)
    assert ("minival=0.1" in found.calibrated) == (not any(members))
    told = found.data["calibration"].get("members", [None] * len(members))
    assert [one and (one["temperature"], one["num_fitted_images"], one["fitted_on"]) for one in told] == [
        one and (one.temperature, one.num_images, one.fitted_on) for one in members
    ]


def test_of_few_pictures_a_gap_may_be_chance():
    """Eight of ten right at 90 % each: chance does that. Eighty of a hundred is another matter, half a point none."""
    told = {
        (right, of): reliability_section(
            1 * (np.arange(of) >= right), np.tile([stated, 1 - stated], (of, 1))
        ).calibrated
        for right, of, stated in ((8, 10, 0.9), (80, 100, 0.9), (9, 10, 0.75), (800, 1000, 0.805), (0, 1, 0.6))
    }
    assert mentions(told[8, 10], "80.0", "10", "too few", "overconfident")
    assert mentions(told[80, 100], "80.0", "overconfident")
    assert "too few" not in told[80, 100]
    assert mentions(told[9, 10], "10", "too few", "underconfident")
    assert mentions(told[800, 1000], "80.0")
    assert "confident" not in told[800, 1000]
    assert mentions(told[0, 1], "1", "too few")


def test_the_page_has_the_calibration_error_before_and_after_the_temperature(overconfident, tmp_path):
    labels, logits = overconfident
    after, before = softmax(logits / 3, axis=1), softmax(logits, axis=1)
    shown = classification_metrics(labels, after, ("a", "b", "c"))
    found = reliability_section(labels, after, scaled=TemperatureScaling(3.0, 500, "minival", before))
    intervals = bootstrap_intervals(shown, key=Key.of(0), draws=20)
    report.Report(metrics=shown, intervals=intervals, metadata=ReportMetadata("x", "val"), sections=[found]).write(
        tmp_path
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    told = found.data["calibration"]["ece_before"]
    assert mentions(page, f"{100 * told:.1f}", "temperature")


def test_a_temperature_is_proposed_only_where_chance_does_not_explain_the_error():
    """It states 58.4 % and 58.3 % are right: nothing is left to bring closer. At 90 % stated there is."""
    labels = 1 * (np.arange(689) >= 402)
    even, sure = (reliability_section(labels, np.tile([stated, 1 - stated], (689, 1))) for stated in (0.584, 0.9))
    assert "minival" not in even.calibrated
    assert even.verdict == "Yes."
    assert "minival=0.1" in sure.calibrated
    assert sure.verdict == "No, overconfident."


def test_which_threshold_reaches_an_accuracy_and_how_many_images_it_leaves():
    """The surest 60 of 100 are all right, the others half; or nothing is right of the surest ten."""
    sure = np.linspace(0.99, 0.5, 100)
    shares = np.stack([sure, 1 - sure], axis=1)
    right = (np.arange(100) < 60) | (np.arange(100) % 2 == 0)
    found = {one["target"]: one for one in reliability_section(1 * ~right, shares).targets}
    assert found[0.8]["num_images"] == 100
    assert found[0.8]["threshold"] == 0, "all of them reach it"
    for target, one in found.items():
        if one["threshold"]:
            kept = sure >= one["threshold"]
            assert kept.sum() == one["num_images"]
            assert right[kept].mean() >= target
    assert found[0.99]["num_images"] >= 60
    never = reliability_section(1 * (np.arange(100) % 2 == 0), shares)
    assert all(one["threshold"] is None and not one["num_images"] for one in never.targets)
    assert never.data["abstention"]["targets"] == never.targets
    assert never.highest["num_images"] >= 10


@pytest.mark.parametrize("temperature", [None, 1.5])
def test_of_pictures_that_trained_it_nothing_is_concluded(temperature, overconfident):
    labels, logits = overconfident
    scaled = temperature and TemperatureScaling(temperature, 60, "minival", softmax(logits, axis=1))
    for shares in (softmax(logits, axis=1), softmax(logits / 9, axis=1)):
        said = reliability_section(labels, shares, scaled=scaled, training_images="1,200 of these pictures").calibrated
        assert mentions(said, "1,200")
        assert "confident" not in said
        assert "calibration error" not in said


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"num_eval_images_seen_in_training": 12}, ("12", "optimistic")),
        ({"num_eval_images_used_for_selection": 8}, ("8", "optimistic")),
        ({"num_eval_images_seen_in_training": 12, "num_eval_images_used_for_selection": 8}, ("12", "8", "optimistic")),
        ({"evaluated_on": "minival", "selected_on": "minival"}, ("optimistic",)),
        ({"evaluated_on": "train"}, ("optimistic",)),
        ({"selected_on": "minival", "num_eval_images_seen_in_training": 0}, ()),
    ],
)
def test_what_silence_is_worth_is_called_optimistic_of_pictures_that_had_a_part(facts, said, overconfident, tmp_path):
    labels, logits = overconfident
    shares, names = softmax(logits, axis=1), ("a", "b", "c")
    known = ReportMetadata(**{"data": "land", "evaluated_on": "val"} | facts)
    found = reliability_section(
        labels, shares, training_images=known.training_images, selection_images=known.selection_images
    )
    shown = classification_metrics(labels, shares, names)
    intervals = bootstrap_intervals(shown, key=Key.of(0), draws=20)
    report.Report(metrics=shown, intervals=intervals, metadata=known, sections=[found]).write(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not said or mentions(page, *said)
    assert found.data["abstention"]["optimistic"] is known.optimistic is bool(said)


@pytest.mark.parametrize(("each", "few"), [(10, True), (500, False)])
def test_the_page_says_whether_chance_alone_gives_its_calibration_error(each, few, tmp_path):
    """Sure of 0.6 and right in 0.8, sure of 0.8 and right in 0.6: the means agree, the error is 0.2."""
    stated = np.repeat([0.6, 0.8], each)
    labels = np.concatenate([np.arange(each) >= 0.8 * each, np.arange(each) >= 0.6 * each]).astype(int)
    shares = np.stack([stated, 1 - stated], axis=1)
    found, shown = reliability_section(labels, shares), classification_metrics(labels, shares, ("a", "b"))
    assert "too" not in found.calibrated
    assert found.data["calibration"]["ece"] == pytest.approx(0.2)
    assert found.data["calibration"]["ece_within_chance"] is few
    facts = ReportMetadata(data="land", evaluated_on="val")
    intervals = bootstrap_intervals(shown, key=Key.of(0), draws=20)
    report.Report(metrics=shown, intervals=intervals, metadata=facts, sections=[found]).write(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("within chance: up to" in page) is few
    assert ("these images are too few to tell the error from none" in page) is few
    assert ("expected calibration error" in page) is not few


def test_abstention_as_asked_for(overconfident):
    labels, logits = overconfident
    shares = softmax(logits / 3, axis=1)
    found = reliability_section(labels, shares, abstain_below=0.7)
    sure = shares.max(axis=1) >= 0.7
    (asked,) = [row for row in found.points if row["requested"]]
    assert asked["coverage"] == pytest.approx(sure.mean())
    assert asked["accuracy"] == pytest.approx((shares.argmax(axis=1) == labels)[sure].mean())
    assert [row["coverage"] for row in found.points] == sorted((row["coverage"] for row in found.points), reverse=True)
    assert found.data["abstention"]["points"] == found.points


def test_several_labels_of_a_picture():
    labels = np.array([[0, 2], [1, -1], [2, -1], [0, 1]])
    found = reliability_section(labels, np.array([[0.2, 0.1, 0.7], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6], [0.1, 0.6, 0.3]]))
    assert found.points[0]["accuracy"] == 0.75
    assert "minival" not in found.calibrated  # no temperature mends what is no probability of being right


def test_where_pictures_hang_together_it_is_called_too_sure_beyond_the_wider_interval_alone():
    """It states 80 % and is right of 140 of 200: that single images would leave 64 to 76 % is not what counts."""
    labels, shares = 1 * (np.arange(200) >= 140), np.tile([0.8, 0.2], (200, 1))
    for reach, few in ((None, False), ((0.6, 0.79), False), ((0.55, 0.85), True)):
        found = reliability_section(labels, shares, top1_interval=reach).calibrated
        assert "overconfident" in found
        assert ("too few" in found) is few


def test_of_multilabel_each_by_itself_a_probability_says_how_often_it_is_right():
    """200 images, sure of their most probable class to 90 %, which is a label of 140."""
    labels = np.where(np.arange(200)[:, None] < 140, [[0, 2]], [[2, -1]])
    shares = np.tile([0.9, 0.2, 0.8], (200, 1))
    found = reliability_section(labels, shares, activation="sigmoid")
    assert mentions(found.calibrated, "90.0", "overconfident")
    assert "too few" not in found.calibrated
    assert "minival" not in found.calibrated  # which such images have none of
    assert found.diagram is not None
    assert found.data["calibration"]["ece"] == pytest.approx(0.2)
