"""Progressive and fixed training: differences of the arms, tuning and claims."""

from __future__ import annotations

import json
import statistics
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


def test_progressive_grows_from_64_to_128_px_and_a_third_of_the_regularization():
    schedule = recipe(PROGRESSIVE).progressive
    stages = [schedule.stage(number) for number in range(4)]
    assert [stage.image_size for stage in stages] == [64, 96, 96, 128]
    assert [stage.randaugment for stage in stages] == pytest.approx([5, 25 / 3, 35 / 3, 15], abs=1e-3)
    assert [stage.dropout for stage in stages] == pytest.approx([0.1, 0.5 / 3, 0.7 / 3, 0.3], abs=1e-3)


@pytest.mark.parametrize("arm", [FIXED, EQUAL_TIME])
def test_fixed_is_the_last_stage_of_progressive(arm):
    fixed, growing = recipe(arm), recipe(PROGRESSIVE)
    assert fixed.progressive.stages == 1
    assert fixed.progressive.stage(0) == growing.progressive.last
    assert fixed.model_copy(update={"progressive": growing.progressive}) == growing


def test_strength_none_has_no_regularization():
    for arm in (FIXED, PROGRESSIVE):
        last = recipe(arm, Choice("none", 2e-3)).progressive.last
        assert (last.randaugment, last.dropout) == (None, 0)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs of one second per epoch at fixed size and half of it progressively; top-1 depends on rate and strength."""
    first = {"train": 0, "val": 100_000}  # first row by split
    monkeypatch.setattr(
        regimes, "rows_of", lambda dataset, split, count, seed: [first[split] + seed + row for row in range(count or 9)]
    )
    monkeypatch.setattr(regimes, "write_pictures", lambda file, *parts: written.append(parts) or file)
    requests, lrs, written = [], {}, []

    def fake_run(runs, cell, seed):
        recipe_ = with_overrides(get_recipe("quick"), cell.settings)
        time_factor = 0.5 if cell.row == PROGRESSIVE else 1.0
        requests.append((cell.row, seed, recipe_.epochs, runs.source.data))
        lrs.setdefault(cell.row, set()).add(recipe_.optimizer.lr)
        strength = recipe_.progressive.last.randaugment or 0
        top1 = 0.5 - abs(strength - (10 if cell.row == FIXED else 15)) / 100 - abs(recipe_.optimizer.lr - 1e-3)
        return {
            "top1": top1 + seed / 100,
            "train_s": recipe_.epochs * time_factor,
            "epochs": recipe_.epochs,
            "others_cores": 0.0,
            "hardware": "one",
        }

    monkeypatch.setattr(progressive, "measured", fake_run)
    return Runs(DataConfig("x"), 2, "none", "cpu", tmp_path, print), requests, lrs, written


def test_each_arm_is_tuned_separately(runs):
    all_runs, requests, *_ = runs
    chosen = progressive.tuned(None, REGIMES["paper"], all_runs)["arms"]
    assert chosen[FIXED]["chosen"] == {"strength": "middle", "lr": 1e-3, "shares": None}
    assert chosen[PROGRESSIVE]["chosen"] == {"strength": "strong", "lr": 1e-3, "shares": (2, 1, 1, 1)}
    # Strengths, rates until the best is not at an end, and the strengths again at the best rate.
    assert len(chosen[FIXED]["tried"]) == 5 + 3 + 4
    assert len(chosen[PROGRESSIVE]["tried"]) == 4 + 3 + 3 + 2
    lrs = [candidate["lr"] for candidate in chosen[FIXED]["tried"]]
    assert lrs == [2e-3] * 5 + [1e-3, 4e-3, 5e-4] + [1e-3] * 4
    # For fixed, "strong" is 5 points below "middle", and it is the last.
    assert [candidate["strength"] for candidate in chosen[FIXED]["tried"]][:5] == list(regimes.STRENGTHS)
    assert {Path(data).name for *_, data in requests} == {"tuning.csv"}


def test_fastest_stages_within_one_point_are_chosen(runs, monkeypatch):
    all_runs, *_ = runs
    measured, penalty = progressive.measured, {}

    def fake_run(runs, cell, seed):
        row = measured(runs, cell, seed)
        fractions = with_overrides(get_recipe("quick"), cell.settings).progressive.stage_fractions
        return row | {"top1": row["top1"] - penalty.get(fractions, 0)}

    monkeypatch.setattr(progressive, "measured", fake_run)

    def chosen(*points):
        penalty.update(zip(REGIMES["paper"].shares, points, strict=True))
        return progressive.tuned(None, REGIMES["paper"], all_runs, (PROGRESSIVE,))["arms"][PROGRESSIVE]["chosen"]

    assert chosen(0.0, 0.02)["shares"] == (3, 2, 2, 2)
    assert chosen(0.02, 0.009)["shares"] == (2, 1, 1, 1)
    assert chosen(0.02, 0.02)["shares"] is None
    assert chosen(-0.02, 0.0)["shares"] == (3, 2, 2, 2), "one point below the best of all"
    short = progressive.tuned(None, REGIMES["short"], all_runs, (PROGRESSIVE,))["arms"][PROGRESSIVE]
    assert len(short["tried"]) == 4 + 3 + 3


def test_resnet50_grows_from_48_to_96_px():
    regime = REGIMES["resnet50"]
    schedule = recipe(PROGRESSIVE, regime=regime).progressive
    assert [schedule.stage(number).image_size for number in range(4)] == [48, 64, 80, 96]
    assert recipe(FIXED, regime=regime).progressive.stage(0) == schedule.last
    assert cell(FIXED, "run", CHOICE, regime, 6).model == "torchvision:resnet50"
    assert cell(FIXED, "run", CHOICE, REGIMES["paper"], 6).model == "efficientnetv2_b0"


def test_stage_fractions_and_batch_size_are_overrides_of_the_run():
    choice = Choice("none", 2e-3, (3, 2, 2, 2))
    assert choice.column == "none 0.002 3 2 2 2"
    growing, fixed = recipe(PROGRESSIVE, choice), recipe(FIXED, choice)
    assert growing.progressive.stage_fractions == (3, 2, 2, 2)
    assert fixed.progressive.stage_fractions is None
    assert growing.batch_size == fixed.batch_size == 64
    assert recipe(FIXED, regime=REGIMES["short"]).batch_size == 32
    assert progressive._chosen(**json.loads(json.dumps(asdict(choice)))) == choice


def test_constant_strength_is_the_mean_of_a_ramp():
    """A ramp over four stages has 1/3, 5/9, 7/9 and 1 of its end: two thirds on average."""
    growing = [*regularized("light", growing=True), "progressive.image_size=64", "progressive.stages=4"]
    schedule = with_overrides(get_recipe("quick"), growing).progressive
    slight = with_overrides(get_recipe("quick"), regularized("slight", growing=False)).progressive.last
    means = [
        statistics.fmean(getattr(schedule.stage(index), name) for index in range(4))
        for name in ("randaugment", "dropout")
    ]
    assert means == pytest.approx([slight.randaugment, slight.dropout], abs=1e-3)
    assert list(regimes.STRENGTHS)[:3] == ["none", "slight", "light"]
    assert "slight" not in regimes.strengths(growing=True)


def test_stronger_regularization_is_skipped_after_a_bad_one(runs, monkeypatch):
    all_runs, *_ = runs

    def tried(strengths):
        monkeypatch.setattr(regimes, "STRENGTHS", strengths)
        arm = progressive.tuned(None, REGIMES["paper"], all_runs, (FIXED,))["arms"][FIXED]
        return [candidate["strength"] for candidate in arm["tried"]]

    after_a_bad_one = tried({"none": (10, 0.0), "light": (14, 0.1), "strong": (5, 0.3)})
    assert after_a_bad_one == ["none", "light", *["none"] * 3, "light"]
    all_strengths = tried({"none": (10, 0.0), "light": (12, 0.1), "strong": (5, 0.3)})
    assert all_strengths == ["none", "light", "strong", *["none"] * 3, "light", "strong"]


def test_strengths_are_tried_once_at_the_best_rate(runs, monkeypatch):
    all_runs, *_ = runs
    monkeypatch.setattr(progressive, "RATES", (1e-3, 5e-4, 2e-3))
    found = progressive.tuned(None, REGIMES["paper"], all_runs, (FIXED,))["arms"][FIXED]
    assert [candidate["lr"] for candidate in found["tried"]] == [1e-3] * 5 + [5e-4, 2e-3]


def test_single_arm_is_tuned_with_the_same_candidates(runs):
    all_runs, requests, *_ = runs
    both = progressive.tuned(None, REGIMES["paper"], all_runs)["arms"]
    requests.clear()
    single = progressive.tuned(None, REGIMES["paper"], all_runs, (FIXED,))["arms"]
    assert single == {FIXED: both[FIXED]}
    assert {arm for arm, *_ in requests} == {FIXED}


def test_equal_time_has_the_duration_of_progressive_for_each_seed(runs):
    all_runs, requests, *_ = runs
    found = compared(None, REGIMES["paper"], {FIXED: CHOICE, PROGRESSIVE: CHOICE}, all_runs)
    assert [row["train_s"] for row in found[EQUAL_TIME]] == [row["train_s"] for row in found[PROGRESSIVE]]
    assert [(arm, epochs) for arm, seed, epochs, _ in requests if seed == 1] == [
        (FIXED, 60), (PROGRESSIVE, 60), (EQUAL_TIME, 30),
    ]  # fmt: skip
    assert {Path(data).name for _, seed, _, data in requests if seed == 1} == {"pictures_1.csv"}


def test_equal_time_of_older_runs_is_rejected(runs, monkeypatch):
    """The fixed runs were repeated, and the saved run has the duration of the old ones."""
    all_runs, *_ = runs
    measured = progressive.measured

    def saved_run(runs, cell, seed):
        row = measured(runs, cell, seed)
        return row | {"epochs": 31.0} if cell.row == EQUAL_TIME else row

    monkeypatch.setattr(progressive, "measured", saved_run)
    with pytest.raises(SystemExit, match="is of other times than those that are there now: delete it"):
        compared(None, REGIMES["paper"], {FIXED: CHOICE, PROGRESSIVE: CHOICE}, all_runs)


def test_each_arm_has_its_choice_and_equal_time_that_of_fixed(runs):
    all_runs, _, lrs, _ = runs
    choices = {FIXED: Choice("light", 1e-3), PROGRESSIVE: Choice("light", 4e-3)}
    compared(None, REGIMES["paper"], choices, all_runs)
    assert lrs == {FIXED: {1e-3}, PROGRESSIVE: {4e-3}, EQUAL_TIME: {1e-3}}


def test_tuning_uses_disjoint_training_images(runs):
    all_runs, *_, written = runs
    progressive.tuned(None, REGIMES["paper"], all_runs)
    (_, train, selection) = written[0]
    assert (len(train), len(selection)) == (1000, 2000)
    assert not set(train) & set(selection)
    assert max(*train, *selection) < 100_000  # none of val


def test_each_seed_has_other_training_images_and_the_same_val(runs):
    all_runs, *_, written = runs
    compared(None, REGIMES["paper"], {FIXED: CHOICE, PROGRESSIVE: CHOICE}, all_runs)
    (_, train, val), (_, train_1, val_1) = written
    assert train[0] != train_1[0]
    assert len(train) == len(train_1) == 1000
    assert val == val_1
    assert min(val) >= 100_000


def test_claims_by_hand():
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
    values = {name: (claim.value, unit) for name, (claim, unit) in found.items()}
    assert values == {
        "progressive_speedup_b0_imagenette": (pytest.approx(2.0), "ratio"),
        "progressive_wall_speedup_b0_imagenette": (pytest.approx((150 / 100 * 250 / 150) ** 0.5), "ratio"),
        "progressive_top1_gain_b0_imagenette": (pytest.approx(2.0), "points"),
        "progressive_top1_gain_equal_time_b0_imagenette": (pytest.approx(7.0), "points"),
    }


@pytest.mark.parametrize(
    ("options", "facts"),
    [(["--record", "--epochs", "1"], ("--record",)), (["--record", "--tune"], ("--record",)), ([], ("--tune",))],
)
def test_invalid_options_are_rejected(options, facts, tmp_path, monkeypatch, capsys):
    images = ROOT / "examples/land_cover/images.csv"
    monkeypatch.setattr(sys, "argv", ["progressive", str(images), "--output", str(tmp_path), *options])
    with pytest.raises(SystemExit) as ended:
        progressive.main()
    assert ended.value.code == 2
    assert mentions(capsys.readouterr().err, *facts)


def test_figure_shows_every_run_and_the_cost_of_every_size():
    """Two seeds of three arms: three groups of two points; 3 and 5 minutes of fixed, 1 + 1 + 1 of progressive."""
    fixed = [
        {"top1": 0.5, "train_s": seconds, "sizes": [{"image_size": 128, "images": 9, "train_s": seconds}]}
        for seconds in (180.0, 300.0)
    ]
    sizes = [{"image_size": px, "images": 9, "train_s": 60.0} for px in (64, 96, 128)]
    growing = {"top1": 0.6, "train_s": 180.0, "sizes": sizes}
    figure = progressive_figure.draw({FIXED: fixed, PROGRESSIVE: [growing] * 2, EQUAL_TIME: fixed})
    left, right = figure.axes
    assert [points.get_offsets().tolist() for points in left.collections] == [
        [[3.0, 50.0], [5.0, 50.0]], [[3.0, 60.0]] * 2, [[3.0, 50.0], [5.0, 50.0]],
    ]  # fmt: skip
    assert len(left.lines) == 2
    tops = [bar.get_y() + bar.get_height() for bar in right.patches[-3:]]
    assert tops == [4.0, 3.0, 4.0]


def test_saved_tuning_is_used_for_any_number_of_seeds(tmp_path, monkeypatch):
    images = ROOT / "examples/land_cover/images.csv"
    saved = {"regime": asdict(REGIMES["paper"]), "arms": {arm: {"chosen": asdict(CHOICE)} for arm in progressive.BOTH}}
    (tmp_path / "tuned.json").write_text(json.dumps(saved))
    row = {"top1": 0.5, "train_s": 60.0}
    monkeypatch.setattr(progressive, "compared", lambda dataset, regime, choices, runs: {
        arm: [row] * runs.seeds for arm in (FIXED, PROGRESSIVE, EQUAL_TIME)
    })  # fmt: skip
    monkeypatch.setattr(progressive, "claims", lambda found, of: num_seeds.append(len(found[FIXED])) or {})
    num_seeds = []
    for more in ([], ["--seeds", "2"]):
        monkeypatch.setattr(sys, "argv", ["progressive", str(images), "--output", str(tmp_path), *more])
        progressive.main()
    assert num_seeds == [5, 2]
