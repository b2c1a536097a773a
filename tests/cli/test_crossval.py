"""``effnetv2 crossval``: each image is predicted once, by a model not trained on it; an interrupted run resumes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score
from tests.command_line import NETWORK, TINY, effnetv2, killed_at, run_ok, run_refused
from tests.conftest import COLORS, paint
from tests.data.test_folds import places
from tests.data.test_splits import dataset
from tests.messages import mentioning, mentions
from tests.metrics.test_metric_differences import alike_places
from tests.recipes import with_overrides

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.folds import Folds, assign_folds, time_folds
from efficientnetv2.evaluation.predictions import predictions_table, read_predictions, write_predictions
from efficientnetv2.evaluation.report_sections import label_efficiency_verdict
from efficientnetv2.inference.linear_probe import out_of_fold_predictions
from efficientnetv2.inference.predict import Embeddings, Predictions
from efficientnetv2.inference.predictor import Predictor
from efficientnetv2.models import ensemble, model_file
from efficientnetv2.models.factory import create
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipe_io import read_recipe as read_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_request import RunOptions
from efficientnetv2.training.seen_images import train_overlap
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key
from efficientnetv2.workflows import crossval, crossval_baseline, crossval_config, crossval_runs, evaluate
from efficientnetv2.workflows.crossval_baseline import compare_folds
from efficientnetv2.workflows.crossval_config import CrossValConfig, SavedCrossVal
from efficientnetv2.workflows.crossval_report import write_ensemble
from efficientnetv2.workflows.crossval_runs import FoldTrainer

ONE_STAGE = ("--set", "progressive.stages=1", "--set", "progressive.image_size=32")
OVERLAP = SimpleNamespace(num_selected=0, num_selected_before=0)
RUN = (*TINY, *ONE_STAGE, "--weights", "none", "--folds", "2")


@pytest.fixture(scope="module")
def finished(painted_folders, tmp_path_factory):
    """An uninterrupted cross-validation of 48 images in two folds."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    shutil.copytree(painted_folders, folder / "pictures")
    run_ok("crossval", folder / "pictures", *RUN, "--output", "folds", cwd=folder)
    return folder


def test_each_image_is_predicted_by_a_model_not_trained_on_it(finished):
    pooled = pd.read_csv(finished / "folds/predictions.csv").set_index("path")
    assert sorted(pooled.index) == sorted(load_dataset(finished / "pictures").paths)
    for number in (1, 2):
        run = finished / "folds" / f"fold{number}"
        table = pd.read_csv(run / "dataset.csv")
        predicted = pd.read_csv(run / "predictions.csv")
        names = {Path(path).name for path in predicted["path"]}
        assert names.isdisjoint(Path(path).name for path in table[table["split"] == "train"]["path"])
        predicted.index = [str(Path(*Path(path).parts[-2:])) for path in predicted["path"]]
        assert (pooled.loc[predicted.index, "predicted_label"] == predicted["predicted_label"]).all()
        assert pooled.loc[predicted.index, "red"].to_numpy() == pytest.approx(predicted["red"].to_numpy(), abs=1e-5)


def test_metrics_are_computed_on_all_predictions(finished):
    report = json.loads((finished / "folds/report.json").read_text())
    pooled = pd.read_csv(finished / "folds/predictions.csv")
    assert report["num_images"] == 48
    assert report["top1"] == pytest.approx((pooled["predicted_label"] == pooled["true_label"]).mean())
    assert report["macro_f1"] == pytest.approx(
        f1_score(pooled["true_label"], pooled["predicted_label"], average="macro")
    )
    each = [one["top1"] for one in report["folds"]]
    assert report["fold_mean"]["top1"]["mean"] == pytest.approx(np.mean(each))
    assert report["fold_mean"]["top1"]["deviation"] == pytest.approx(np.std(each, ddof=1))
    assert not report["optimistic"]
    low, high = report["intervals"]["macro_f1"]
    assert low <= report["macro_f1"] <= high
    page = (finished / "folds/report.html").read_text()
    assert '<h2 id="folds">' in page
    assert {f"fold{number}/report.html" for number in (1, 2)} <= set(re.findall(r'href="([^"]+)"', page))
    assert "out-of-fold" in page
    assert page.count('alt="Grad-CAM"') >= 8, "of each image shown, by the model that predicted it"
    assert "Training curves are in the report of each fold" in page
    files = ("dataset.csv", "fold1/model.safetensors", "fold2/model.safetensors")
    assert report["sha256"] == {
        name: hashlib.sha256((finished / "folds" / name).read_bytes()).hexdigest() for name in files
    }
    assert report["train_images_per_class"] == dict.fromkeys(COLORS, 8)


def test_report_has_the_linear_probe_on_the_same_folds(finished):
    args = ("--weights", "folds/fold1", "--output", "further", "--json")
    done = run_ok("crossval", finished / "pictures", *RUN, *args, cwd=finished)
    page = (finished / "further/report.html").read_text()
    assert mentions(page, "probe", "linear classifier")
    report = json.loads(done.stdout)
    assert 0 <= report["linear_probe_top1"] <= 1
    assert report["linear_probe_num_images"] == report["linear_probe_num_available"] == 24
    assert set(report["linear_probe_f1"]) == set(COLORS)


def test_data_scaling_curve_is_measured_on_the_first_fold():
    """100 of 150 images train; two classes differ in one of the features."""
    labels = np.arange(150) % 2
    vectors = np.random.default_rng(0).normal(size=(150, 8)).astype(np.float32)
    vectors[:, 0] += labels
    data = dataset(labels)
    folds = assign_folds(data, k=3, seed=0, contents=np.arange(150), by="class")
    shuffled, trainer = np.random.default_rng(1).permutation(150), SimpleNamespace(dataset=data)
    embedded = Embeddings(shuffled, labels[shuffled], vectors[shuffled])
    curve = crossval_baseline._label_curve(embedded, folds, 0, Key.of(0), trainer, balanced=False)
    assert [point.num_images for point in curve.points] == [12, 25, 50, 100]
    assert 0.5 < curve.points[-1].macro_f1 < 0.9
    assert (curve.carried, curve.forecast.num_images) == (None, 200)
    subset = Embeddings(shuffled[:90], labels[shuffled[:90]], vectors[shuffled[:90]])
    sampled = crossval_baseline._label_curve(subset, folds, 0, Key.of(0), trainer, balanced=False)
    assert sampled.points[-1].num_images < 70
    assert (sampled.carried.num_images, sampled.forecast.num_images) == (100, 200)
    few = Embeddings(np.arange(20), labels[:20], vectors[:20])
    assert crossval_baseline._label_curve(few, folds, 0, Key.of(0), trainer, balanced=False) is None


def test_models_of_all_folds_predict_as_an_ensemble(finished):
    run_ok("predict", "folds", "pictures/red", "--output", "new.csv", "--device", "cpu", cwd=finished)
    table = pd.read_csv(finished / "new.csv")
    files = [finished / "pictures/red" / Path(path).name for path in table["path"]]
    predictions_by_fold = [Predictor(finished / "folds" / f"fold{number}")(files) for number in (1, 2)]
    for name in COLORS:
        mean = np.mean(
            [[one.probabilities[name] for one in predictions] for predictions in predictions_by_fold], axis=0
        )
        assert table[name].to_numpy() == pytest.approx(mean, abs=1e-4)


def test_temperatures_of_the_folds_are_reported(finished):
    """As fitted on a minival of 30 images or more; then the report does not advise to set minival."""
    shutil.copytree(finished / "folds", finished / "scaled")
    (finished / "scaled/report.json").unlink()  # as if killed after the last fold
    for number, temperature in ((1, 1.25), (2, 1.5)):
        model = model_file.load(finished / f"scaled/fold{number}")
        model.calibration = Calibration(temperature, 30 + number, "minival")
        model_file.save(finished / f"scaled/fold{number}" / model_file.NAME, model)
    crossval_args = ("crossval", "pictures", "--output", "scaled", "--resume")
    evaluate_args = ("evaluate", "scaled", "pictures", "--output", "rated", "--device", "cpu")
    for args, out in ((crossval_args, "scaled"), (evaluate_args, "rated")):
        done = run_ok(*args, cwd=finished)
        assert mentions(
            " ".join(done.stdout.split()), "2 of 2 models", "temperature", "1.25 to 1.5", "31 to 32", "minival"
        )
        assert "minival=0.1" not in done.stdout
        result = json.loads((finished / out / "report.json").read_text())["calibration"]
        assert [one["temperature"] for one in result["members"]] == [1.25, 1.5]
        assert mentions((finished / out / "report.html").read_text(), "2 of 2 models", "1.25 to 1.5")
    ensemble_model = SimpleNamespace(network=model_file.load(finished / "scaled"))
    assert mentions(evaluate._calibration_note(ensemble_model.network, "minival", OVERLAP), "minival", "temperature")
    assert evaluate._calibration_note(ensemble_model.network, "val", OVERLAP) is None


