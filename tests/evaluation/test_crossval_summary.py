"""The summary of a cross-validation in the report and in JSON."""

from __future__ import annotations

import html
import re
from dataclasses import replace

from tests.messages import mentions

from efficientnetv2.evaluation.crossval_summary import CrossValidationSummary, FoldScore
from efficientnetv2.evaluation.distribution_shift import TrainDistance
from efficientnetv2.evaluation.html import render


def page_text(summary):
    part = summary.section()
    return html.unescape(re.sub("<[^>]+>", "", render(part.template, part=part)))


FOLD = FoldScore(0, "", 20, 10, 0.5, 0.5, 4.0, 60.0, ("a.in1k",))


def test_folds_with_other_initial_weights_are_listed():
    def score(number: int, weights: str) -> FoldScore:
        return FoldScore(number, "", 20, 10, 0.5, 0.5, 4.0, 60.0, (weights,))

    same, different = (
        CrossValidationSummary("class", "", "macro_f1", [score(0, "a.in1k"), score(1, other), score(2, "a.in1k")])
        for other in ("a.in1k", "none")
    )
    assert len(same.lines()) == 1
    assert mentions(different.lines()[1], "a.in1k", "1", "3", "2")
    assert different.lines()[1] in page_text(different)
    assert different.to_json()["folds"][1]["weights"] == ("none",)


def test_ensemble_size_and_candidates_are_on_the_page():
    candidates = ("class_sampling=null", "class_sampling=equal")
    fold = FoldScore(0, "", 20, 10, 0.5, 0.5, 4.0, 60.0, ("a.in1k", "none"), candidates)
    summary = CrossValidationSummary("class", "", "macro_f1", [fold, fold], members=2)
    page = page_text(summary)
    assert "each predicted by 2 models together (their mean) not trained on it" in page
    assert "hyperparameters" in page
    assert "class_sampling=null; class_sampling=equal" in page
    assert len(summary.lines()) == 1, "all folds have the same initial weights"


def test_distance_to_train_is_in_the_json():
    near = TrainDistance("place", 40, 10, 9.1)
    saved = CrossValidationSummary("place", "", "macro_f1", [FOLD], train_distance=near).to_json()["distance_to_train"]
    assert (saved["near"], saved["known"], saved["near_km"]) == (10, 40, 5.0)


def test_recipe_shown_is_named_if_folds_differ():
    def recipe_lines(*folds, **fields):
        page = page_text(CrossValidationSummary("class", "", "macro_f1", folds, **fields))
        return [line for line in page.splitlines() if line.startswith("Recipe, epochs and automatic choices")]

    assert recipe_lines(FOLD, FOLD) == []
    for other in ({"chosen": ("class_sampling=null",)}, {"epochs": 5.0}, {"weights": ("none",)}):
        assert mentions(recipe_lines(FOLD, replace(FOLD, number=1, **other))[0], "fold 1")
    assert mentions(recipe_lines(FOLD, FOLD, members=2)[0], "fold 1")
    assert mentions(recipe_lines(FOLD, FOLD, timed=True)[0], "epoch", "minutes")
