"""The report section on calibration and abstention."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.special import softmax
from tests.messages import mentions

from efficientnetv2.evaluation import report
from efficientnetv2.evaluation.calibration_section import calibration_section
from efficientnetv2.evaluation.html import render
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.metrics.calibration import expected_calibration_error, fit_temperature
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.metric_intervals import bootstrap_intervals
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.utils.random_key import Key


def write_page(folder, labels, probabilities, section, metadata=None):
    """The page of a report with this section."""
    metrics = classification_metrics(labels, probabilities, "abc"[: probabilities.shape[1]])
    intervals = bootstrap_intervals(metrics, key=Key.of(0), draws=20)
    report.Report(metrics, intervals, metadata or ReportMetadata("land", "val"), sections=[section]).write(folder)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def overconfident():
    """Logits of 1,500 images in 3 classes, three times too large; labels are drawn from the true probabilities."""
    generator = np.random.default_rng(0)
    calibrated = generator.normal(size=(1500, 3)) * 1.5
    cumulative = softmax(calibrated, axis=1).cumsum(axis=1)
    labels = (generator.random((1500, 1)) > cumulative).sum(axis=1).clip(max=2)
    return labels, 3 * calibrated


def test_temperature_of_another_split_lowers_the_error(overconfident):
    labels, logits = overconfident
    temperature = fit_temperature(labels[:500], logits[:500])
    before, after = softmax(logits[500:], axis=1), softmax(logits[500:] / temperature, axis=1)
    scaled = Calibration(temperature, 500, "minival")
    section = calibration_section(labels[500:], after, scaled=scaled, before=before)
    calibration = section.data["calibration"]
    assert calibration["ece"] == pytest.approx(expected_calibration_error(labels[500:], after))
    assert calibration["ece"] < 0.05 < 0.15 < calibration["ece_before"]
    assert mentions(section.calibrated, "500", "minival")
    for scale, word in ((1, "overconfident"), (9, "underconfident")):
        unscaled = calibration_section(labels, softmax(logits / scale, axis=1))
        assert mentions(unscaled.calibrated, word)
        assert mentions(unscaled.verdict, word)


@pytest.mark.parametrize(
    ("members", "facts"),
    [
        (
            (Calibration(1.2, 60, "minival"), Calibration(1.414, 58, "minival")),
            ("2", "temperature", "1.2", "1.41", "58", "60", "minival"),
        ),
        ((None, Calibration(1.2, 60, "minival"), None), ("3", "1", "temperature", "1.2", "60", "minival")),
        ((None, None), ("temperature", "minival=0.1")),
    ],
)
def test_temperatures_of_an_ensemble_are_listed_without_advice(members, facts, overconfident):
    labels, logits = overconfident
    found = calibration_section(labels, softmax(logits, axis=1), members=members)
    assert mentions(found.calibrated, *facts)
    assert ("minival=0.1" in found.calibrated) == (not any(members))
    saved = found.data["calibration"].get("members", [None] * len(members))
    assert [each and (each["temperature"], each["num_fitted_images"], each["fitted_on"]) for each in saved] == [
        each and (each.temperature, each.num_images, each.fitted_on) for each in members
    ]


def test_few_images_are_too_few_to_show_miscalibration():
    """8 of 10 right at a confidence of 0.9 may be chance; 80 of 100 is not."""
    text = {
        (right, count): calibration_section(
            1 * (np.arange(count) >= right), np.tile([stated, 1 - stated], (count, 1))
        ).calibrated
        for right, count, stated in ((8, 10, 0.9), (80, 100, 0.9), (9, 10, 0.75), (800, 1000, 0.805), (0, 1, 0.6))
    }
    assert mentions(text[8, 10], "80.0", "10", "too few", "overconfident")
    assert mentions(text[80, 100], "80.0", "overconfident")
    assert "too few" not in text[80, 100]
    assert mentions(text[9, 10], "10", "too few", "underconfident")
    assert mentions(text[800, 1000], "80.0")
    assert "confident" not in text[800, 1000]
    assert mentions(text[0, 1], "1", "too few")


def test_page_has_the_calibration_error_before_and_after_scaling(overconfident, tmp_path):
    labels, logits = overconfident
    after, before = softmax(logits / 3, axis=1), softmax(logits, axis=1)
    found = calibration_section(labels, after, scaled=Calibration(3.0, 500, "minival"), before=before)
    ece_before = found.data["calibration"]["ece_before"]
    assert mentions(write_page(tmp_path, labels, after, found), f"{100 * ece_before:.1f}", "temperature")


def test_few_correct_predictions_are_not_called_reliable(tmp_path):
    """Five of five correct at 99.5 %: the accuracy may be 57 %. No threshold is drawn from them."""
    labels, probabilities = np.zeros(5, int), np.tile([0.995, 0.005], (5, 1))
    found = calibration_section(labels, probabilities)
    assert found.verdict == "Too few images."
    assert "never reached" not in write_page(tmp_path, labels, probabilities, found)


def test_temperature_is_proposed_only_for_a_significant_error():
    """Confidence 58.4 % with 58.3 % right needs no scaling. Confidence 90 % does."""
    labels = 1 * (np.arange(689) >= 402)
    calibrated_section, overconfident_section = (
        calibration_section(labels, np.tile([stated, 1 - stated], (689, 1))) for stated in (0.584, 0.9)
    )
    assert "minival" not in calibrated_section.calibrated
    assert calibrated_section.verdict == "Yes."
    assert "--calibrate" in overconfident_section.calibrated
    assert overconfident_section.verdict == "No, overconfident."


def test_certain_underconfidence_is_not_also_within_chance():
    """The mean probability is outside of the interval of top-1, though the error by bins is what chance gives."""
    top, right = np.repeat([0.5, 0.57, 0.63, 0.7, 0.77, 0.83], 10), np.repeat([7, 7, 8, 8, 9, 9], 10)
    labels = np.where(np.tile(np.arange(10), 6) < right, 0, 1)
    found = calibration_section(labels, np.stack([top, 1 - top], axis=1))
    assert found.verdict == "No, underconfident."
    assert found.data["calibration"]["ece"] < found.data["calibration"]["ece_by_chance"]
    assert not found.data["calibration"]["ece_within_chance"]
    assert mentions(found.calibrated, "underconfident", "temperature", "--calibrate")
    assert "chance" not in found.calibrated


def test_thresholds_reach_the_target_accuracy():
    """The 60 most confident of 100 are right, and half of the others; or none of the ten most confident."""
    confidence = np.linspace(0.99, 0.5, 100)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    right = (np.arange(100) < 60) | (np.arange(100) % 2 == 0)
    found = {row["target"]: row for row in calibration_section(1 * ~right, probabilities).targets}
    assert found[0.8]["num_images"] == 100
    assert found[0.8]["threshold"] == 0, "all of them reach it"
    for target, row in found.items():
        if row["threshold"]:
            covered = confidence >= row["threshold"]
            assert covered.sum() == row["num_images"]
            assert right[covered].mean() >= target
    assert found[0.99]["num_images"] >= 60
    never = calibration_section(1 * (np.arange(100) % 2 == 0), probabilities)
    assert all(row["threshold"] is None and not row["num_images"] for row in never.targets)
    assert never.data["abstention"]["targets"] == never.targets
    assert never.highest["num_images"] >= 10


@pytest.mark.parametrize("temperature", [None, 1.5])
def test_training_images_give_no_conclusion(temperature, overconfident):
    labels, logits = overconfident
    scaled, before = temperature and Calibration(temperature, 60, "minival"), softmax(logits, axis=1)
    for probabilities in (softmax(logits, axis=1), softmax(logits / 9, axis=1)):
        text = calibration_section(
            labels, probabilities, scaled=scaled, before=before, training_images="1,200 of these images"
        ).calibrated
        assert mentions(text, "1,200")
        assert "confident" not in text
        assert "calibration error" not in text


@pytest.mark.parametrize(
    ("facts", "numbers"),
    [
        ({"num_eval_images_seen_in_training": 12}, ("12", "optimistic")),
        ({"num_eval_images_used_for_selection": 8}, ("8", "optimistic")),
        ({"num_eval_images_seen_in_training": 12, "num_eval_images_used_for_selection": 8}, ("12", "8", "optimistic")),
        ({"evaluated_on": "minival", "selected_on": "minival"}, ("optimistic",)),
        ({"evaluated_on": "train"}, ("optimistic",)),
        ({"selected_on": "minival", "num_eval_images_seen_in_training": 0}, ()),
    ],
)
def test_abstention_is_optimistic_for_training_and_selection_images(facts, numbers, overconfident, tmp_path):
    labels, logits = overconfident
    probabilities = softmax(logits, axis=1)
    metadata = ReportMetadata(**{"data": "land", "evaluated_on": "val"} | facts)
    images, optimism = metadata.training_images, metadata.optimism
    found = calibration_section(labels, probabilities, training_images=images, optimism=optimism)
    page = write_page(tmp_path, labels, probabilities, found, metadata)
    assert not numbers or mentions(page, *numbers)
    assert found.data["abstention"]["optimistic"] is metadata.optimistic is bool(numbers)


@pytest.mark.parametrize(("num_images", "few"), [(10, True), (500, False)])
def test_page_reports_a_calibration_error_within_chance(num_images, few, tmp_path):
    """Confidence 0.6 and accuracy 0.8, confidence 0.8 and accuracy 0.6: the means agree, the error is 0.2."""
    confidence = np.repeat([0.6, 0.8], num_images)
    labels = np.concatenate([1 * (np.arange(num_images) >= accuracy * num_images) for accuracy in (0.8, 0.6)])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    found = calibration_section(labels, probabilities)
    assert "too" not in found.calibrated
    assert found.data["calibration"]["ece"] == pytest.approx(0.2)
    assert found.data["calibration"]["ece_within_chance"] is few
    page = write_page(tmp_path, labels, probabilities, found)
    assert ("within chance: up to" in page) is few
    assert ("these images are too few to tell the error from none" in page) is few
    assert ("expected calibration error" in page) is not few


@pytest.mark.parametrize(("least", "shown"), [(0.97441, "0.975"), (0.99962, "0.9997"), (0.9, "0.9")])
def test_page_shows_thresholds_that_reach_their_target(least, shown):
    """The 60 most confident of 100 are right. Rounded down, wrong predictions would count."""
    confidence = np.concatenate([np.linspace(1 - 1e-5, least, 60), np.linspace(least - 1e-5, 0.5, 40)])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    found = calibration_section(1 * (np.arange(100) >= 60), probabilities)
    page = render("trust.html.j2", part=found)
    cells = re.findall(r"<td>99.0.%</td><td>([0-9.]+)</td>", page)
    assert cells == [shown]


def test_abstention_at_the_requested_threshold(overconfident):
    labels, logits = overconfident
    probabilities = softmax(logits / 3, axis=1)
    found = calibration_section(labels, probabilities, abstain_below=0.7)
    confident = probabilities.max(axis=1) >= 0.7
    (requested,) = [row for row in found.points if row["requested"]]
    assert requested["coverage"] == pytest.approx(confident.mean())
    assert requested["accuracy"] == pytest.approx((probabilities.argmax(axis=1) == labels)[confident].mean())
    assert [row["coverage"] for row in found.points] == sorted((row["coverage"] for row in found.points), reverse=True)
    assert found.data["abstention"]["points"] == found.points


def test_reliability_of_softmax_multilabel():
    labels = np.array([[0, 2], [1, -1], [2, -1], [0, 1]])
    found = calibration_section(labels, np.array([[0.2, 0.1, 0.7], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6], [0.1, 0.6, 0.3]]))
    assert found.points[0]["accuracy"] == 0.75
    assert "minival" not in found.calibrated  # temperature scaling does not apply


def test_overconfidence_is_judged_by_the_cluster_interval():
    """Confidence 80 % and 140 of 200 right: the narrower interval of single images does not count."""
    labels, probabilities = 1 * (np.arange(200) >= 140), np.tile([0.8, 0.2], (200, 1))
    for interval, few in ((None, False), ((0.6, 0.79), False), ((0.55, 0.85), True)):
        text = calibration_section(labels, probabilities, top1_interval=interval).calibrated
        assert "overconfident" in text
        assert ("too few" in text) is few


def test_reliability_of_sigmoid_multilabel():
    """The most probable class has 0.9 in 200 images and is a label of 140."""
    labels = np.where(np.arange(200)[:, None] < 140, [[0, 2]], [[2, -1]])
    probabilities = np.tile([0.9, 0.2, 0.8], (200, 1))
    found = calibration_section(labels, probabilities, activation="sigmoid")
    assert mentions(found.calibrated, "90.0", "overconfident")
    assert "too few" not in found.calibrated
    assert "minival" not in found.calibrated  # there is no minival for sigmoid models
    assert found.diagram is not None
    assert found.data["calibration"]["ece"] == pytest.approx(0.2)
