"""Progressive against fixed training: what differs between the arms, what is chosen, what is claimed."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from benchmarks import progressive, progressive_figure, regimes
from benchmarks.paper.runs import Runs
from benchmarks.progressive import EQUAL_TIME, FIXED, PROGRESSIVE, REGIMES, Choice, cell, claims, compared
from benchmarks.regimes import regularized
from tests.messages import mentions
from tests.recipes import with_overrides

from efficientnetv2.data.config import DataConfig
from efficientnetv2.training.recipes import get_recipe

ROOT = Path(__file__).parents[2]
CHOICE = Choice("strong", 1e-3)


def recipe(arm, choice=CHOICE, regime=REGIMES["paper"], epochs=60.0):
    return with_overrides(get_recipe("quick"), cell(arm, "run", choice, regime, epochs).settings)


def test_progressive_goes_from_64_to_128_px_and_from_a_third_of_the_regularization_to_all():
    plan = recipe(PROGRESSIVE).progressive
    stages = [plan.stage(number) for number in range(4)]
    assert [stage.image_size for stage in stages] == [64, 96, 96, 128]
    assert [stage.randaugment for stage in stages] == pytest.approx([5, 25 / 3, 35 / 3, 15], abs=1e-3)
    assert [stage.dropout for stage in stages] == pytest.approx([0.1, 0.5 / 3, 0.7 / 3, 0.3], abs=1e-3)


@pytest.mark.parametrize("arm", [FIXED, EQUAL_TIME])
def test_fixed_is_progressives_end_throughout_and_nothing_else_differs(arm):
    fixed, growing = recipe(arm), recipe(PROGRESSIVE)
    assert fixed.progressive.stages == 1
    assert fixed.progressive.stage(0) == growing.progressive.last
    assert fixed.model_copy(update={"progressive": growing.progressive}) == growing


def test_no_regularization_is_none():
    for arm in (FIXED, PROGRESSIVE):
        last = recipe(arm, Choice("none", 2e-3)).progressive.last
        assert (last.randaugment, last.dropout) == (None, 0)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs that take a second an epoch at a fixed size and half of it progressively, better by rate and strength."""
    first = {"train": 0, "val": 100_000}  # numbers of images, by which one sees where they are from
    monkeypatch.setattr(
        regimes, "rows_of", lambda dataset, split, count, seed: [first[split] + seed + row for row in range(count or 9)]
    )
    monkeypatch.setattr(regimes, "write_pictures", lambda file, *parts: written.append(parts) or file)
    asked, lrs, written = [], {}, []

    def found(runs, cell, seed):
        made = with_overrides(get_recipe("quick"), cell.settings)
        quicker = 0.5 if cell.row == PROGRESSIVE else 1.0
        asked.append((cell.row, seed, made.epochs, runs.source.data))
        lrs.setdefault(cell.row, set()).add(made.optimizer.lr)
        strength = made.progressive.last.randaugment or 0
        top1 = 0.5 - abs(strength - (10 if cell.row == FIXED else 15)) / 100 - abs(made.optimizer.lr - 1e-3)
        return {
            "top1": top1 + seed / 100,
            "train_s": made.epochs * quicker,
            "epochs": made.epochs,
            "others_cores": 0.0,
            "hardware": "one",
        }

    monkeypatch.setattr(progressive, "measured", found)
    return Runs(DataConfig("x"), 2, "none", "cpu", tmp_path, print), asked, lrs, written


def test_each_arm_is_tuned_by_itself(runs):
    together, asked, *_ = runs
    chosen = progressive.tuned(None, REGIMES["paper"], together)["arms"]
    assert chosen[FIXED]["chosen"] == {"strength": "middle", "lr": 1e-3, "shares": None}
    assert chosen[PROGRESSIVE]["chosen"] == {"strength": "strong", "lr": 1e-3, "shares": (2, 1, 1, 1)}
    # Strengths, rates until the best lies between others, and the strengths once more with the best of them.
    assert len(chosen[FIXED]["tried"]) == 5 + 3 + 4
    assert len(chosen[PROGRESSIVE]["tried"]) == 4 + 3 + 3 + 2
    rates = [one["lr"] for one in chosen[FIXED]["tried"]]
    assert rates == [2e-3] * 5 + [1e-3, 4e-3, 5e-4] + [1e-3] * 4
    # Of fixed, "strong" is 5 points below "middle", but no more is left to try.
    assert [one["strength"] for one in chosen[FIXED]["tried"]][:5] == list(regimes.STRENGTHS)
    assert {Path(data).name for *_, data in asked} == {"tuning.csv"}


