"""What a report opens with: true of the figures, honest about what is not known."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tests.messages import mentions

from efficientnetv2.evaluation.generalization import NewPlaceEstimate, TrainDistance
from efficientnetv2.evaluation.html import render
from efficientnetv2.evaluation.next_steps import NextStep
from efficientnetv2.evaluation.predictions import PairedDifference
from efficientnetv2.evaluation.report_metadata import ReportContext, ReportMetadata
from efficientnetv2.evaluation.verdicts import summary_lines
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.confidence_intervals import Difference
from efficientnetv2.metrics.metric_intervals import bootstrap_intervals
from efficientnetv2.metrics.multilabel import multilabel_metrics
from efficientnetv2.utils.random_key import Key

TRUE = np.repeat([0, 1], [80, 20])
SHOWN = classification_metrics(TRUE, np.eye(2)[np.where(np.arange(100) % 5 == 0, 1 - TRUE, TRUE)], ("forest", "maize"))
INTERVALS = bootstrap_intervals(SHOWN, key=Key.of(0), draws=100)


def plain(markup):
    return " ".join(html.unescape(re.sub("<[^>]+>", "", markup)).split(" ")).replace("\n", " ").strip()


def rendered(template, metrics, intervals, metadata, context, steps=()):
    multilabel = hasattr(metrics, "mean_average_precision")
    return render(
        template, metrics=metrics, intervals=intervals, metadata=metadata, context=context, steps=steps,
        multilabel=multilabel, sections_shown=[],
    )  # fmt: skip


def summarize(*given):
    """The questions of a page, each with its verdict, text and command."""
    found = re.findall(
        r"<summary><span>(.*?)</span> <b>(.*?)</b></summary>\s*<p>(.*?)(?: <code>(.*?)</code>)?</p>",
        rendered("answers.html.j2", *given),
        re.DOTALL,
    )
    return [
        SimpleNamespace(
            question=plain(one[0]), verdict=plain(one[1]), text=plain(one[2]), command=plain(one[3]) or None
        )
        for one in found
    ]


def limitations(*given):
    return [plain(one) for one in re.findall(r"<li>(.*?)</li>", rendered("limits.html.j2", *given), re.DOTALL)]


def told(context=None, **facts):
    found = summarize(
        SHOWN, INTERVALS, ReportMetadata(data="x", evaluated_on="val", **facts), context or ReportContext()
    )
    return {one.question: one for one in found}


def over(top1, macro):
    one, two = (Difference(*values) for values in (top1, macro))
    return PairedDifference(100, one, two, two, {})


def test_how_good_names_pictures_interval_and_the_weakest_class():
    found = told()["How good is it?"]
    assert mentions(found.text, "100", "val")
    assert mentions(found.text, "maize", "F1", "61.5")
    assert found.verdict.startswith(f"Macro-F1 {100 * SHOWN.macro_f1:.1f}")
    assert "optimistic" in told(selected_on="val")["How good is it?"].text


@pytest.mark.parametrize(
    ("top1", "macro", "verdict"),
    [
        ((0.05, 0.01, 0.09), (0.04, 0.01, 0.1), "Yes."),
        ((0.05, -0.01, 0.09), (0.04, -0.02, 0.1), "Not clearly."),
        ((-0.05, -0.09, -0.01), (-0.04, -0.08, 0.01), "No, worse."),
        ((0.05, 0.01, 0.09), (-0.04, -0.08, -0.01), "In one metric yes, in the other no."),
    ],
)
def test_better_is_said_as_far_as_chance_allows(top1, macro, verdict):
    found = told(ReportContext(probe=over(top1, macro), last=("before", over(top1, macro))))
    assert found["Is it better than a linear probe?"].verdict == verdict
    assert found["Is it better than before?"].verdict == verdict
    assert f"{100 * top1[0]:+.1f} points ({100 * top1[1]:+.1f} to {100 * top1[2]:+.1f})" in (
        found["Is it better than before?"].text
    )


def test_a_probe_that_learnt_from_a_part_of_what_the_network_learnt_from_is_called_so():
    question, beside = (
        "Is it better than a linear probe?",
        ReportContext(probe=over((0.05, 0.01, 0.09), (0.04, 0.01, 0.1))),
    )
    found = told(beside, linear_probe_num_images=5000, linear_probe_num_available=40_000)[question]
    assert mentions(found.text, "5,000", "40,000")
    fewer = {"linear_probe_num_images": 5000, "linear_probe_num_available": 40_000}
    lost = told(beside, **fewer, num_train_images=39_990, num_train_lost=10)[question]
    assert mentions(lost.text, "39,990", "training")
    whole = told(beside, linear_probe_num_images=5000, linear_probe_num_available=5000)[question]
    assert "trained on" not in whole.text


def test_a_run_says_what_it_does_not_know_and_an_evaluation_is_not_asked():
    found = told(num_train_images=500)
    assert found["Is it better than a linear probe?"].verdict == "Not measured."
    assert found["Would more labels help?"].verdict == "Not measured."
    assert found["Is it better than the last run?"].verdict == "Not known."
    assert not [question for question in found if "new" in question], "nothing is known of places or groups"
    assert set(told()) == {"How good is it?"}


@pytest.mark.parametrize(
    ("how", "verdict", "words"),
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
def test_a_hold_out_says_of_new_places_what_its_distances_say(how, verdict, words):
    asked = "Is it as good in new locations?" if how.by == "place" else "Is it as good for new groups?"
    found = told(ReportContext(train_distance=how), num_train_images=5)[asked]
    assert (found.verdict, found.command) == (verdict, f"effnetv2 crossval DATA --by {how.by}")
    assert words in found.text


@pytest.mark.parametrize(
    ("groups", "verdict", "words"),
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
def test_new_places_of_known_groups_are_not_called_new(groups, verdict, words):
    how = TrainDistance("place", 40, 0, 43.7, groups)
    found = told(ReportContext(train_distance=how), num_train_images=5)["Is it as good in new locations?"]
    assert (found.verdict, found.command) == (verdict, "effnetv2 crossval DATA --by place")
    assert words in found.text
    said = " ".join(limitations(SHOWN, INTERVALS, ReportMetadata("x", "val"), ReportContext(train_distance=how)))
    assert ("locations, seasons" in said) == (verdict == "Not measured.")


def test_new_groups_are_no_new_places():
    """Other patients may all have been at one hospital."""
    for how, known in ((TrainDistance("group", 40, 0), False), (TrainDistance("place", 40, 0, 43.7), True)):
        said = " ".join(limitations(SHOWN, INTERVALS, ReportMetadata("x", "val"), ReportContext(train_distance=how)))
        assert ("locations, seasons" not in said) is known


def test_a_cross_validation_says_what_it_does_not_know_too():
    """Though there is no one number of images that it learnt from."""
    facts = ReportMetadata(data="x", evaluated_on="out-of-fold", recipe={"weights": "some.in1k"})
    found = {one.question: one for one in summarize(SHOWN, INTERVALS, facts, ReportContext())}
    assert "No probe was requested" in found["Is it better than a linear probe?"].text
    assert found["Would more labels help?"].verdict == "Not measured."
    last = found["Is it better than the last run?"]
    assert last.text.startswith("No other finished cross-validation by the same rule")


def test_what_is_drawn_as_a_whole_adds_nothing_to_the_intervals():
    apart = " ".join(limitations(SHOWN, INTERVALS, ReportMetadata("x", "val"), ReportContext()))
    assert mentions(apart, "top-1")
    assert "related images (of one location, one day)" in apart
    whole = " ".join(limitations(SHOWN, INTERVALS, ReportMetadata("x", "val"), ReportContext(bootstrap_unit="places")))
    assert mentions(whole, "100", "place")
    assert "of one location" not in whole


def test_few_pictures_and_classes_never_right_are_said_to_be_so():
    five = classification_metrics([0, 0, 1, 1, 2], np.eye(3)[[0, 0, 0, 0, 0]], ("oak", "elm", "ash"))
    words = summarize(
        five, bootstrap_intervals(five, key=Key.of(0), draws=50), ReportMetadata("x", "test"), ReportContext()
    )[0].text
    assert mentions(words, "5", "test", "few")
    assert mentions(words, "2", "3", "elm", "ash")


@pytest.mark.parametrize(("highest", "without"), [((0.4, 0.3, 0.2), 3), ((0.4, 0.5, 0.6), 1), ((0.7, 0.5, 0.6), 0)])
def test_images_without_an_assigned_label_are_counted(highest, without):
    shown = multilabel_metrics(
        [[0, 1], [1, -1], [0, -1]], np.array([[one, 0.1] for one in highest]), ("red", "blue"), "sigmoid"
    )
    said = summarize(shown, {}, ReportMetadata(data="x", evaluated_on="val"), ReportContext())[0].text
    assert ("without a label" in said) == bool(without)
    assert not without or mentions(said, "0.5", str(without))


def test_pictures_of_multilabel_are_told_why_there_is_no_probe():
    shown = multilabel_metrics([[0, 1], [1, -1]], np.array([[0.6, 0.4], [0.2, 0.8]]), ("red", "blue"))
    facts = ReportMetadata("x", "val", num_train_images=9)
    found = {one.question: one.text for one in summarize(shown, {"top1": (0.2, 1.0)}, facts, ReportContext())}
    assert "these images have several" in found["Is it better than a linear probe?"]
    assert "one label per image" in found["Would more labels help?"]
    assert "Is it better than the last run?" not in found


def test_why_there_is_no_probe_depends_on_what_the_run_began_with():
    question = "Is it better than a linear probe?"
    assert "No probe was requested" in told(num_train_images=5, recipe={"weights": "some.in1k"})[question].text
    assert mentions(told(num_train_images=5, recipe={"weights": "none"})[question].text, "without pretrained weights")


def test_new_places_by_cross_validation():
    elsewhere = NewPlaceEstimate("Worse.", "It is worse there.", known=True)
    found = told(ReportContext(new_places=elsewhere), num_train_images=5)
    answer = found["Is it as good in new locations?"]
    assert (answer.verdict, answer.text) == ("Worse.", "It is worse there.")


def test_what_was_chosen_is_counted():
    found = told(auto_choices=["Network: b0.", "", "--weights x: recognized."])
    assert found["What was chosen automatically?"].verdict == "2 choices."
    assert "What was chosen automatically?" not in told(auto_choices=[])


@pytest.mark.parametrize(
    ("facts", "said"),
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
def test_limits_say_how_many_pictures_make_figures_optimistic(facts, said):
    assert said in " ".join(limitations(SHOWN, INTERVALS, ReportMetadata("x", "val", **facts), ReportContext()))


@pytest.mark.parametrize(("low", "command"), [(0.01, "effnetv2 convert MODEL OUT --tta d4"), (-0.01, "")])
def test_views_are_to_be_kept_only_where_they_are_better(low, command):
    tta = over((0.05, low, 0.09), (0.04, low, 0.1))
    (found,) = [one for one in told(ReportContext(tta=tta)).values() if "test-time" in one.question]
    assert (found.command or "") == command


def test_limits_name_small_classes_optimism_and_what_was_skipped():
    said = " ".join(
        limitations(SHOWN, INTERVALS, ReportMetadata("x", "val", selected_on="val", num_skipped=3), ReportContext())
    )
    assert mentions(said, "30", "maize")
    assert "optimistic" in said
    assert mentions(said, "3", "read")
    assert "locations, seasons" in said
    for known in (True, False):
        placed = ReportContext(new_places=NewPlaceEstimate("So.", "So.", known=known))
        said = " ".join(limitations(SHOWN, INTERVALS, ReportMetadata("x", "val"), placed))
        assert ("locations, seasons" in said) != known
        assert mentions(said, "seasons")


def test_steps_that_change_what_labels_bring_are_named_with_it():
    steps = [NextStep(1, "weights", "Start from ImageNet weights", "", ""), NextStep(2, "use", "Use", "", "")]
    labels = ReportContext(more_labels=("Perhaps.", "Twice as many bring +3.0 points."))
    (found,) = [
        one
        for one in summarize(SHOWN, INTERVALS, ReportMetadata("x", "val"), labels, steps)
        if "labels" in one.question
    ]
    assert mentions(found.text, "ImageNet", "weight")
    assert "Other steps" not in told(labels)["Would more labels help?"].text


def test_lines_of_the_screen_hold_what_is_known():
    assert summary_lines(ReportContext()) == []
    found = summary_lines(
        ReportContext(
            last=("before", over((0.1, 0.05, 0.2), (0.1, 0.05, 0.2))),
            calibration=("Yes.", "So."),
            subgroups=("No.", "Worst."),
        )
    )
    assert mentions(found[0], "100")
    assert found[1:] == ["So.", "Worst."]
    placed = replace(over((0.1, 0.05, 0.2), (0.1, 0.05, 0.2)), num_clusters=7)
    assert mentions(summary_lines(ReportContext(placed))[0], "100", "7", "top-1")
