"""What a cross-validation says of itself."""

from __future__ import annotations

import pytest

from efficientnetv2.evaluation.crossval import Beside, CrossValidation, FoldScore
from efficientnetv2.metrics.resampling import Difference

FIGURES = ("macro_f1", "top1")


def beside(low: float) -> Beside:
    """Random folds are better by 0.1, of which chance explains all but ``low``."""
    difference = Difference(0.1, low, 0.2)
    return Beside(
        "the linear probe",
        dict.fromkeys(FIGURES, 0.9),
        dict.fromkeys(FIGURES, 0.8),
        dict.fromkeys(FIGURES, difference),
    )


def told(by: str, *compared: Beside) -> tuple[str, str] | None:
    return CrossValidation(by, "", "macro_f1", [], beside=compared).elsewhere()


@pytest.mark.parametrize("low", [0.05, -0.05])
def test_by_place_the_figure_is_that_of_new_places_whatever_random_folds_reach(low):
    verdict, words = told("place", beside(low))
    assert verdict == "That is what is measured here."
    assert words == f"No network had learnt from the places that it answers. {beside(low).sentence()}"


def test_by_place_without_a_comparison():
    assert told("place") == (
        "That is what is measured here.",
        "No network had learnt from the places that it answers.",
    )


def test_otherwise_the_comparison_says_how_it_would_be_in_new_places():
    assert told("class", beside(0.05)) == ("Less good.", beside(0.05).sentence())
    assert told("class", beside(-0.05)) == ("No worse beyond chance.", beside(-0.05).sentence())
    assert told("class") is None
    assert told("group") is None


def test_folds_that_began_from_different_weights_are_named():
    def score(number: int, weights: str) -> FoldScore:
        return FoldScore(number, "", 20, 10, 0.5, 0.5, 4.0, 60.0, (weights,))

    alike, apart = (
        CrossValidation("class", "", "macro_f1", [score(0, "a.in1k"), score(1, other), score(2, "a.in1k")])
        for other in ("a.in1k", "none")
    )
    assert len(alike.lines()) == 1
    assert apart.lines()[1].startswith("Weights: a.in1k in folds 1, 3; none in fold 2, as each fold's own")
    assert apart.lines()[1] in apart.sections()[0].sentences
    assert apart.to_json()["folds"][1]["weights"] == ("none",)


def test_networks_that_answer_together_are_said_to():
    tries = ("balance=null", "balance=equal")
    fold = FoldScore(0, "", 20, 10, 0.5, 0.5, 4.0, 60.0, ("a.in1k", "none"), tries)
    whole = CrossValidation("class", "", "macro_f1", [fold, fold], members=2)
    first = whole.sections()[0]
    assert any(
        "each by 2 networks together (their mean) that had not learnt" in one for one in first.sentences
    )
    assert (first.columns[-1], first.rows[0][-1]) == ("settings", "balance=null; balance=equal")
    assert len(whole.lines()) == 1, "all folds begin alike"