def test_the_quickest_stages_are_taken_that_cost_no_more_than_a_point(runs, monkeypatch):
    together, *_ = runs
    anew, lost = progressive.measured, {}

    def found(runs, cell, seed):
        row = anew(runs, cell, seed)
        made = with_overrides(get_recipe("quick"), cell.settings).progressive.stage_fractions
        return row | {"top1": row["top1"] - lost.get(made, 0)}

    monkeypatch.setattr(progressive, "measured", found)

    def chosen(*points):
        lost.update(zip(REGIMES["paper"].shares, points, strict=True))
        return progressive.tuned(None, REGIMES["paper"], together, (PROGRESSIVE,))["arms"][PROGRESSIVE]["chosen"]

    assert chosen(0.0, 0.02)["shares"] == (3, 2, 2, 2)
    assert chosen(0.02, 0.009)["shares"] == (2, 1, 1, 1)
    assert chosen(0.02, 0.02)["shares"] is None
    assert chosen(-0.02, 0.0)["shares"] == (3, 2, 2, 2), "a point below the best of all, not of equally many steps"
    short = progressive.tuned(None, REGIMES["short"], together, (PROGRESSIVE,))["arms"][PROGRESSIVE]
    assert len(short["tried"]) == 4 + 3 + 3


def test_resnet50_grows_from_48_to_96_px_and_is_itself():
    regime = REGIMES["resnet50"]
    plan = recipe(PROGRESSIVE, regime=regime).progressive
    assert [plan.stage(number).image_size for number in range(4)] == [48, 64, 80, 96]
    assert recipe(FIXED, regime=regime).progressive.stage(0) == plan.last
    assert cell(FIXED, "run", CHOICE, regime, 6).model == "torchvision:resnet50"
    assert cell(FIXED, "run", CHOICE, REGIMES["paper"], 6).model == "efficientnetv2_b0"


def test_longer_first_stages_and_the_batch_are_settings_of_the_run():
    choice = Choice("none", 2e-3, (3, 2, 2, 2))
    assert choice.column == "none 0.002 3 2 2 2"
    growing, fixed = recipe(PROGRESSIVE, choice), recipe(FIXED, choice)
    assert growing.progressive.stage_fractions == (3, 2, 2, 2)
    assert fixed.progressive.stage_fractions is None
    assert growing.batch_size == fixed.batch_size == 64
    assert recipe(FIXED, regime=REGIMES["short"]).batch_size == 32
    assert progressive._chosen(**json.loads(json.dumps(asdict(choice)))) == choice


def test_what_stands_still_is_tried_with_what_a_growing_one_comes_to_on_average():
    """Over four stages a ramp from a third stands at 1/3, 5/9, 7/9 and 1 of its end: two thirds on average."""
    growing = [*regularized("light", growing=True), "progressive.image_size=64", "progressive.stages=4"]
    plan = with_overrides(get_recipe("quick"), growing).progressive
    slight = with_overrides(get_recipe("quick"), regularized("slight", growing=False)).progressive.last
    means = [
        statistics.fmean(getattr(plan.stage(index), name) for index in range(4)) for name in ("randaugment", "dropout")
    ]
    assert means == pytest.approx([slight.randaugment, slight.dropout], abs=1e-3)
    assert list(regimes.STRENGTHS)[:3] == ["none", "slight", "light"]
    assert "slight" not in regimes.strengths(growing=True)


