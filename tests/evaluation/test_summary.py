"""The summary at the start of a report: verdicts from the metrics and what is not known."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tests.messages import mentions

from efficientnetv2.evaluation.baseline_warnings import summary_lines
from efficientnetv2.evaluation.distribution_shift import NewPlaceEstimate, TrainDistance, hold_out_estimate
from efficientnetv2.evaluation.html import render
from efficientnetv2.evaluation.next_steps import NextStep
from efficientnetv2.evaluation.predictions import PairedDifference
from efficientnetv2.evaluation.report_metadata import ReportContext, ReportMetadata
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.confidence_intervals import Difference
from efficientnetv2.metrics.metric_intervals import bootstrap_intervals
from efficientnetv2.metrics.multilabel import multilabel_metrics
from efficientnetv2.utils.random_key import Key

TRUE = np.repeat([0, 1], [80, 20])
METRICS = classification_metrics(
    TRUE, np.eye(2)[np.where(np.arange(100) % 5 == 0, 1 - TRUE, TRUE)], ("forest", "maize")
)
INTERVALS = bootstrap_intervals(METRICS, key=Key.of(0), draws=100)


def plain_text(markup):
    return " ".join(html.unescape(re.sub("<[^>]+>", "", markup)).split(" ")).replace("\n", " ").strip()


def rendered(template, metrics, intervals, metadata, context, steps=()):
    multilabel = hasattr(metrics, "mean_average_precision")
    return render(
        template, metrics=metrics, intervals=intervals, metadata=metadata, context=context, steps=steps,
        multilabel=multilabel, sections_shown=[], dataset="DATA",
    )  # fmt: skip


def summarize(*args):
    """The questions of a page, each with verdict, text and command."""
    matches = re.findall(
        r"<summary><span>(.*?)</span> <b>(.*?)</b></summary>\s*<p>(.*?)(?: <code>(.*?)</code>)?</p>",
        rendered("answers.html.j2", *args),
        re.DOTALL,
    )
    names = ("question", "verdict", "text", "command")
    return [SimpleNamespace(**dict(zip(names, map(plain_text, match), strict=True))) for match in matches]


def limitations(*args):
    return [plain_text(item) for item in re.findall(r"<li>(.*?)</li>", rendered("limits.html.j2", *args), re.DOTALL)]


def verdicts(context=None, **metadata):
    found = summarize(
        METRICS, INTERVALS, ReportMetadata(data="x", evaluated_on="val", **metadata), context or ReportContext()
    )
    return {verdict.question: verdict for verdict in found}


def paired(top1, macro):
    top1, macro = Difference(*top1), Difference(*macro)
    return PairedDifference(100, top1, macro, macro, {})


def test_quality_verdict_has_images_interval_and_weakest_class():
    found = verdicts()["How good is it?"]
    assert mentions(found.text, "100", "val")
    assert mentions(found.text, "maize", "F1", "61.5")
    assert found.verdict.startswith(f"Macro-F1 {100 * METRICS.macro_f1:.1f}")
    assert "optimistic" in verdicts(selected_on="val")["How good is it?"].text


@pytest.mark.parametrize(
    ("top1", "macro", "verdict"),
    [
        ((0.05, 0.01, 0.09), (0.04, 0.01, 0.1), "Yes."),
        ((0.05, -0.01, 0.09), (0.04, -0.02, 0.1), "Not clearly."),
        ((-0.05, -0.09, -0.01), (-0.04, -0.08, 0.01), "No, worse."),
        ((0.05, 0.01, 0.09), (-0.04, -0.08, -0.01), "In one metric yes, in the other no."),
    ],
)
def test_verdict_of_a_difference_follows_its_interval(top1, macro, verdict):
    found = verdicts(ReportContext(probe=paired(top1, macro), last=("before", paired(top1, macro))))
    assert found["Is it better than a linear probe?"].verdict == verdict
    assert found["Is it better than before?"].verdict == verdict
    assert f"{100 * top1[0]:+.1f} points ({100 * top1[1]:+.1f} to {100 * top1[2]:+.1f})" in (
        found["Is it better than before?"].text
    )


def test_probe_on_a_sample_names_both_sizes():
    question, context = (
        "Is it better than a linear probe?",
        ReportContext(probe=paired((0.05, 0.01, 0.09), (0.04, 0.01, 0.1))),
    )
    found = verdicts(context, linear_probe_num_images=5000, linear_probe_num_available=40_000)[question]
    assert mentions(found.text, "5,000", "40,000")
    sizes = {"linear_probe_num_images": 5000, "linear_probe_num_available": 40_000}
    lost = verdicts(context, **sizes, num_train_images=39_990, num_train_lost=10)[question]
    assert mentions(lost.text, "39,990", "training")
    full = verdicts(context, linear_probe_num_images=5000, linear_probe_num_available=5000)[question]
    assert "trained on" not in full.text


def test_run_lists_unknown_comparisons_and_evaluation_does_not():
    found = verdicts(num_train_images=500)
    assert found["Is it better than a linear probe?"].verdict == "Not measured."
    assert found["Would more labels help?"].verdict == "Not measured."
    assert found["Is it better than the last run?"].verdict == "Not known."
    assert not [question for question in found if "new" in question], "no locations or groups"
    assert set(verdicts()) == {"How good is it?"}


@pytest.mark.parametrize(
    ("distance", "verdict", "text"),
    [
        (TrainDistance("place", 40, 0, 43.7), "These are new locations.", "half of them are 44 km away or farther"),
        (
            TrainDistance("place", 40, 10, 9.1),
            "Not measured.",
            "Within 5 km of a training image: 10 images of 40 (25.0\N{NO-BREAK SPACE}%)",
        ),
        (TrainDistance("group", 40, 0), "These are new groups.", "No image is of a group"),
        (TrainDistance("group", 40, 40), "Not measured.", "100.0\N{NO-BREAK SPACE}% of the images are of a group"),
    ],
)
def test_distances_decide_the_verdict_on_new_locations(distance, verdict, text):
    question = "Is it as good in new locations?" if distance.by == "place" else "Is it as good for new groups?"
    found = verdicts(ReportContext(new_places=hold_out_estimate(distance)), num_train_images=5)[question]
    assert (found.verdict, found.command) == (verdict, f"effnetv2 crossval DATA --by {distance.by}")
    assert text in found.text


@pytest.mark.parametrize(
    ("groups", "verdict", "text"),
    [
        (
            TrainDistance("group", 40, 10),
            "Not measured.",
            "44 km away or farther. 25.0\N{NO-BREAK SPACE}% of the images are of a group with training images. The "
            "metrics may be optimistic. Cross-validation by location with whole groups measures it:",
        ),
        (
            TrainDistance("group", 40, 0),
            "These are new locations and groups.",
            "No image is of a group with training images. To evaluate all locations and groups, not only these",
        ),
    ],
)
def test_new_locations_of_known_groups_are_not_new(groups, verdict, text):
    distance = TrainDistance("place", 40, 0, 43.7, groups)
    context = ReportContext(new_places=hold_out_estimate(distance))
    found = verdicts(context, num_train_images=5)["Is it as good in new locations?"]
    assert (found.verdict, found.command) == (verdict, "effnetv2 crossval DATA --by place")
    assert text in found.text
    limits = " ".join(limitations(METRICS, INTERVALS, ReportMetadata("x", "val"), context))
    assert ("locations, seasons" in limits) == (verdict == "Not measured.")


def test_new_groups_are_not_new_locations():
    """Other patients may have been at the same hospital."""
    for distance, known in ((TrainDistance("group", 40, 0), False), (TrainDistance("place", 40, 0, 43.7), True)):
        context = ReportContext(new_places=hold_out_estimate(distance))
        limits = " ".join(limitations(METRICS, INTERVALS, ReportMetadata("x", "val"), context))
        assert ("locations, seasons" not in limits) is known


def test_cross_validation_lists_unknown_comparisons():
    """Although the number of training images differs by fold."""
    metadata = ReportMetadata(data="x", evaluated_on="out-of-fold", recipe={"weights": "some.in1k"})
    found = {verdict.question: verdict for verdict in summarize(METRICS, INTERVALS, metadata, ReportContext())}
    assert "No probe was requested" in found["Is it better than a linear probe?"].text
    assert found["Would more labels help?"].verdict == "Not measured."
    last = found["Is it better than the last run?"]
    assert last.text.startswith("No other finished cross-validation by the same rule")


def test_cluster_bootstrap_intervals_have_no_limitation_on_related_images():
    by_image = " ".join(limitations(METRICS, INTERVALS, ReportMetadata("x", "val"), ReportContext()))
    assert mentions(by_image, "top-1")
    assert "related images (of one location, one day)" in by_image
    by_location = " ".join(
        limitations(METRICS, INTERVALS, ReportMetadata("x", "val"), ReportContext(bootstrap_unit="places"))
    )
    assert mentions(by_location, "100", "place")
    assert "of one location" not in by_location


def test_few_images_and_classes_without_hits_are_reported():
    metrics = classification_metrics([0, 0, 1, 1, 2], np.eye(3)[[0, 0, 0, 0, 0]], ("oak", "elm", "ash"))
    text = summarize(
        metrics, bootstrap_intervals(metrics, key=Key.of(0), draws=50), ReportMetadata("x", "test"), ReportContext()
    )[0].text
    assert mentions(text, "5", "test", "few")
    assert mentions(text, "2", "3", "elm", "ash")


@pytest.mark.parametrize(
    ("highest", "num_unlabeled"), [((0.4, 0.3, 0.2), 3), ((0.4, 0.5, 0.6), 1), ((0.7, 0.5, 0.6), 0)]
)
def test_images_without_an_assigned_label_are_counted(highest, num_unlabeled):
    metrics = multilabel_metrics(
        [[0, 1], [1, -1], [0, -1]], np.array([[value, 0.1] for value in highest]), ("red", "blue"), "sigmoid"
    )
    text = summarize(metrics, {}, ReportMetadata(data="x", evaluated_on="val"), ReportContext())[0].text
    assert ("without a label" in text) == bool(num_unlabeled)
    assert not num_unlabeled or mentions(text, "0.5", str(num_unlabeled))


def test_multilabel_report_explains_the_missing_probe():
    metrics = multilabel_metrics([[0, 1], [1, -1]], np.array([[0.6, 0.4], [0.2, 0.8]]), ("red", "blue"))
    metadata = ReportMetadata("x", "val", num_train_images=9)
    found = {
        verdict.question: verdict.text
        for verdict in summarize(metrics, {"top1": (0.2, 1.0)}, metadata, ReportContext())
    }
    assert "these images have several" in found["Is it better than a linear probe?"]
    assert "one label per image" in found["Would more labels help?"]
    assert "Is it better than the last run?" not in found


def test_missing_probe_is_explained_by_the_initial_weights():
    question = "Is it better than a linear probe?"
    assert "No probe was requested" in verdicts(num_train_images=5, recipe={"weights": "some.in1k"})[question].text
    assert mentions(
        verdicts(num_train_images=5, recipe={"weights": "none"})[question].text, "without pretrained weights"
    )
    note = "No linear probe of the initial weights (`minutes=1` leaves no time for it)."
    found = verdicts(num_train_images=5, recipe={"weights": "some.in1k"}, auto_choices=[note])
    assert mentions(found[question].text, "leaves no time")
    assert mentions(found["Would more labels help?"].text, "leaves no time")


def test_new_locations_by_cross_validation():
    estimate = NewPlaceEstimate("Worse.", "It is worse there.", known=True)
    found = verdicts(ReportContext(new_places=estimate), num_train_images=5)
    verdict = found["Is it as good in new locations?"]
    assert (verdict.verdict, verdict.text) == ("Worse.", "It is worse there.")


def test_automatic_choices_are_counted():
    found = verdicts(auto_choices=["Network: b0.", "", "--weights x: recognized."])
    assert found["What was chosen automatically?"].verdict == "2 choices."
    assert "What was chosen automatically?" not in verdicts(auto_choices=[])


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"selected_on": "val"}, "These images selected the model, so the metrics are optimistic."),
        (
            {"num_eval_images_seen_in_training": 3},
            "3 of these images trained the model, so the metrics are optimistic.",
        ),
        (
            {"num_eval_images_seen_in_training": 3, "num_eval_images_used_for_selection": 5},
            "3 of these images trained the model and 5 of these images selected the model, so the metrics are",
        ),
    ],
)
def test_limits_count_training_and_selection_images(facts, text):
    assert text in " ".join(limitations(METRICS, INTERVALS, ReportMetadata("x", "val", **facts), ReportContext()))


@pytest.mark.parametrize(("low", "command"), [(0.01, "effnetv2 convert MODEL OUT --tta d4"), (-0.01, "")])
def test_tta_is_proposed_only_if_significantly_better(low, command):
    tta = paired((0.05, low, 0.09), (0.04, low, 0.1))
    (found,) = [verdict for verdict in verdicts(ReportContext(tta=tta)).values() if "test-time" in verdict.question]
    assert (found.command or "") == command


def test_limits_name_small_classes_and_selection():
    text = " ".join(limitations(METRICS, INTERVALS, ReportMetadata("x", "val", selected_on="val"), ReportContext()))
    assert mentions(text, "30", "maize")
    assert "optimistic" in text
    assert "locations, seasons" in text
    for known in (True, False):
        context = ReportContext(new_places=NewPlaceEstimate("So.", "So.", known=known))
        text = " ".join(limitations(METRICS, INTERVALS, ReportMetadata("x", "val"), context))
        assert ("locations, seasons" in text) != known
        assert mentions(text, "seasons")


def test_steps_before_more_labels_are_named():
    steps = [NextStep(1, "weights", "Start from ImageNet weights", "", ""), NextStep(2, "use", "Use", "", "")]
    labels = ReportContext(more_labels=("Perhaps.", "Twice as many bring +3.0 points."))
    (found,) = [
        verdict
        for verdict in summarize(METRICS, INTERVALS, ReportMetadata("x", "val"), labels, steps)
        if "labels" in verdict.question
    ]
    assert mentions(found.text, "ImageNet", "weight")
    assert "Other steps" not in verdicts(labels)["Would more labels help?"].text


def test_summary_lines_have_the_known_verdicts():
    assert summary_lines(ReportContext()) == []
    found = summary_lines(
        ReportContext(
            last=("before", paired((0.1, 0.05, 0.2), (0.1, 0.05, 0.2))),
            calibration=("Yes.", "So."),
            subgroups=("No.", "Worst."),
        )
    )
    assert mentions(found[0], "100")
    assert found[1:] == ["So.", "Worst."]
    clustered = replace(paired((0.1, 0.05, 0.2), (0.1, 0.05, 0.2)), num_clusters=7)
    assert mentions(summary_lines(ReportContext(clustered))[0], "100", "7", "top-1")
