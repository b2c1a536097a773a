"""What a cross-validation says of itself."""

from __future__ import annotations

import html
import re
from dataclasses import replace

from tests.messages import mentions

from efficientnetv2.evaluation.crossval_summary import CrossValidationSummary, FoldScore
from efficientnetv2.evaluation.generalization import TrainDistance
from efficientnetv2.evaluation.html import render


def page_of(summary):
    part = summary.section()
    return html.unescape(re.sub("<[^>]+>", "", render(part.template, part=part)))


FOLD = FoldScore(0, "", 20, 10, 0.5, 0.5, 4.0, 60.0, ("a.in1k",))


def test_folds_that_began_from_different_weights_are_named():
    def score(number: int, weights: str) -> FoldScore:
        return FoldScore(number, "", 20, 10, 0.5, 0.5, 4.0, 60.0, (weights,))

    alike, apart = (
        CrossValidationSummary("class", "", "macro_f1", [score(0, "a.in1k"), score(1, other), score(2, "a.in1k")])
        for other in ("a.in1k", "none")
    )
    assert len(alike.lines()) == 1
    assert mentions(apart.lines()[1], "a.in1k", "1", "3", "2")
    assert apart.lines()[1] in page_of(apart)
    assert apart.to_json()["folds"][1]["weights"] == ("none",)


def test_networks_that_answer_together_are_said_to():
    tries = ("class_sampling=null", "class_sampling=equal")
    fold = FoldScore(0, "", 20, 10, 0.5, 0.5, 4.0, 60.0, ("a.in1k", "none"), tries)
    whole = CrossValidationSummary("class", "", "macro_f1", [fold, fold], members=2)
    page = page_of(whole)
    assert "each predicted by 2 models together (their mean) not trained on it" in page
    assert "hyperparameters" in page
    assert "class_sampling=null; class_sampling=equal" in page
    assert len(whole.lines()) == 1, "all folds begin alike"


def test_how_near_the_learnt_pictures_are_stands_in_the_report():
    near = TrainDistance("place", 40, 10, 9.1)
    told = CrossValidationSummary("place", "", "macro_f1", [FOLD], train_distance=near).to_json()["distance_to_train"]
    assert (told["near"], told["known"], told["near_km"]) == (10, 40, 5.0)


def test_whose_recipe_is_shown_is_said_where_it_is_not_that_of_all():
    def said(*folds, **words):
        page = page_of(CrossValidationSummary("class", "", "macro_f1", folds, **words))
        return [one for one in page.splitlines() if one.startswith("Recipe, epochs and automatic choices")]

    assert said(FOLD, FOLD) == []
    for other in ({"chosen": ("class_sampling=null",)}, {"epochs": 5.0}, {"weights": ("none",)}):
        assert mentions(said(FOLD, replace(FOLD, number=1, **other))[0], "fold 1")
    assert mentions(said(FOLD, FOLD, members=2)[0], "fold 1")
    assert mentions(said(FOLD, FOLD, timed=True)[0], "epoch", "minutes")