def test_ensemble_as_initial_weights_is_refused(finished):
    done = run_refused("train", "pictures", "--weights", "folds", "--output", "more", cwd=finished)
    assert "ensemble of 2 models" in done.stderr
    assert mentions(done.stderr, "--weights", "folds/fold1")


def test_ensemble_metrics_on_its_training_images_are_optimistic(finished):
    done = run_ok("evaluate", "folds", "pictures", "--device", "cpu", "--json", cwd=finished)
    assert json.loads(done.stdout)["optimistic"]
    assert mentions(done.stdout, "48", "trained")


def test_unseen_images_have_separate_metrics(finished, tmp_path):
    rows = [
        (str(finished / "pictures" / path), Path(path).parent.name)
        for path in load_dataset(finished / "pictures").paths
    ]
    for number in range(36):
        name = list(COLORS)[number % 3]
        rows.append((str(paint(tmp_path / f"{number}.jpg", COLORS[name], 100 + number)), name))
    table = pd.DataFrame(rows, columns=["path", "label"])
    table.to_csv(tmp_path / "all.csv", index=False)
    args = ("evaluate", finished / "folds", "all.csv", "--device", "cpu", "--output", "rated")
    done = run_ok(*args, cwd=tmp_path)
    assert mentions(done.stdout, "36", "84", "top-1")
    report = json.loads((tmp_path / "rated/report.json").read_text())
    assert report["optimistic"]
    predictions = pd.read_csv(tmp_path / "rated/predictions.csv").iloc[48:]
    true, predicted = predictions["true_label"], predictions["predicted_label"]
    assert report["unseen"]["num_images"] == 36
    assert report["unseen"]["top1"] == pytest.approx((true == predicted).mean())
    assert report["unseen"]["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert set(report["unseen"]["intervals"]) == {"top1", "macro_f1"}
    table.iloc[:77].to_csv(tmp_path / "all.csv", index=False)  # 29 of the new images: too few
    few = run_ok(*args[:-2], "--json", cwd=tmp_path)
    assert "unseen" not in json.loads(few.stdout)


@pytest.fixture(scope="module")
def with_two_members(finished, tmp_path_factory):
    """The same cross-validation with two models per fold."""
    folder = tmp_path_factory.mktemp("pairs")
    run_ok("crossval", finished / "pictures", *RUN, "--ensemble", "2", "--output", "folds", cwd=folder)
    return folder


def test_two_members_per_fold_are_averaged(finished, with_two_members):
    """The first member of each fold is the model of the run without ``--ensemble``."""
    folder = with_two_members / "folds"
    pooled = pd.read_csv(folder / "predictions.csv").set_index("path")
    for number in (1, 2):
        members_red = []
        for name in (f"fold{number}", f"fold{number}_member2"):
            table = pd.read_csv(folder / name / "predictions.csv")
            table.index = [str(Path(*Path(path).parts[-2:])) for path in table["path"]]
            members_red.append(table["red"])
        assert (members_red[0] - members_red[1]).abs().max() > 1e-4, "another seed gives another model"
        first = pd.read_csv(finished / "folds" / f"fold{number}" / "predictions.csv")
        assert members_red[0].to_numpy() == pytest.approx(first["red"].to_numpy(), abs=1e-5)
        assert pooled.loc[members_red[0].index, "red"].to_numpy() == pytest.approx(
            (members_red[0] + members_red[1]) / 2, abs=1e-5
        )
    report = json.loads((folder / "report.json").read_text())
    assert "fold2_member2/model.safetensors" in report["sha256"]
    run_ok("predict", "folds", finished / "pictures", "--output", "predictions.csv", cwd=with_two_members)
    members = json.loads((folder / ensemble.NAME).read_text())["members"]
    assert len(members) == 4
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "each predicted by 2 models together (their mean) not trained on it" in page
    assert "each predicted by 2 models together not trained on it" in page
    assert mentions(page, "first of the 2 models")
    assert mentions(page.replace("<wbr>", ""), "fold 1")
    assert "new locations" not in page, "the dataset has no locations"
    assert report["ensemble_size"] == 2
    each = [json.loads(file.read_text())["wall_s"] for file in folder.glob("fold*/report.json")]
    assert len(each) == 4
    assert report["wall_s"] == pytest.approx(sum(each), abs=0.05)


@pytest.mark.slow
def test_image_that_one_member_did_not_predict_is_left_out(finished, with_two_members, tmp_path):
    """It was lost before the training of the second member."""
    folder = shutil.copytree(with_two_members / "folds", tmp_path / "folds")
    (folder / "report.json").unlink()
    file = folder / "fold1_member2/predictions.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:1], *lines[2:]]))
    run_ok("crossval", finished / "pictures", "--output", folder, "--resume", cwd=tmp_path)
    before, after = (set(pd.read_csv(out / "predictions.csv")["path"]) for out in (with_two_members / "folds", folder))
    (lost,) = before - after
    assert lost in lines[1]
    assert lost in (folder / "skipped.csv").read_text()


@pytest.mark.slow
def test_resume_trains_the_missing_member_of_a_fold(finished, with_two_members, tmp_path):
    command = ("crossval", finished / "pictures", *RUN, "--ensemble", "2", "--output", "killed")
    killed_at("efficientnetv2.workflows.crossval_runs:_mean_probabilities", *command, cwd=tmp_path)
    shutil.rmtree(tmp_path / "killed/fold1_member2")  # as if killed before its start
    first = tmp_path / "killed/fold1/model.safetensors"
    before = first.stat().st_mtime_ns
    run_ok("crossval", finished / "pictures", "--output", "killed", "--resume", cwd=tmp_path)
    assert first.stat().st_mtime_ns == before
    tables = [pd.read_csv(out / "predictions.csv") for out in (with_two_members / "folds", tmp_path / "killed")]
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.slow
def test_resumed_run_equals_the_uninterrupted_run(finished):
    """Killed after the first fold, which stays unchanged; the predictions are equal."""
    command = ("crossval", finished / "pictures", *RUN, "--output", "killed")
    killed_at("efficientnetv2.workflows.crossval_runs:_mean_probabilities", *command, cwd=finished)
    model = finished / "killed/fold1/model.safetensors"
    before = model.stat().st_mtime_ns
    assert not (finished / "killed/fold2").exists()
    again = run_ok("crossval", finished / "pictures", "--output", "killed", "--resume", cwd=finished)
    assert model.stat().st_mtime_ns == before
    assert "Better than the last run, " in again.stdout  # on the same images
    (finished / "killed/predictions.csv").unlink()  # as if killed after report.json was written
    (finished / "killed/report.html").unlink()
    run_ok("crossval", finished / "pictures", "--output", "killed", "--resume", cwd=finished)
    assert (finished / "killed/report.html").is_file()
    tables = [pd.read_csv(finished / out / "predictions.csv") for out in ("folds", "killed")]
    pd.testing.assert_frame_equal(*tables)
    third = effnetv2("crossval", finished / "pictures", "--output", "killed", "--resume", cwd=finished)
    assert mentions(third.stdout, "finished")


@pytest.mark.slow
def test_resume_from_another_folder_finds_the_initial_weights(finished):
    """Their relative path differs there, and the earlier path may name another file."""
    start = (
        "crossval", "pictures", *TINY, *ONE_STAGE, "--folds", "2", "--weights", "folds/fold1", "--output", "continued",
    )  # fmt: skip
    killed_at("efficientnetv2.workflows.crossval_runs:_mean_probabilities", *start, cwd=finished)
    (finished / "elsewhere/folds").mkdir(parents=True)
    shutil.copytree(finished / "folds/fold2", finished / "elsewhere/folds/fold1")
    resume = ("crossval", "../pictures", "--output", "../continued", "--resume", "--weights")
    other = run_refused(*resume, "folds/fold1", cwd=finished / "elsewhere")
    assert mentions(other.stderr, finished / "folds/fold1", finished / "elsewhere/folds/fold1")
    run_ok(*resume, "../folds/fold1", cwd=finished / "elsewhere")
    for fold in ("fold1", "fold2"):
        assert read_recipe(finished / "continued" / fold / "recipe.yaml").weights == str(finished / "folds/fold1")


def test_candidates_name_their_weights_by_absolute_paths(tmp_path, monkeypatch):
    """A resume from another directory would not find them, or find others."""
    file, seen = six_images(tmp_path), []

    def stop(self, folds, folder, title):
        seen.append(self.config.tries)
        raise InputError("enough")

    monkeypatch.setattr(FoldTrainer, "predict", stop)
    monkeypatch.setattr(crossval, "check_recipes", lambda *_: get_recipe("quick"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.safetensors").touch()
    config = CrossValConfig(folds=2, tries=("weights=a.safetensors seed=1", "flip=none"), members=2)
    with pytest.raises(InputError, match="enough"):
        crossval.run_crossval(SHORT, DataConfig(str(file)), RunOptions(tmp_path / "folds", device="cpu"), config)
    assert seen == [(f"weights={tmp_path / 'a.safetensors'} seed=1", "flip=none")]


def saved_in(folder, overrides, config=CrossValConfig(folds=3), source=DataConfig("a.csv")):  # noqa: B008
    SavedCrossVal(overrides, config, source, "d").save(folder)
    return SavedCrossVal.read(folder, source.data)


def test_architecture_file_is_saved_by_its_path(tmp_path):
    overrides = TrainOverrides(model="tests/network.yaml")
    saved = saved_in(tmp_path, overrides)
    assert saved.overrides == overrides
    saved.check_same(tmp_path, overrides, CrossValConfig(), DataConfig("a.csv"))


def test_fields_of_a_recipe_file_are_saved(tmp_path):
    """The file may be moved or edited: the remaining folds repeat the recipe of the finished folds."""
    file = tmp_path / "mine.yaml"
    file.write_text(get_recipe("finetune").to_yaml())
    overrides = TrainOverrides(recipe=str(file))
    saved = saved_in(tmp_path, overrides)
    file.write_text(get_recipe("finetune").model_copy(update={"crop_scale_min": 0.6}).to_yaml())
    with pytest.raises(InputError, match=mentioning("crop_scale_min", "0.6")):
        saved.check_same(tmp_path, TrainOverrides(recipe=str(file)), CrossValConfig(), DataConfig("a.csv"))
    file.unlink()
    assert saved.overrides == overrides
    assert saved.overrides.recipe == get_recipe("finetune")


def test_resume_compares_options(tmp_path):
    """An explicit default is compared."""
    saved = saved_in(tmp_path, TrainOverrides(weights="none"))

    def check(overrides=TrainOverrides(), explicit=()):  # noqa: B008
        saved.check_same(tmp_path, overrides, CrossValConfig(), DataConfig("a.csv"), explicit)

    check()
    for options, facts in (
        ({"explicit": {"folds"}}, ("3", "5", "fold")),
        ({"overrides": TrainOverrides(seed=1)}, ("1", "seed")),
        ({"overrides": TrainOverrides(minutes=5)}, ("5", "minutes")),
        ({"overrides": TrainOverrides(settings=("seed=7",))}, ("`settings`: none there, seed=7 here",)),
    ):
        with pytest.raises(InputError, match=mentioning(*facts)):
            check(**options)


@pytest.mark.parametrize(
    ("overrides", "tries", "facts"),
    [
        (replace(TrainOverrides(), settings=("optimizer.lrr=1",)), (), ("optimizer.lrr",)),
        (TrainOverrides(), ("", "balanse=equal"), ("balanse",)),
    ],
)
def test_recipe_is_validated_before_reading_images(overrides, tries, facts, tmp_path, monkeypatch):
    monkeypatch.setattr(crossval, "validate_images", lambda *_, **__: pytest.fail("images were read first"))
    source, options = DataConfig(str(six_images(tmp_path))), RunOptions(tmp_path / "folds", device="cpu")
    with pytest.raises(InputError, match=mentioning(*facts)):
        crossval.run_crossval(replace(overrides, weights="none"), source, options, CrossValConfig(folds=2, tries=tries))


@pytest.mark.usefixtures("on_screen")
def test_missing_initial_weights_only_skip_the_probe(tmp_path, capsys):
    """The trained folds are still reported."""
    data = dataset(np.arange(150) % 2)
    folds = assign_folds(data, k=3, seed=0, contents=np.arange(150), by="class")
    write_first_fold(tmp_path)
    run_facts = {"preprocessing": Preprocessing(image_size=32).to_json()}
    (tmp_path / "fold1/run.json").write_text(json.dumps(run_facts))
    runs = FoldTrainer(TrainOverrides(), CrossValConfig(folds=3), RunOptions(device="cpu"), data, np.arange(150), 0)
    assert crossval_baseline.probe_baseline(tmp_path, runs, folds, None) is None
    output = " ".join(capsys.readouterr().out.split())
    assert mentions(output, "no linear probe")
    assert "some.safetensors" in output


@pytest.mark.parametrize(
    ("candidate", "fact"),
    [
        ("class_sampling='sqrt", "No closing quotation"),
        ("progressive.image_size={start: 64, epochs=4", "No closing bracket"),
    ],
)
def test_unclosed_candidate_is_refused(candidate, fact):
    with pytest.raises(InputError, match=mentioning("candidates", fact)):
        CrossValConfig(tries=("", candidate))


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", ()),
        ("class_sampling=sqrt epochs=4", ("class_sampling=sqrt", "epochs=4")),
        ("progressive.image_size={start: 64, end: 128}", ("progressive.image_size={start: 64, end: 128}",)),
        ("progressive={stages: 2, image_size: {start: 64, end: 128}} epochs=4",
         ("progressive={stages: 2, image_size: {start: 64, end: 128}}", "epochs=4")),
        ("progressive.stage_fractions=[1, 2] 'class_sampling=sqrt'",
         ("progressive.stage_fractions=[1, 2]", "class_sampling=sqrt")),
    ],
)  # fmt: skip
def test_candidate_is_split_into_its_fields(text, settings):
    assert CrossValConfig(tries=("seed=1", text)).candidate_settings(1) == settings


def test_error_names_the_invalid_candidate():
    plan = CrossValConfig(tries=("", "crop_scale_min=2 epochs=4"), try_settings=("ema_decay=null",))
    with pytest.raises(InputError) as error:
        crossval.check_recipes(TrainOverrides(weights="none"), plan, RunOptions(device="cpu"))
    assert mentions(str(error.value), "candidates", "crop_scale_min=2", "epochs=4", "ema_decay=null")


@pytest.mark.parametrize(
    ("tried", "try_settings", "separator", "facts"),
    [
        ("class_weights=sqrt", (), ";", ("class_weights",)),
        ("minival=0.1", (), ";", ("minival",)),
        ("minival=null patience=2", ("minival=0.1",), None, ("2", "minival", "patience")),
    ],
)
def test_untrainable_candidate_is_refused_before_training(tried, try_settings, separator, facts):
    """Otherwise it would fail hours later: with multi-label, or without the fields of the selection."""
    overrides, options = TrainOverrides(weights="none"), RunOptions(device="cpu")
    valid, invalid = (
        CrossValConfig(tries=("", one), try_settings=try_settings) for one in ("class_sampling=null", tried)
    )
    assert crossval.check_recipes(overrides, valid, options, separator).weights == "none"
    with pytest.raises(InputError) as error:
        crossval.check_recipes(overrides, invalid, options, separator)
    assert str(error.value).startswith(f"`candidates`: {tried}")
    assert mentions(str(error.value), *facts)


@pytest.mark.parametrize(
    ("config", "settings", "facts"),
    [
        (CrossValConfig(folds=3, tries=("", "class_sampling=equal")), (), ("`candidates`", "fold", "'c2'")),
        (CrossValConfig(folds=3), ("minival=0.2",), ("fold", "'c2'")),
        (CrossValConfig(folds=3, tries=("", "class_sampling=equal"), members=2), ("minival=0.2",), ("fold", "'c2'")),
    ],
)
def test_fold_that_its_runs_cannot_split_is_refused_before_the_first_run(config, settings, facts):
    """Of a class of two images, one is left where the other is predicted. Earlier folds would have trained."""
    data, contents = dataset([0, 1] * 20 + [2, 2]), np.arange(42)
    recipe = with_overrides(get_recipe("quick"), settings)
    folds = config.make_folds(data, contents, 0)
    with pytest.raises(InputError, match=mentioning(*facts)):
        config.validate_splits(data, contents, folds, None, recipe)
    CrossValConfig(folds=3).validate_splits(data, contents, folds, None, get_recipe("quick"))


def test_backslashes_of_a_candidate_are_kept_on_windows(monkeypatch):
    config = CrossValConfig(tries=(r"weights=C:\models\a.safetensors seed=1", "'name=a b'"))
    assert config.candidate_settings(1) == ("name=a b",)
    monkeypatch.setattr("efficientnetv2.utils.shell.os", SimpleNamespace(name="nt"))
    assert config.candidate_settings(0) == (r"weights=C:\models\a.safetensors", "seed=1")


def test_probe_with_a_single_class_is_skipped(tmp_path, monkeypatch):
    """A sample of many images may have none of a rare class."""
    data = dataset(np.arange(150) % 2)
    folds = assign_folds(data, k=3, seed=0, contents=np.arange(150), by="class")
    (tmp_path / "fold1").mkdir()
    recipe = get_recipe("quick").model_copy(update={"weights": "some.safetensors"})
    (tmp_path / "fold1/recipe.yaml").write_text(recipe.to_yaml())
    rows = np.flatnonzero(data.labels == 0)
    vectors = np.zeros((len(rows), 8), np.float32)
    embedded = Embeddings(rows, data.labels[rows], vectors)
    monkeypatch.setattr(crossval_baseline, "_embeddings", lambda *_: embedded)
    runs = FoldTrainer(TrainOverrides(), CrossValConfig(folds=3), RunOptions(), data, np.arange(150), 0)
    assert crossval_baseline.probe_baseline(tmp_path, runs, folds, None) is None


def test_probe_reports_its_number_of_training_images(tmp_path, monkeypatch):
    """90 of 150 images are embedded: 60 of the 100 training images of each fold, on average."""
    data = dataset(np.arange(150) % 2)
    folds = assign_folds(data, k=3, seed=0, contents=np.arange(150), by="class")
    rows = np.sort(np.random.default_rng(0).permutation(150)[:90])
    found = probe_on(rows, data, folds, tmp_path, monkeypatch)
    assert (found.num_train_images, found.num_available_images) == (60, 100)
    assert (found.data_scaling_curve.carried.num_images, found.data_scaling_curve.forecast.num_images) == (100, 200)
    assert mentions(found.label_curve_note, "1", "100", "150")


def test_unreadable_image_is_not_counted_as_sampling(tmp_path, monkeypatch):
    """One of 100 training images of fold 1 is unreadable: 99 are all, so the curve has no extrapolated point."""
    data = dataset(np.arange(156) % 2, split=["test"] * 6 + [""] * 150)
    folds = assign_folds(data, k=3, seed=0, contents=np.arange(156), by="class")
    lost = int(folds.parts[0].train_rows[5]) - 6  # its row among the embedded images

    def embed(model, images, **_):
        rows = np.delete(np.arange(150), lost)
        vectors = np.random.default_rng(1).normal(size=(149, 8)).astype(np.float32)
        return Embeddings(rows, images.labels[rows], vectors, ((lost, "broken"),))

    monkeypatch.setattr(crossval_baseline, "embed_dataset", embed)
    monkeypatch.setattr(crossval_baseline, "build_initial_model", lambda *_, **__: SimpleNamespace(network=None))
    monkeypatch.setattr(crossval_baseline, "max_probe_images", lambda *_: 1_000)
    write_first_fold(tmp_path)
    run_facts = {"preprocessing": Preprocessing(image_size=32).to_json()}
    (tmp_path / "fold1/run.json").write_text(json.dumps(run_facts))
    options = RunOptions(device="cpu", workers=0)
    runs = FoldTrainer(TrainOverrides(), CrossValConfig(folds=3), options, data, np.arange(156), 0)
    found = crossval_baseline.probe_baseline(tmp_path, runs, folds, None)
    assert found.data_scaling_curve.points[-1].num_images == 99
    assert (found.data_scaling_curve.carried, found.data_scaling_curve.forecast.num_images) == (None, 198)


def test_by_time_the_curve_is_measured_on_the_last_fold(tmp_path, monkeypatch):
    """The first fold trains on a sixth, so its forecast would be for fewer labels than there are."""
    data = dataset(np.arange(180) % 2, year=2000 + np.arange(180) // 30)
    folds = time_folds(data, k=5, column="year")
    found = probe_on(np.arange(180), data, folds, tmp_path, monkeypatch)
    assert (found.data_scaling_curve.points[-1].num_images, found.data_scaling_curve.forecast.num_images) == (150, 300)
    assert mentions(found.label_curve_note, "5", "150", "180")
    assert label_efficiency_verdict(found.data_scaling_curve, note=found.label_curve_note)[1].endswith(
        found.label_curve_note
    )


def write_first_fold(folder):
    """Write the first fold, as far as the probe needs it: a recipe with initial weights."""
    (folder / "fold1").mkdir()
    recipe = get_recipe("quick").model_copy(update={"weights": "some.safetensors"})
    (folder / "fold1/recipe.yaml").write_text(recipe.to_yaml())


def probe_on(rows, data, folds, tmp_path, monkeypatch):
    """The probe baseline on random features of these images."""
    write_first_fold(tmp_path)
    vectors = np.random.default_rng(1).normal(size=(len(rows), 8)).astype(np.float32)
    embedded = Embeddings(rows, data.labels[rows], vectors)
    monkeypatch.setattr(crossval_baseline, "_embeddings", lambda *_: embedded)
    contents = np.arange(len(data))
    runs = FoldTrainer(TrainOverrides(), CrossValConfig(folds=len(folds.parts)), RunOptions(), data, contents, 0)
    return crossval_baseline.probe_baseline(tmp_path, runs, folds, None)


def test_data_options_are_saved(tmp_path):
    saved_in(tmp_path, TrainOverrides(epochs=2), source=DataConfig("a.csv", group_column="site"))
    saved = SavedCrossVal.read(tmp_path, "b.csv")
    assert saved == SavedCrossVal(
        TrainOverrides(epochs=2), CrossValConfig(folds=3), DataConfig("b.csv", group_column="site"), "d"
    )
    saved.check_same(tmp_path, TrainOverrides(), CrossValConfig(), DataConfig("b.csv"))
    with pytest.raises(InputError, match=mentioning("group_column")):
        saved.check_same(tmp_path, TrainOverrides(), CrossValConfig(), DataConfig("b.csv", group_column="plot"))
    (tmp_path / "crossval.json").write_text("{")
    with pytest.raises(InputError, match=mentioning("crossval.json")):
        SavedCrossVal.read(tmp_path, "b.csv")


def test_resume_with_other_options_or_images_is_refused(finished):
    changed = ("--output", "folds", "--resume", "--epochs", "3")
    run_refused("crossval", "pictures", *changed, cwd=finished, names=("1 there, 3 here",))
    shutil.copytree(finished / "folds", finished / "other")
    (finished / "other/report.json").unlink()
    for args, fact in (
        (("--epochs", "3"), "--epochs: 1 there, 3 here"),
        (("--by", "group"), "--by: auto there, group here"),
        (("--folds", "5"), "--folds: 2 there, 5 here"),
        (("--candidate", "flip=none", "--candidate", ""), "--candidate: none there, flip=none '' here"),
    ):
        done = run_refused("crossval", "pictures", "--output", "other", "--resume", *args, cwd=finished)
        assert fact in done.stderr
    paint(finished / "more/red/new.jpg", COLORS["red"], 77)
    paint(finished / "more/red/newer.jpg", COLORS["red"], 78)
    for number in range(2):
        paint(finished / f"more/blue/{number}.jpg", COLORS["blue"], number + 80)
    run_refused(
        "crossval", "more", "--output", "other", "--resume", cwd=finished, names=("images", "other", "--output")
    )


def test_resume_with_moved_images_is_refused(finished, tmp_path):
    """Paths are relative to the folder of the folds; when both move together, the run resumes."""
    shutil.copytree(finished / "pictures", tmp_path / "data/pictures")
    shutil.copytree(finished / "folds", tmp_path / "folds")
    (tmp_path / "folds/report.json").unlink()
    before = {file: file.read_bytes() for file in sorted((tmp_path / "folds").rglob("*.csv"))}
    args = ("--output", "folds", "--resume", "--device", "cpu")
    run_refused("crossval", "data/pictures", *args, cwd=tmp_path, names=(tmp_path, "--output"))
    assert {file: file.read_bytes() for file in sorted((tmp_path / "folds").rglob("*.csv"))} == before
    shutil.move(tmp_path / "data/pictures", tmp_path / "pictures")
    run_ok("crossval", "pictures", *args, cwd=tmp_path)
    assert (tmp_path / "folds/report.json").is_file()


def test_resume_skips_images_that_became_unreadable(finished, tmp_path):
    """One of a finished fold, one of a fold to train; and an image skipped at the start is readable again."""
    shutil.copytree(finished / "pictures", tmp_path / "pictures")
    repaired = paint(tmp_path / "pictures/red/repaired.jpg", COLORS["red"], 99)
    content = repaired.read_bytes()
    repaired.write_bytes(b"no image")
    args = ("crossval", "pictures", *RUN, "--output", "folds")
    killed_at("efficientnetv2.workflows.crossval:write_crossval_report", *args, cwd=tmp_path)
    fold_of = pd.read_csv(tmp_path / "folds/dataset.csv").set_index("path")["fold"]
    shutil.rmtree(tmp_path / "folds/fold2")
    repaired.write_bytes(content)
    for fold in (1, 2):
        (tmp_path / "folds" / fold_of[fold_of == fold].index[0]).write_bytes(b"gone")
    done = run_ok(*args, "--resume", cwd=tmp_path)
    output = " ".join(done.stdout.split())
    assert mentions(output, "2", "read")
    assert mentions(output, "1", "read")
    report = json.loads((tmp_path / "folds/report.json").read_text())
    assert report["num_images"] == len(fold_of) - 1, "the finished fold has predicted its image"
    assert report["num_skipped"] == 2, "that, and the image skipped at the start"


def test_images_of_a_large_dataset_are_matched_quickly(tmp_path):
    """Comparing each image with each would take hours for a million images."""
    data = dataset(np.arange(60_000) % 2)
    data.to_csv(tmp_path / "dataset.csv")
    start = time.perf_counter()
    rows, left_out = crossval.readable_at_start(tmp_path, data, np.arange(1, 60_000))
    assert time.perf_counter() - start < 10
    assert rows.tolist() == list(range(60_000)), "the first is in the folds, though unreadable now"
    assert left_out == []


def test_symbolic_links_lead_to_the_same_files(tmp_path):
    """Relative paths start at the target of the link."""
    for name, color in COLORS.items():
        paint(tmp_path / "pictures" / name / "one.jpg", color, 0)
    (tmp_path / "far/away/folds").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far/away")
    (tmp_path / "link").symlink_to(tmp_path / "pictures")
    folder = tmp_path / "near/folds"
    load_dataset(tmp_path / "pictures").to_csv(folder / "dataset.csv")
    found = crossval.with_saved_paths(folder, load_dataset(tmp_path / "link"))
    assert all(Path(found.file(row)).is_file() for row in range(len(found)))
    saved = pd.read_csv(folder / "dataset.csv")["path"].tolist()
    assert found.relative_to(folder / "dataset.csv")["path"].tolist() == saved


def test_resume_accepts_a_link_to_the_images(finished, tmp_path):
    shutil.copytree(finished / "pictures", tmp_path / "pictures")
    shutil.copytree(finished / "folds", tmp_path / "folds")
    (tmp_path / "folds/report.json").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "pictures")
    run_ok("crossval", "link", "--output", "folds", "--resume", "--device", "cpu", cwd=tmp_path)
    assert (tmp_path / "folds/report.json").is_file()


def test_next_steps_leave_out_what_the_first_fold_tried(finished, tmp_path):
    for name in ("pictures", "folds"):
        shutil.copytree(finished / name, tmp_path / name)
    page, first = tmp_path / "folds/report.html", tmp_path / "folds/fold1/report.json"
    facts = json.loads(first.read_text())
    facts["recipe"]["model"] = "efficientnetv2_b0"
    compared = {"candidates": [{"weights": "efficientnetv2_b0.in1k"}]}
    tried = {"stopped_early": True, "weights_compared": compared}
    for more in ({}, tried):
        first.write_text(json.dumps(facts | more))
        (tmp_path / "folds/report.json").unlink()
        run_ok("crossval", "pictures", "--output", "folds", "--resume", "--device", "cpu", cwd=tmp_path)
        for step in ("Start from ImageNet weights", "Train longer"):
            assert (step in page.read_text()) == (more == {})
    assert json.loads((tmp_path / "folds/report.json").read_text())["weights_compared"] == compared


def test_images_unreadable_in_a_fold_are_listed(finished, tmp_path):
    """For example with a valid header only. An image that only training lost is predicted all the same."""
    for name in ("pictures", "folds"):
        shutil.copytree(finished / name, tmp_path / name)
    (tmp_path / "folds/report.json").unlink()
    first = tmp_path / "folds/fold1"
    predictions = pd.read_csv(first / "predictions.csv")
    predictions.iloc[1:].to_csv(first / "predictions.csv", index=False)
    trained = pd.read_csv(first / "dataset.csv").query("split == 'train'")["path"].iloc[0]
    skipped = pd.DataFrame({"path": [predictions["path"][0], trained], "reason": "truncated"})
    skipped.to_csv(first / "skipped.csv", index=False)
    done = run_ok("crossval", "pictures", "--output", "folds", "--resume", "--device", "cpu", cwd=tmp_path)
    lost = str(Path(*Path(predictions["path"][0]).parts[-2:]))
    assert mentions(done.stdout, lost, "1", "unreadable", "skipped")
    assert mentions(done.stdout, "folds/skipped.csv")
    table = pd.read_csv(tmp_path / "folds/skipped.csv")
    assert table.to_dict("records") == [{"path": lost, "reason": "truncated"}]
    report = json.loads((tmp_path / "folds/report.json").read_text())
    assert (report["num_images"], report["num_skipped"]) == (47, 1)
    page = (tmp_path / "folds/report.html").read_text()
    assert mentions(page, "1", "read")


@pytest.mark.parametrize(
    ("args", "facts"),
    [
        (("--by", "plaec"), ("--by", "plaec", "did you mean", "place")),
        (("--by", "place"), ("latitude", "longitude")),
        (("--by", "time"), ("year, date, datetime, timestamp, time", "--time-column")),
        (("--candidate", "class_sampling=null"), ("--candidate",)),
        (("--candidate", "", "--candidate", "class_samplin=null"), ("class_samplin", "did you mean", "class_sampling")),
        (("--model", "efficientnetv2_b0", "--set", "progressive.image_size=8"), ("8", "efficientnetv2_b0", "training")),
        (
            (
                "--model",
                "efficientnetv2_b0",
                "--candidate",
                "",
                "--candidate",
                "progressive.image_size={start: 8, end: 64}",
            ),
            ("--candidate", "progressive.image_size={start", "8", "64"),
        ),
        (("--candidate-set", "epochs=2"), ("--candidate-set",)),
        (("--candidate", "", "--candidate", "class_sampling=null", "--ensemble", "3"), ("--ensemble", "3")),
        (("--ensemble", "0"), ("--ensemble",)),
        (("--folds", "49"), ("48", "49", "2")),
        (("--compare-splits",), ("--compare-splits",)),
        (("--resume",), ("--resume",)),
        (("--resume", "--output", "fold"), ("effnetv2 crossval DATA --output", "resume")),
        (("--output", "."), ("--output", "empty")),
    ],
)
def test_invalid_options_are_refused_before_training(finished, args, facts):
    run_refused("crossval", "pictures", *TINY, "--weights", "none", *args, cwd=finished, names=facts)
    assert not (finished / "runs").exists()


def test_invalid_cells_are_refused_with_their_row(tmp_path):
    for number in range(4):
        paint(tmp_path / f"{number}.jpg", COLORS["red"], number)
    good = pd.DataFrame(
        {"path": [f"{n}.jpg" for n in range(4)], "label": list("abab"), "latitude": 1.0, "longitude": 2.0, "year": 2000}
    )
    for column, value, fact in (
        ("latitude", 91.0, "row 3: latitude is 91.0"),
        ("longitude", np.nan, "row 3: the longitude is empty"),
        ("label", np.nan, "row 3: the label is empty"),
        ("path", np.nan, "row 3: the path is empty"),
        ("year", np.nan, "row 3: year is empty"),
    ):
        table = good.astype({column: object})
        table.loc[1, column] = value
        table.to_csv(tmp_path / "bad.csv", index=False)
        done = run_refused(
            "crossval", "bad.csv", *TINY, "--folds", "2", "--by", "time", "--weights", "none", cwd=tmp_path
        )
        assert fact in done.stderr, done.stderr


def six_images(folder: Path, **columns: list[str]) -> Path:
    """Write a table of six images of two alternating classes, with further columns."""
    for number in range(6):
        paint(folder / f"{number}.jpg", COLORS["red"], number, px=16)
    table = pd.DataFrame({"path": [f"{n}.jpg" for n in range(6)], "label": list("ababab"), **columns})
    table.to_csv(folder / "six.csv", index=False)
    return folder / "six.csv"


def test_augmented_copies_of_test_images_are_refused(tmp_path):
    made_from, split = ["", "", "", "", "1.jpg", "5.jpg"], ["train", "test", "val", "", "val", "train"]
    six_images(tmp_path, augmented_from=made_from, split=split)
    done = run_refused("crossval", "six.csv", *RUN, "--output", "folds", cwd=tmp_path)
    assert mentions(done.stderr, "six.csv", "6", "4.jpg", "1.jpg")
    assert not (tmp_path / "folds").exists()


@pytest.mark.parametrize("split", [["val"] * 6, ["train", "val"] * 3])
def test_train_and_val_splits_are_ignored(tmp_path, split):
    """Even if all images are val, or all of one class."""
    file = six_images(tmp_path, split=split)
    dataset, contents, _ = crossval.load_images(DataConfig(str(file)), RunOptions(device="cpu"), 0)
    assert set(dataset.split) == {""}
    folds = assign_folds(dataset, k=2, seed=0, contents=contents)
    assert all({0, 1} == set(dataset.labels[part.train_rows]) for part in folds.parts)


def test_class_with_only_test_images_is_refused(tmp_path):
    file = six_images(tmp_path, split=["train", "test"] * 3)
    with pytest.raises(InputError, match=mentioning("'b'", "test")):
        crossval.load_images(DataConfig(str(file)), RunOptions(device="cpu"), 0)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"by": "group"}, "group_column"),
        ({"by": "place"}, "latitude"),
        ({"by": "time"}, "time_column"),
        ({"block_degrees": 0.5}, "block_degrees"),
        ({"compare_splits": True}, "compare_splits"),
    ],
)
def test_missing_columns_are_refused_before_the_images_are_read(options, facts, tmp_path, monkeypatch):
    monkeypatch.setattr(crossval, "validate_images", None)
    source = DataConfig(str(six_images(tmp_path)))
    with pytest.raises(InputError, match=mentioning("six.csv", facts)):
        crossval.load_images(source, RunOptions(device="cpu"), 0, config=CrossValConfig(**options))