def test_a_stronger_regularization_is_not_tried_once_one_is_hopeless(runs, monkeypatch):
    together, *_ = runs

    def of_these(strengths):
        monkeypatch.setattr(regimes, "STRENGTHS", strengths)

    of_these({"none": (10, 0.0), "light": (14, 0.1), "strong": (5, 0.3)})
    found = progressive.tuned(None, REGIMES["paper"], together, (FIXED,))["arms"][FIXED]
    assert [one["strength"] for one in found["tried"]] == ["none", "light", *["none"] * 3, "light"]
    of_these({"none": (10, 0.0), "light": (12, 0.1), "strong": (5, 0.3)})
    found = progressive.tuned(None, REGIMES["paper"], together, (FIXED,))["arms"][FIXED]
    assert [one["strength"] for one in found["tried"]] == ["none", "light", "strong", *["none"] * 3, "light", "strong"]


def test_strengths_are_tried_once_where_the_recipes_rate_is_the_best(runs, monkeypatch):
    together, *_ = runs
    monkeypatch.setattr(progressive, "RATES", (1e-3, 5e-4, 2e-3))
    found = progressive.tuned(None, REGIMES["paper"], together, (FIXED,))["arms"][FIXED]
    assert [one["lr"] for one in found["tried"]] == [1e-3] * 5 + [5e-4, 2e-3]


def test_one_way_alone_can_be_tuned_with_the_same_tries(runs):
    together, asked, *_ = runs
    whole = progressive.tuned(None, REGIMES["paper"], together)["arms"]
    asked.clear()
    alone = progressive.tuned(None, REGIMES["paper"], together, (FIXED,))["arms"]
    assert alone == {FIXED: whole[FIXED]}
    assert {arm for arm, *_ in asked} == {FIXED}


def test_equal_time_is_progressives_time_with_the_same_seed(runs):
    together, asked, *_ = runs
    found = compared(None, REGIMES["paper"], {FIXED: CHOICE, PROGRESSIVE: CHOICE}, together)
    assert [row["train_s"] for row in found[EQUAL_TIME]] == [row["train_s"] for row in found[PROGRESSIVE]]
    assert [(arm, epochs) for arm, seed, epochs, _ in asked if seed == 1] == [
        (FIXED, 60), (PROGRESSIVE, 60), (EQUAL_TIME, 30),
    ]  # fmt: skip
    assert {Path(data).name for _, seed, _, data in asked if seed == 1} == {"pictures_1.csv"}


def test_an_equal_time_of_other_times_is_refused(runs, monkeypatch):
    """As where fixed was trained again and what was as long as its progressive has stayed."""
    together, *_ = runs
    anew = progressive.measured

    def kept(runs, cell, seed):
        row = anew(runs, cell, seed)
        return row | {"epochs": 31.0} if cell.row == EQUAL_TIME else row

    monkeypatch.setattr(progressive, "measured", kept)
    with pytest.raises(SystemExit, match="is of other times than those that are there now: delete it"):
        compared(None, REGIMES["paper"], {FIXED: CHOICE, PROGRESSIVE: CHOICE}, together)


def test_each_arm_trains_with_its_own_choice_and_equal_time_with_that_of_fixed(runs):
    together, _, lrs, _ = runs
    choices = {FIXED: Choice("light", 1e-3), PROGRESSIVE: Choice("light", 4e-3)}
    compared(None, REGIMES["paper"], choices, together)
    assert lrs == {FIXED: {1e-3}, PROGRESSIVE: {4e-3}, EQUAL_TIME: {1e-3}}


def test_tuning_fits_and_chooses_by_different_pictures_of_train(runs):
    together, *_, written = runs
    progressive.tuned(None, REGIMES["paper"], together)
    (_, fitting, choosing) = written[0]
    assert (len(fitting), len(choosing)) == (1000, 2000)
    assert not set(fitting) & set(choosing)
    assert max(*fitting, *choosing) < 100_000  # of val there is none


def test_each_seed_has_pictures_of_its_own_and_answers_the_same_of_val(runs):
    together, *_, written = runs
    compared(None, REGIMES["paper"], {FIXED: CHOICE, PROGRESSIVE: CHOICE}, together)
    (_, learning, answering), (_, learning_1, answering_1) = written
    assert learning[0] != learning_1[0]
    assert len(learning) == len(learning_1) == 1000
    assert answering == answering_1
    assert min(answering) >= 100_000