@pytest.mark.usefixtures("on_screen")
def test_groups_shared_with_test_are_reported(tmp_path, capsys):
    file = six_images(tmp_path, group=list("xxyyzz"), split=["", "test", "train", "val", "", ""])
    crossval.load_images(DataConfig(str(file)), RunOptions(device="cpu"), 0)
    output = capsys.readouterr().out
    assert mentions(output, "1", "3", "'x'", "test")
    assert "'y'" not in output, "images of val are split into folds like all others"


@pytest.mark.parametrize(("module", "function"), [(FoldTrainer, "predict"), (crossval, "write_crossval_report")])
def test_interrupt_prints_the_command_to_resume(module, function, tmp_path, monkeypatch):
    """Interrupted in a fold, or while the report is written."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(FoldTrainer, "predict", lambda *_, **__: None)
    monkeypatch.setattr(module, function, interrupt)
    file, out = six_images(tmp_path), tmp_path / "folds"
    overrides = TrainOverrides(
        model="efficientnetv2_b0", weights="none", epochs=1, settings=("progressive.image_size=32",)
    )
    options = RunOptions(out, device="cpu", workers=0, memory_gib=6.5, strict=True, probe=False)
    with pytest.raises(KeyboardInterrupt) as error:
        crossval.run_crossval(overrides, DataConfig(str(file)), options, CrossValConfig(folds=2))
    options_text = "--device cpu --workers 0 --memory-gib 6.5 --strict"
    assert mentions(str(error.value), file, out, options_text, "effnetv2 crossval", "--output", "--resume")


SHORT = TrainOverrides(model="efficientnetv2_b0", weights="none", epochs=1, settings=("progressive.image_size=32",))


@pytest.mark.parametrize("existed", [False, True])
def test_error_before_the_first_run_leaves_nothing(existed, tmp_path):
    """The folder can be used again with options that avoid the error."""
    file, out = six_images(tmp_path), tmp_path / "runs/folds"
    if existed:
        out.mkdir(parents=True)
    overrides = replace(SHORT, settings=("progressive.image_size=32", "progressive.stages=4"))
    options = RunOptions(out, device="cpu", workers=0, probe=False)
    with pytest.raises(InputError, match=mentioning("Fold 1 of 2", "stages")):
        crossval.run_crossval(overrides, DataConfig(str(file)), options, CrossValConfig(folds=2))
    assert [path.name for path in tmp_path.glob("runs/**/*")] == (["folds"] if existed else [])
    assert (tmp_path / "runs").exists() == existed


def test_cross_validation_that_fails_while_it_starts_leaves_nothing(tmp_path, monkeypatch):
    def full(self, folder):
        raise OSError(28, "No space left on device")

    file, out = six_images(tmp_path), tmp_path / "folds"
    monkeypatch.setattr(SavedCrossVal, "save", full)
    with pytest.raises(OSError, match="No space"):
        crossval.run_crossval(SHORT, DataConfig(str(file)), RunOptions(out, device="cpu"), CrossValConfig(folds=2))
    assert not out.exists()


def test_disk_that_is_full_for_a_later_fold_is_reported_with_a_way_to_continue(tmp_path, monkeypatch):
    write = crossval_runs.write_atomically

    def full(file, fill):
        if file.name == "fold2.csv":
            raise OSError(28, "No space left on device")
        write(file, fill)

    monkeypatch.setattr(crossval_runs, "write_atomically", full)
    words = replace(SHORT, model=NETWORK, settings=("progressive.image_size=32", "progressive.stages=1"))
    file, options = painted(tmp_path, 24), RunOptions(tmp_path / "folds", device="cpu", workers=0, probe=False)
    with pytest.raises(InputError, match=mentioning("fold2.csv", "Make room", "`resume`")):
        crossval.run_crossval(words, DataConfig(str(file)), options, CrossValConfig(folds=2, by="class"))
    assert (tmp_path / "folds/fold1/model.safetensors").exists()


@pytest.mark.parametrize(("written", "left"), [("notes.txt", False), ("fold1/recipe.yaml", True)])
def test_error_removes_no_other_file_and_no_run(written, left, tmp_path, monkeypatch):
    def fail(self, folds, folder, title):
        (folder / written).parent.mkdir(exist_ok=True)
        (folder / written).touch()
        raise InputError("too small")

    monkeypatch.setattr(FoldTrainer, "predict", fail)
    file, out = six_images(tmp_path), tmp_path / "folds"
    with pytest.raises(InputError, match="too small"):
        crossval.run_crossval(SHORT, DataConfig(str(file)), RunOptions(out, device="cpu"), CrossValConfig(folds=2))
    assert (out / written).is_file()
    assert (out / "crossval.json").exists() == (out / "dataset.csv").exists() == left


def fake_training(score_of, calls, epochs_of=lambda overrides, options, images: 3.0):
    """Replaces ``train_run``: writes the files of a run, whose macro-F1 is ``score_of`` its overrides.

    It trains for ``epochs_of`` its number of images; an image takes a second per epoch.
    """

    def run(overrides, source, options, *_, **__):
        if (options.out / "report.json").exists():
            return
        part = load_dataset(source.data)
        calls.append((overrides, part, options))
        options.out.mkdir(parents=True)
        images = len(part.subset("train"))
        epochs = epochs_of(overrides, options, images)
        recipe = get_recipe("quick").model_copy(update={"epochs": epochs})
        (options.out / "recipe.yaml").write_text(recipe.to_yaml())
        val = part.subset("val")
        logits = torch.eye(len(part.class_names))[torch.tensor(val.labels)] * 9
        predictions = Predictions(np.arange(len(val)), val.labels, logits)
        table = predictions_table(predictions, val.paths, part.class_names, true_labels=list(val.table["label"]))
        write_predictions(options.out / "predictions.csv", table)
        report = {
            "top1": 1.0,
            "macro_f1": score_of(overrides, options.out),
            "epochs": epochs,
            "wall_s": epochs * images,
        }
        (options.out / "report.json").write_text(json.dumps(report))

    return run


def painted(folder: Path, count: int) -> Path:
    """A table of this many images of two classes, in pairs at one location."""
    rows = []
    for number in range(count):
        paint(folder / f"{number}.jpg", COLORS["red"], number, px=16)
        rows.append((f"{number}.jpg", "ab"[number // 2 % 2], number // 2 % 40 + 0.5, 3.0 * (number // 2) + 0.5))
    pd.DataFrame(rows, columns=["path", "label", "latitude", "longitude"]).to_csv(folder / "all.csv", index=False)
    return folder / "all.csv"


def test_candidates_are_selected_within_the_training_images(tmp_path, monkeypatch):
    """Fold 2 selects another candidate; no model is trained or selected on the images of its fold."""
    calls = []

    def score_of(overrides, out):
        better = "_try2" if "fold2" in out.name else "_try1"
        return 0.9 if out.name.endswith(better) else 0.5

    monkeypatch.setattr(crossval_runs, "train_run", fake_training(score_of, calls))
    data = load_dataset(painted(tmp_path, 48))
    plan = CrossValConfig(
        folds=3,
        by="place",
        tries=("class_sampling=null", "class_sampling=equal optimizer.lr=0.001"),
        try_settings=("epochs=2",),
    )
    contents = np.arange(48)
    folds = plan.make_folds(data, contents, 0)
    overrides = TrainOverrides(minutes=90, settings=("batch_size=16",))
    runs = FoldTrainer(overrides, plan, RunOptions(out=tmp_path / "out"), data, contents, 0)
    results = runs.predict(folds, tmp_path / "out", "Fold")

    assert [one.score.chosen for one in results] == [(plan.tries[number],) for number in (0, 1, 0)]
    assert [one.candidate_scores for one in results] == [(0.9, 0.5), (0.5, 0.9), (0.9, 0.5)]
    assert sorted(np.concatenate([one.rows for one in results])) == list(range(48))
    assert [options.out.name for _, _, options in calls] == [
        "fold1_try1", "fold1_try2", "fold1", "fold2_try1", "fold2_try2", "fold2", "fold3_try1", "fold3_try2", "fold3",
    ]  # fmt: skip
    place_of = dict(zip((Path(path).name for path in data.paths), np.arange(48) // 2, strict=True))
    for number, part in enumerate(folds.parts):
        predictions = {Path(data.paths[row]).name for row in part.val_rows}
        for _, listed, _ in calls[3 * number : 3 * number + 2]:
            assert predictions.isdisjoint(Path(path).name for path in listed.paths)
            inner = [{place_of[Path(p).name] for p in listed.subset(name).paths} for name in ("train", "val")]
            assert inner[0].isdisjoint(inner[1])  # the inner split follows the rule of the folds
        for _, listed, _ in calls[3 * number : 3 * number + 3]:  # each run gets the clusters of the folds
            cluster_of = dict(zip((Path(p).name for p in data.paths), folds.clusters, strict=True))
            assert list(listed.table["kept_whole"]) == [cluster_of[Path(p).name] for p in listed.paths]
    first = [overrides for overrides, _, _ in calls]
    assert (first[0].minutes, first[0].settings) == (None, ("batch_size=16", "class_sampling=null", "epochs=2"))
    assert first[1].settings == ("batch_size=16", "class_sampling=equal", "optimizer.lr=0.001", "epochs=2")
    assert first[2].settings == ("batch_size=16", "class_sampling=null")
    # Both candidates of the first fold take 3 epochs of 1 s per image; the minutes include those of all folds.
    tried = sum(len(listed.subset("train")) for _, listed, _ in calls[:2]) * 3 / len(folds.parts[0].train_rows)
    images = [len(part.train_rows) for part in folds.parts]
    assert first[2].minutes == pytest.approx((90 * 0.9 - tried * sum(images) / 60) * images[0] / sum(images))
    # Later runs of a candidate repeat its first resolved recipe.
    settled = [options.settled for _, _, options in calls]
    assert settled[3] == (tmp_path / "out/selection/try1.yaml",)
    assert settled[5] == ()  # the first full training of the second candidate
    assert settled[8] == (tmp_path / "out/fold1/recipe.yaml",)
    assert not list((tmp_path / "out/selection").glob("fold*_try*"))
    again = runs.predict(folds, tmp_path / "out", "Fold")  # all runs are finished, so nothing is selected again
    assert [one.candidate_scores for one in again] == [one.candidate_scores for one in results]


def test_selection_without_enough_groups_is_refused():
    data = dataset([0] * 20 + [1] * 4, group=["a"] * 10 + ["b"] * 10 + ["c"] * 2 + ["d"] * 2)
    plan = CrossValConfig(folds=2, by="group", tries=("", "class_sampling=null"))
    folds = plan.make_folds(data, np.arange(24), 0)
    with pytest.raises(InputError, match=mentioning("candidates", "1")):
        plan.selection_split(data, np.arange(24), folds, 0, 0)


def test_selection_without_enough_images_of_a_class_is_refused():
    """With two images of a class in two folds, one image trains, and none is left for the selection."""
    data, plan = (dataset([0] * 10 + [1] * 2), CrossValConfig(folds=2, by="class", tries=("", "class_sampling=null")))
    folds = plan.make_folds(data, np.arange(12), 0)
    with pytest.raises(InputError, match=mentioning("'c1'", "candidates")):
        plan.selection_split(data, np.arange(12), folds, 0, 0)


def test_two_training_years_are_enough_for_selection():
    """The earlier of two training years trains the candidates, the later one selects. One year is not enough."""
    years = np.repeat([2001, 2002, 2003, 2004], 10)
    data, contents = dataset([0, 1] * 20, year=years), np.arange(40)
    plan = CrossValConfig(folds=1, by="time", tries=("", "class_sampling=null"))
    folds = plan.make_folds(data, contents, 0)
    assert set(years[folds.parts[0].train_rows]) == {2001, 2002}
    train_rows, selection_rows = plan.selection_split(data, contents, folds, 0, 0)
    assert (set(years[train_rows]), set(years[selection_rows])) == ({2001}, {2002})
    more = replace(plan, folds=3)
    with pytest.raises(InputError, match=mentioning("1", "training", "fold")):
        more.selection_split(data, contents, more.make_folds(data, contents, 0), 0, 0)
    two, folds = data.select(range(20)), plan.make_folds(data.select(range(20)), contents[:20], 0)
    with pytest.raises(InputError, match=mentioning("candidates")):
        plan.selection_split(two, contents[:20], folds, 0, 0)


@pytest.mark.parametrize("group", [None, [None] * 80, [f"g{number // 4}" for number in range(80)]])
def test_compare_splits_uses_locations_despite_groups(group):
    """A group column, even an empty one, does not hide the locations."""
    columns = places(80) | ({} if group is None else {"group": group})
    data, contents = dataset(np.tile([0, 1, 0, 1], 20), **columns), np.arange(80)
    plan = CrossValConfig(folds=4, by="class", compare_splits=True)
    comparison = plan.comparison_folds(data, contents, 0, plan.make_folds(data, contents, 0))
    assert comparison.rule == "place"


def test_options_for_locations_need_locations():
    data, contents = dataset([0, 1] * 10, group=list("abcd") * 5), np.arange(20)
    plan = CrossValConfig(folds=2, compare_splits=True)
    with pytest.raises(InputError, match=mentioning("compare_splits", "all.csv")):
        plan.validate_columns(data)
    one_place = dataset([0, 1] * 10, latitude=[1.0] * 20, longitude=[2.0] * 20)
    with pytest.raises(InputError, match=mentioning("compare_splits", "all.csv", "1", "2")):
        plan.comparison_folds(one_place, contents, 0, plan.make_folds(one_place, contents, 0))
    with pytest.raises(InputError, match=mentioning("block_degrees", "0.25", "all.csv")):
        CrossValConfig(folds=2, block_degrees=0.25).validate_columns(data)


def test_compare_splits_refuses_multilabel_images():
    """It would double the time, but multi-label metrics are not compared."""
    data, contents = dataset(np.tile([0, 1, 0, 1], 20), **places(80)), np.arange(80)
    data = replace(data, table=data.table.assign(label=data.table["label"] + ";"), separator=";")
    for by in ("class", "place"):
        plan = CrossValConfig(folds=4, by=by, compare_splits=True)
        folds = plan.make_folds(data, contents, 0)
        with pytest.raises(InputError, match=mentioning("compare_splits", "all.csv")):
            plan.validate_columns(data)
        assert replace(plan, compare_splits=False).comparison_folds(data, contents, 0, folds) is not None


def test_images_of_the_last_period_are_not_training_images(tmp_path):
    """They are new to all models of the folder, so metrics on them are not optimistic."""
    table = pd.read_csv(painted(tmp_path, 12)).assign(year=2000 + np.arange(12) // 4, label=list("ab") * 6)
    table.to_csv(tmp_path / "all.csv", index=False)
    data, source = load_dataset(tmp_path / "all.csv"), DataConfig(str(tmp_path / "all.csv"))
    plan, folder = CrossValConfig(folds=2, by="time"), tmp_path / "folds"
    folder.mkdir()
    folds = plan.make_folds(data, np.arange(12), 0)
    crossval_config.write_start(folder, SavedCrossVal(TrainOverrides(), plan, source, "d"), data, folds)
    assert pd.read_csv(folder / "dataset.csv", keep_default_na=False)["split"].tolist() == ["train"] * 8 + [""] * 4
    assert train_overlap(folder, None, data).num_trained == 8
    assert train_overlap(folder, None, data.select(np.arange(8, 12))).num_trained == 0


def test_optimistic_random_split_is_detected():
    """Each location has its own features and label: memorized in random folds, unknown at new locations."""
    generator = np.random.default_rng(0)
    location = np.arange(240) // 4
    labels = generator.integers(0, 2, 60)[location]
    vectors = generator.normal(size=(60, 300))[location] + 0.1 * generator.normal(size=(240, 300))
    data = dataset(labels, latitude=location % 80 + 0.5, longitude=location * 2 + 0.5)
    embedded = Embeddings(np.arange(240), labels, vectors.astype(np.float32))
    both = [assign_folds(data, k=4, seed=0, by=by) for by in ("class", "place")]
    predictions = []
    for folds in both:
        pairs = [(part.train_rows, part.val_rows) for part in folds.parts]
        predicted = out_of_fold_predictions(embedded, pairs, key=Key.of(0), balanced=False)
        predictions.append(Predictions(np.arange(240), labels, torch.eye(2)[predicted]))
    found = compare_folds("the linear probe", predictions[1], predictions[0], both[1], both[0], 2, Key.of(0))
    assert found.at_random["top1"] > 0.95
    assert found.by_place["top1"] < 0.7
    assert found.difference["top1"].value == pytest.approx(found.at_random["top1"] - found.by_place["top1"])
    assert found.is_optimistic
    assert "Random folds are optimistic" in found.sentence()
    same = compare_folds("the linear probe", predictions[1], predictions[1], both[1], both[0], 2, Key.of(0))
    assert not same.is_optimistic


def test_four_locations_are_too_few_for_a_difference():
    """The interval of the difference is by location, not by image."""
    labels, at_random, by_place, location = alike_places()
    predictions = [Predictions(np.arange(40), labels, torch.eye(2)[each]) for each in (by_place, at_random)]
    by_location, random = Folds((), "", location, "place", 1.0), Folds((), "", np.arange(40), "class")
    found = compare_folds("the linear probe", *predictions, by_location, random, 2, Key.of(0))
    assert found.difference["top1"].value == pytest.approx(0.1)
    assert not found.is_optimistic


def test_predictions_survive_writing_and_reading(tmp_path):
    """Classes may have names of columns; a class that the model does not know gets zeros."""
    names = ("label", "other", "path", "true_label")
    logits = torch.randn(5, 4)
    predictions = Predictions(np.arange(5), np.arange(5) % 4, logits)
    table = predictions_table(predictions, list("vwxyz"), names, true_labels=["other"] * 5)
    write_predictions(tmp_path / "p.csv", table)
    paths, probabilities = read_predictions(tmp_path / "p.csv", (*names, "unknown"))
    assert paths == list("vwxyz")
    assert probabilities[:, :4] == pytest.approx(logits.softmax(dim=1).numpy(), abs=1e-5)
    assert (probabilities[:, 4] == 0).all()


def test_suggested_predict_command_is_quoted(tmp_path, monkeypatch):
    folder = tmp_path / "my folds"
    model = create("efficientnetv2_b0", num_classes=2)
    model.class_names = ("a", "b")
    for number in (1, 2):
        (folder / f"fold{number}").mkdir(parents=True)
        model_file.save(folder / f"fold{number}" / model_file.NAME, model)
    monkeypatch.setattr(model_file, "load", None)  # the file headers are enough
    output = write_ensemble(folder, ["fold1", "fold2"], 1)
    assert mentions(output, folder, "effnetv2 predict", "NEW_IMAGES")
    assert "--label-separator ';'" in write_ensemble(folder, ["fold1", "fold2"], 1, ";")


def test_models_with_different_preprocessing_are_not_an_ensemble(tmp_path):
    model = create("efficientnetv2_b0", num_classes=2)
    for run, px in (("fold1", 32), ("fold1_member2", 32), ("fold2", 32), ("fold2_member2", 48)):
        (tmp_path / run).mkdir()
        preprocessing = Preprocessing(image_size=px)
        model_file.save(tmp_path / run / model_file.NAME, model, preprocessing=preprocessing, class_names=("a", "b"))
    runs = ["fold1", "fold1_member2", "fold2", "fold2_member2"]
    output = write_ensemble(tmp_path, runs, 2)
    assert mentions(output, "fold2_member2", "ensemble")
    assert mentions(output, "image_size", "48", "32")
    assert mentions(output, tmp_path / "fold1", "effnetv2 predict", "NEW_IMAGES")
    assert not (tmp_path / ensemble.NAME).exists()
    ensemble.write_members(tmp_path, [f"{run}/{model_file.NAME}" for run in runs])
    with pytest.raises(InputError, match=mentioning("fold2_member2", "ensemble")):
        model_file.load(tmp_path)


@pytest.mark.parametrize("compares", [False, True])
def test_compared_splits_are_trained(compares, tmp_path, monkeypatch):
    trained, reported = [], []

    def predict(self, folds, folder, title):
        trained.append(title)
        return [title]

    monkeypatch.setattr(FoldTrainer, "predict", predict)
    monkeypatch.setattr(crossval, "write_crossval_report", lambda found, then: reported.append(found.other_results))
    config = CrossValConfig(folds=2, by="place", compare_splits=compares)
    source, options = DataConfig(str(painted(tmp_path, 24))), RunOptions(tmp_path / "folds", device="cpu")
    crossval.run_crossval(SHORT, source, options, config)
    assert trained == ["Fold", *(["Fold at random"] if compares else [])]
    assert reported == [["Fold at random"] if compares else None]
    assert config.num_runs == 2 * (1 + compares)


def test_folds_by_time_use_the_named_column():
    period = np.arange(40) // 10
    data = dataset([0, 1] * 20, year=2001 + period, flown=2004 - period)
    plan = CrossValConfig(folds=1, by="time", time_column="flown")
    (part,) = plan.make_folds(data, np.arange(40), 0).parts
    assert set((2004 - period)[part.train_rows]) == {2001, 2002}


def test_blocks_have_the_requested_size():
    data = dataset(np.tile([0, 1, 0, 1], 20), **places(80))
    plan = CrossValConfig(folds=4, by="place", block_degrees=0.3)
    assert plan.make_folds(data, np.arange(80), 0).block == 0.3


def test_by_time_the_probe_predicts_the_period_after_its_training_images(tmp_path, monkeypatch):
    """The first of six years trains every probe, and none predicts it."""
    data = dataset(np.arange(180) % 2, year=2000 + np.arange(180) // 30)
    folds = time_folds(data, k=5, column="year")
    found = probe_on(np.arange(180), data, folds, tmp_path, monkeypatch)
    assert found.predictions.samples.tolist() == list(range(30, 180))
    assert found.predictions.labels.tolist() == data.labels[30:].tolist()