def test_the_claims_are_by_hand():
    rows = {
        FIXED: [(0.50, 100.0), (0.52, 200.0)],
        PROGRESSIVE: [(0.53, 50.0), (0.53, 100.0)],
        EQUAL_TIME: [(0.45, 50.0), (0.47, 100.0)],
    }
    by_arm = {arm: [{"top1": a, "train_s": b, "wall_s": b + 50} for a, b in pairs] for arm, pairs in rows.items()}
    assert list(claims(by_arm, REGIMES["resnet50"].claimed)) == [
        "progressive_speedup_resnet50_imagenette",
        "progressive_wall_speedup_resnet50_imagenette",
        "progressive_top1_gain_resnet50_imagenette",
        "progressive_top1_gain_equal_time_resnet50_imagenette",
    ]
    found = claims(by_arm, "b0_imagenette")
    values = {name: (figure.value, unit) for name, (figure, unit) in found.items()}
    assert values == {
        "progressive_speedup_b0_imagenette": (pytest.approx(2.0), "ratio"),
        "progressive_wall_speedup_b0_imagenette": (pytest.approx((150 / 100 * 250 / 150) ** 0.5), "ratio"),
        "progressive_top1_gain_b0_imagenette": (pytest.approx(2.0), "points"),
        "progressive_top1_gain_equal_time_b0_imagenette": (pytest.approx(7.0), "points"),
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["--record", "--epochs", "1"], ("--record",)), (["--record", "--tune"], ("--record",)), ([], ("--tune",))],
)
def test_what_cannot_be_is_refused(words, sentence, tmp_path):
    pictures = ROOT / "examples/land_cover/pictures.csv"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.progressive", pictures, "--output", tmp_path, *words],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert mentions(done.stderr, *sentence)


def test_the_figure_shows_every_run_and_every_sizes_cost():
    """Two seeds of three arms: three clouds of two points; 3 and 5 minutes of fixed, 1 + 1 + 1 of progressive."""
    fixed = [
        {"top1": 0.5, "train_s": spent, "sizes": [{"image_size": 128, "images": 9, "train_s": spent}]}
        for spent in (180.0, 300.0)
    ]
    sizes = [{"image_size": px, "images": 9, "train_s": 60.0} for px in (64, 96, 128)]
    growing = {"top1": 0.6, "train_s": 180.0, "sizes": sizes}
    figure = progressive_figure.draw({FIXED: fixed, PROGRESSIVE: [growing] * 2, EQUAL_TIME: fixed})
    left, right = figure.axes
    assert [cloud.get_offsets().tolist() for cloud in left.collections] == [
        [[3.0, 50.0], [5.0, 50.0]], [[3.0, 60.0]] * 2, [[3.0, 50.0], [5.0, 50.0]],
    ]  # fmt: skip
    assert len(left.lines) == 2
    tops = [bar.get_y() + bar.get_height() for bar in right.patches[-3:]]
    assert tops == [4.0, 3.0, 4.0]


def test_what_was_tuned_serves_any_number_of_seeds(tmp_path, monkeypatch):
    pictures = ROOT / "examples/land_cover/pictures.csv"
    kept = {"regime": asdict(REGIMES["paper"]), "arms": {arm: {"chosen": asdict(CHOICE)} for arm in progressive.BOTH}}
    (tmp_path / "tuned.json").write_text(json.dumps(kept))
    row = {"top1": 0.5, "train_s": 60.0}
    monkeypatch.setattr(progressive, "compared", lambda dataset, regime, choices, runs: {
        arm: [row] * runs.seeds for arm in (FIXED, PROGRESSIVE, EQUAL_TIME)
    })  # fmt: skip
    monkeypatch.setattr(progressive, "claims", lambda found, of: asked.append(len(found[FIXED])) or {})
    asked = []
    for more in ([], ["--seeds", "2"]):
        monkeypatch.setattr(sys, "argv", ["progressive", str(pictures), "--output", str(tmp_path), *more])
        progressive.main()
    assert asked == [5, 2]
