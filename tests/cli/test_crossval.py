"""``effnetv2 crossval``: every image answered once by a network that had not seen it; stopped, it goes on."""

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
from tests.command_line import TINY, effnetv2, killed_at
from tests.conftest import COLORS, paint
from tests.data.test_folds import places
from tests.data.test_splits import dataset
from tests.messages import mentioning, mentions
from tests.metrics.test_metric_differences import alike_places

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
CPU = torch.device("cpu")
OVERLAP = SimpleNamespace(num_selected=0, num_selected_before=0)
RUN = (*TINY, *ONE_STAGE, "--weights", "none", "--folds", "2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A cross-validation that was not disturbed, of 48 images in two folds."""
    folder = tmp_path_factory.mktemp("whole")
    for name, color in COLORS.items():
        for number in range(16):
            paint(folder / "pictures" / name / f"{name}_{number:02d}.jpg", color, number)
    done = effnetv2("crossval", folder / "pictures", *RUN, "--output", "folds", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_every_picture_is_answered_once_by_a_network_that_had_not_seen_it(whole):
    folder, _ = whole
    pooled = pd.read_csv(folder / "folds/predictions.csv").set_index("path")
    assert sorted(pooled.index) == sorted(load_dataset(folder / "pictures").paths)
    for number in (1, 2):
        run = folder / "folds" / f"fold{number}"
        listed = pd.read_csv(run / "dataset.csv")
        alone = pd.read_csv(run / "predictions.csv")
        names = {Path(path).name for path in alone["path"]}
        assert names.isdisjoint(Path(path).name for path in listed[listed["split"] == "train"]["path"])
        alone.index = [str(Path(*Path(path).parts[-2:])) for path in alone["path"]]
        assert (pooled.loc[alone.index, "predicted_label"] == alone["predicted_label"]).all()
        assert pooled.loc[alone.index, "red"].to_numpy() == pytest.approx(alone["red"].to_numpy(), abs=1e-5)


def test_the_figures_are_of_all_answers_together(whole):
    folder, done = whole
    report = json.loads(done.stdout)
    pooled = pd.read_csv(folder / "folds/predictions.csv")
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
    page = (folder / "folds/report.html").read_text()
    assert '<h2 id="folds">' in page
    assert {f"fold{number}/report.html" for number in (1, 2)} <= set(re.findall(r'href="([^"]+)"', page))
    assert "out-of-fold" in page
    assert page.count('alt="Grad-CAM"') >= 8, "of each picture shown, by the network that answered it"
    assert "Training curves are in the report of each fold" in page
    files = ("dataset.csv", "fold1/model.safetensors", "fold2/model.safetensors")
    assert report["sha256"] == {
        name: hashlib.sha256((folder / "folds" / name).read_bytes()).hexdigest() for name in files
    }
    assert report["train_images_per_class"] == dict.fromkeys(COLORS, 8)


def test_beside_given_weights_stands_their_probe_on_the_same_folds(whole):
    folder, _ = whole
    words = ("--weights", "folds/fold1", "--output", "further", "--json")
    done = effnetv2("crossval", folder / "pictures", *RUN, *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    page = (folder / "further/report.html").read_text()
    assert mentions(page, "probe", "linear classifier")
    report = json.loads(done.stdout)
    assert 0 <= report["linear_probe_top1"] <= 1
    assert report["linear_probe_num_images"] == report["linear_probe_num_available"] == 24
    assert set(report["linear_probe_f1"]) == set(COLORS)


def test_whether_more_labels_would_help_is_read_off_the_first_fold():
    """Of 150 images two thirds teach; two classes that differ in one of their features."""
    labels = np.arange(150) % 2
    vectors = np.random.default_rng(0).normal(size=(150, 8)).astype(np.float32)
    vectors[:, 0] += labels
    data = dataset(labels)
    dealt = assign_folds(data, k=3, seed=0, contents=np.arange(150), by="class")
    shuffled, trainer = np.random.default_rng(1).permutation(150), SimpleNamespace(dataset=data)
    embedded = Embeddings(shuffled, labels[shuffled], vectors[shuffled])
    curve = crossval_baseline._label_curve(embedded, dealt, 0, Key.of(0), trainer, balanced=False)
    assert [point.num_images for point in curve.points] == [12, 25, 50, 100]
    assert 0.5 < curve.points[-1].macro_f1 < 0.9
    assert (curve.carried, curve.forecast.num_images) == (None, 200)
    drawn = Embeddings(shuffled[:90], labels[shuffled[:90]], vectors[shuffled[:90]])
    sampled = crossval_baseline._label_curve(drawn, dealt, 0, Key.of(0), trainer, balanced=False)
    assert sampled.points[-1].num_images < 70
    assert (sampled.carried.num_images, sampled.forecast.num_images) == (100, 200)
    few = Embeddings(np.arange(20), labels[:20], vectors[:20])
    assert crossval_baseline._label_curve(few, dealt, 0, Key.of(0), trainer, balanced=False) is None


def test_the_folds_answer_together_for_new_pictures(whole):
    folder, _ = whole
    done = effnetv2("predict", "folds", "pictures/red", "--output", "new.csv", "--device", "cpu", cwd=folder)
    assert done.returncode == 0, done.stderr
    told = pd.read_csv(folder / "new.csv")
    files = [folder / "pictures/red" / Path(path).name for path in told["path"]]
    alone = [Predictor(folder / "folds" / f"fold{number}")(files) for number in (1, 2)]
    for name in COLORS:
        mean = np.mean([[one.probabilities[name] for one in answers] for answers in alone], axis=0)
        assert told[name].to_numpy() == pytest.approx(mean, abs=1e-4)


def test_temperatures_of_the_folds_are_told_in_both_reports(whole):
    """As minival gives them where it has 30 images; the advice to set it is then out of place."""
    folder, _ = whole
    shutil.copytree(folder / "folds", folder / "scaled")
    (folder / "scaled/report.json").unlink()  # as by a kill when the folds were done
    for number, temperature in ((1, 1.25), (2, 1.5)):
        network = model_file.load(folder / f"scaled/fold{number}")
        network.calibration = Calibration(temperature, 30 + number, "minival")
        model_file.save(folder / f"scaled/fold{number}" / model_file.NAME, network)
    words = ("crossval", "pictures", "--output", "scaled", "--resume")
    evaluating = ("evaluate", "scaled", "pictures", "--output", "rated", "--device", "cpu")
    for line, out in ((words, "scaled"), (evaluating, "rated")):
        done = effnetv2(*line, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert mentions(
            " ".join(done.stdout.split()), "2 of 2 models", "temperature", "1.25 to 1.5", "31 to 32", "minival"
        )
        assert "minival=0.1" not in done.stdout
        told = json.loads((folder / out / "report.json").read_text())["calibration"]
        assert [one["temperature"] for one in told["members"]] == [1.25, 1.5]
        assert mentions((folder / out / "report.html").read_text(), "2 of 2 models", "1.25 to 1.5")
    together = SimpleNamespace(network=model_file.load(folder / "scaled"))
    assert mentions(evaluate._calibration_note(together.network, "minival", OVERLAP), "minival", "temperature")
    assert evaluate._calibration_note(together.network, "val", OVERLAP) is None


def test_training_does_not_begin_from_several_networks(whole):
    folder, _ = whole
    done = effnetv2("train", "pictures", "--weights", "folds", "--output", "more", cwd=folder)
    assert done.returncode == 2
    assert "ensemble of 2 models" in done.stderr
    assert mentions(done.stderr, "--weights", "folds/fold1")


def test_figures_of_the_ensemble_on_its_own_pictures_are_called_optimistic(whole):
    folder, _ = whole
    done = effnetv2("evaluate", "folds", "pictures", "--device", "cpu", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["optimistic"]
    assert mentions(done.stdout, "48", "trained")


def test_pictures_that_no_member_has_seen_have_figures_of_their_own(whole, tmp_path):
    folder, _ = whole
    rows = [
        (str(folder / "pictures" / path), Path(path).parent.name) for path in load_dataset(folder / "pictures").paths
    ]
    for number in range(36):
        name = list(COLORS)[number % 3]
        rows.append((str(paint(tmp_path / f"{number}.jpg", COLORS[name], 100 + number)), name))
    table = pd.DataFrame(rows, columns=["path", "label"])
    table.to_csv(tmp_path / "both.csv", index=False)
    words = ("evaluate", folder / "folds", "both.csv", "--device", "cpu", "--output", "rated")
    done = effnetv2(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "36", "84", "top-1")
    report = json.loads((tmp_path / "rated/report.json").read_text())
    assert report["optimistic"]
    answers = pd.read_csv(tmp_path / "rated/predictions.csv").iloc[48:]
    true, called = answers["true_label"], answers["predicted_label"]
    assert report["unseen"]["num_images"] == 36
    assert report["unseen"]["top1"] == pytest.approx((true == called).mean())
    assert report["unseen"]["macro_f1"] == pytest.approx(f1_score(true, called, average="macro"))
    assert set(report["unseen"]["intervals"]) == {"top1", "macro_f1"}
    table.iloc[:77].to_csv(tmp_path / "both.csv", index=False)  # 29 of the new ones: too few
    few = effnetv2(*words[:-2], "--json", cwd=tmp_path)
    assert few.returncode == 0, few.stderr
    assert "unseen" not in json.loads(few.stdout)


@pytest.fixture(scope="module")
def in_pairs(whole, tmp_path_factory):
    """The same with two networks a fold."""
    place = tmp_path_factory.mktemp("pairs")
    words = ("crossval", whole[0] / "pictures", *RUN, "--ensemble", "2", "--output", "folds", "--json")
    done = effnetv2(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    return place, done


def test_two_networks_a_fold_answer_it_together_and_all_of_them_new_pictures(whole, in_pairs):
    """The first of each fold is the one that answers it alone without --ensemble."""
    (folder, _), (place, done) = whole, in_pairs
    pooled = pd.read_csv(place / "folds/predictions.csv").set_index("path")
    for number in (1, 2):
        own = []
        for name in (f"fold{number}", f"fold{number}_member2"):
            alone = pd.read_csv(place / "folds" / name / "predictions.csv")
            alone.index = [str(Path(*Path(path).parts[-2:])) for path in alone["path"]]
            own.append(alone["red"])
        assert (own[0] - own[1]).abs().max() > 1e-4, "another seed is another network"
        first = pd.read_csv(folder / "folds" / f"fold{number}" / "predictions.csv")
        assert own[0].to_numpy() == pytest.approx(first["red"].to_numpy(), abs=1e-5)
        assert pooled.loc[own[0].index, "red"].to_numpy() == pytest.approx((own[0] + own[1]) / 2, abs=1e-5)
    report = json.loads(done.stdout)
    assert "fold2_member2/model.safetensors" in report["sha256"]
    asked = effnetv2("predict", "folds", folder / "pictures", "--output", "answers.csv", cwd=place)
    assert asked.returncode == 0, asked.stderr
    members = json.loads((place / "folds" / ensemble.NAME).read_text())["members"]
    assert len(members) == 4
    page = (place / "folds/report.html").read_text(encoding="utf-8")
    assert "each predicted by 2 models together (their mean) not trained on it" in page
    assert "each predicted by 2 models together not trained on it" in page
    assert mentions(page, "first of the 2 models")
    assert mentions(page.replace("<wbr>", ""), "fold 1")
    assert "new locations" not in page, "nothing is known of where these images come from"
    assert report["ensemble_size"] == 2
    each = [json.loads(file.read_text())["wall_s"] for file in (place / "folds").glob("fold*/report.json")]
    assert len(each) == 4
    assert report["wall_s"] == pytest.approx(sum(each), abs=0.05)


@pytest.mark.slow
def test_one_killed_between_two_networks_of_a_fold_goes_on_with_the_second(whole, in_pairs, tmp_path):
    folder, _ = whole
    command = ("crossval", folder / "pictures", *RUN, "--ensemble", "2", "--output", "killed")
    killed_at("efficientnetv2.workflows.crossval_runs:_mean_probabilities", *command, cwd=tmp_path)
    shutil.rmtree(tmp_path / "killed/fold1_member2")  # as by a kill before it had begun
    first = tmp_path / "killed/fold1/model.safetensors"
    before = first.stat().st_mtime_ns
    again = effnetv2("crossval", folder / "pictures", "--output", "killed", "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert first.stat().st_mtime_ns == before
    tables = [pd.read_csv(out / "predictions.csv") for out in (in_pairs[0] / "folds", tmp_path / "killed")]
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.slow
def test_a_killed_one_goes_on_and_ends_as_the_undisturbed(whole):
    """Killed when the first fold was done: that one is left as it is, and the answers come out the same."""
    folder, _ = whole
    command = ("crossval", folder / "pictures", *RUN, "--output", "killed")
    killed_at("efficientnetv2.workflows.crossval_runs:_mean_probabilities", *command, cwd=folder)
    model = folder / "killed/fold1/model.safetensors"
    before = model.stat().st_mtime_ns
    assert not (folder / "killed/fold2").exists()
    again = effnetv2("crossval", folder / "pictures", "--output", "killed", "--resume", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert model.stat().st_mtime_ns == before
    assert "Better than the last run, " in again.stdout  # whose images are the same
    (folder / "killed/predictions.csv").unlink()  # as by a kill after report.json: it is written again
    (folder / "killed/report.html").unlink()
    again = effnetv2("crossval", folder / "pictures", "--output", "killed", "--resume", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (folder / "killed/report.html").is_file()
    tables = [pd.read_csv(folder / out / "predictions.csv") for out in ("folds", "killed")]
    pd.testing.assert_frame_equal(*tables)
    third = effnetv2("crossval", folder / "pictures", "--output", "killed", "--resume", cwd=folder)
    assert mentions(third.stdout, "finished")


@pytest.mark.slow
def test_one_that_began_from_weights_of_ones_own_goes_on_from_another_folder(whole):
    """Where they are called otherwise, and where something else may be called so."""
    folder, _ = whole
    began = (
        "crossval",
        "pictures",
        *TINY,
        *ONE_STAGE,
        "--folds",
        "2",
        "--weights",
        "folds/fold1",
        "--output",
        "onwards",
    )
    killed_at("efficientnetv2.workflows.crossval_runs:_mean_probabilities", *began, cwd=folder)
    (folder / "elsewhere/folds").mkdir(parents=True)
    shutil.copytree(folder / "folds/fold2", folder / "elsewhere/folds/fold1")
    resumed = ("crossval", "../pictures", "--output", "../onwards", "--resume", "--weights")
    other = effnetv2(*resumed, "folds/fold1", cwd=folder / "elsewhere")
    assert other.returncode == 2
    assert mentions(other.stderr, folder / "folds/fold1", folder / "elsewhere/folds/fold1")
    again = effnetv2(*resumed, "../folds/fold1", cwd=folder / "elsewhere")
    assert again.returncode == 0, again.stderr
    for fold in ("fold1", "fold2"):
        assert read_recipe(folder / "onwards" / fold / "recipe.yaml").weights == str(folder / "folds/fold1")


def saved_in(folder, words, config=CrossValConfig(folds=3), source=DataConfig("a.csv")):  # noqa: B008
    SavedCrossVal(words, config, source, "d").save(folder)
    return SavedCrossVal.read(folder, source.data)


def test_a_model_given_as_a_table_is_saved(tmp_path):
    words = TrainOverrides(model="tests/network.yaml")
    saved = saved_in(tmp_path, words)
    assert saved.overrides == words
    saved.check_same(tmp_path, words, CrossValConfig(), DataConfig("a.csv"), CPU)


def test_a_recipe_given_as_a_file_is_saved_whole(tmp_path):
    """The file may be moved or edited meanwhile: the folds left repeat the recipe of those that are there."""
    file = tmp_path / "mine.yaml"
    file.write_text(get_recipe("finetune").to_yaml())
    words = TrainOverrides(recipe=str(file))
    saved = saved_in(tmp_path, words)
    file.write_text(get_recipe("finetune").model_copy(update={"crop_scale_min": 0.6}).to_yaml())
    with pytest.raises(InputError, match=mentioning("crop_scale_min", "0.6")):
        saved.check_same(tmp_path, TrainOverrides(recipe=str(file)), CrossValConfig(), DataConfig("a.csv"), CPU)
    file.unlink()
    assert saved.overrides == words
    assert saved.overrides.recipe == get_recipe("finetune")


def test_options_given_again_are_compared_by_the_recipe_that_they_give(tmp_path):
    """A default that is typed asks for itself; a seed of 0 asks for nothing else where none was given."""
    saved = saved_in(tmp_path, TrainOverrides(weights="none"))

    def check(words=TrainOverrides(), given=()):  # noqa: B008
        saved.check_same(tmp_path, words, CrossValConfig(), DataConfig("a.csv"), CPU, given)

    check()
    check(TrainOverrides(seed=0, recipe="quick"))
    for options, facts in (
        ({"given": {"folds"}}, ("3", "5", "fold")),
        ({"words": TrainOverrides(seed=1)}, ("1", "seed")),
        ({"words": TrainOverrides(minutes=5)}, ("5", "minutes")),
    ):
        with pytest.raises(InputError, match=mentioning(*facts)):
            check(**options)


@pytest.mark.parametrize(
    ("words", "tries", "said"),
    [
        (replace(TrainOverrides(), settings=("optimizer.lrr=1",)), (), ("optimizer.lrr",)),
        (TrainOverrides(), ("", "balanse=equal"), ("balanse",)),
    ],
)
def test_words_about_the_recipe_are_checked_before_every_picture(words, tries, said, tmp_path, monkeypatch):
    monkeypatch.setattr(crossval, "validate_images", lambda *_, **__: pytest.fail("it looks at pictures first"))
    source, place = DataConfig(str(table_of(tmp_path))), RunOptions(tmp_path / "folds", device="cpu")
    with pytest.raises(InputError, match=mentioning(*said)):
        crossval.run_crossval(replace(words, weights="none"), source, place, CrossValConfig(folds=2, tries=tries))


@pytest.mark.usefixtures("on_screen")
def test_folds_whose_weights_are_gone_are_reported_without_a_probe(tmp_path, capsys):
    """What is trained is not lost by it."""
    data = dataset(np.arange(150) % 2)
    dealt = assign_folds(data, k=3, seed=0, contents=np.arange(150), by="class")
    begun_as(tmp_path)
    begun = {"preprocessing": Preprocessing(image_size=32).to_json()}
    (tmp_path / "fold1/run.json").write_text(json.dumps(begun))
    runs = FoldTrainer(TrainOverrides(), CrossValConfig(folds=3), RunOptions(device="cpu"), data, np.arange(150), 0)
    assert crossval_baseline.probe_baseline(tmp_path, runs, dealt, None) is None
    told = " ".join(capsys.readouterr().out.split())
    assert mentions(told, "no linear probe")
    assert "some.safetensors" in told


def test_settings_that_cannot_be_taken_apart_are_refused():
    with pytest.raises(InputError, match=mentioning("candidates", "No closing quotation")):
        CrossValConfig(tries=("", "class_sampling='sqrt"))


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
def test_a_try_is_parted_between_its_settings(text, settings):
    assert CrossValConfig(tries=("seed=1", text)).candidate_settings(1) == settings


def test_a_bracket_that_is_not_closed_is_refused():
    with pytest.raises(InputError, match=mentioning("No closing bracket")):
        CrossValConfig(tries=("", "progressive.image_size={start: 64, epochs=4"))


def test_what_is_wrong_with_a_try_is_said_of_it():
    plan = CrossValConfig(tries=("", "crop_scale_min=2 epochs=4"), try_settings=("ema_decay=null",))
    with pytest.raises(InputError) as refused:
        crossval.check_recipes(TrainOverrides(weights="none"), plan, RunOptions(device="cpu"))
    assert mentions(str(refused.value), "candidates", "crop_scale_min=2", "epochs=4", "ema_decay=null")


@pytest.mark.parametrize(
    ("tried", "while_choosing", "separator", "said"),
    [
        ("class_weights=sqrt", (), ";", ("class_weights",)),
        ("minival=null patience=2", ("minival=0.1",), None, ("2", "minival", "patience")),
    ],
)
def test_a_try_that_could_not_be_trained_is_refused_before_any_is(tried, while_choosing, separator, said):
    """As of several labels, or as it would answer, without what holds while choosing alone: hours later."""
    words, place = TrainOverrides(weights="none"), RunOptions(device="cpu")
    others, own = (
        CrossValConfig(tries=("", one), try_settings=while_choosing) for one in ("class_sampling=null", tried)
    )
    assert crossval.check_recipes(words, others, place, separator).weights == "none"
    with pytest.raises(InputError) as refused:
        crossval.check_recipes(words, own, place, separator)
    assert str(refused.value).startswith(f"`candidates`: {tried}")
    assert mentions(str(refused.value), *said)


def test_a_probe_that_met_one_class_only_is_left_out(tmp_path, monkeypatch):
    """Of a million images, among which a defect is rare, those that are looked at may have none."""
    data = dataset(np.arange(150) % 2)
    dealt = assign_folds(data, k=3, seed=0, contents=np.arange(150), by="class")
    (tmp_path / "fold1").mkdir()
    recipe = get_recipe("quick").model_copy(update={"weights": "some.safetensors"})
    (tmp_path / "fold1/recipe.yaml").write_text(recipe.to_yaml())
    looked_at = np.flatnonzero(data.labels == 0)
    vectors = np.zeros((len(looked_at), 8), np.float32)
    met = Embeddings(looked_at, data.labels[looked_at], vectors)
    monkeypatch.setattr(crossval_baseline, "_embeddings", lambda *_: met)
    runs = FoldTrainer(TrainOverrides(), CrossValConfig(folds=3), RunOptions(), data, np.arange(150), 0)
    assert crossval_baseline.probe_baseline(tmp_path, runs, dealt, None) is None


def test_from_how_many_pictures_the_probes_of_the_folds_learnt(tmp_path, monkeypatch):
    """90 of 150 are looked at: of the 100 that each of three folds teaches 60 on average."""
    data = dataset(np.arange(150) % 2)
    dealt = assign_folds(data, k=3, seed=0, contents=np.arange(150), by="class")
    looked_at = np.sort(np.random.default_rng(0).permutation(150)[:90])
    found = probed_on(looked_at, data, dealt, tmp_path, monkeypatch)
    assert (found.num_train_images, found.num_available_images) == (60, 100)
    assert (found.data_scaling_curve.carried.num_images, found.data_scaling_curve.forecast.num_images) == (100, 200)
    assert mentions(found.label_curve_note, "1", "100", "150")


def test_a_picture_that_cannot_be_read_makes_no_sample_of_a_fold(tmp_path, monkeypatch):
    """One of the 100 that teach fold 1, met while the probe looks: 99 are all there are, and nothing is carried on."""
    data = dataset(np.arange(156) % 2, split=["test"] * 6 + [""] * 150)
    dealt = assign_folds(data, k=3, seed=0, contents=np.arange(156), by="class")
    lost = int(dealt.parts[0].train_rows[5]) - 6  # where it stands among those that are looked at

    def looked_at(network, pictures, **_):
        seen = np.delete(np.arange(150), lost)
        vectors = np.random.default_rng(1).normal(size=(149, 8)).astype(np.float32)
        return Embeddings(seen, pictures.labels[seen], vectors, ((lost, "broken"),))

    monkeypatch.setattr(crossval_baseline, "embed_dataset", looked_at)
    monkeypatch.setattr(crossval_baseline, "build_initial_model", lambda *_, **__: SimpleNamespace(network=None))
    monkeypatch.setattr(crossval_baseline, "max_probe_images", lambda *_: 1_000)
    begun_as(tmp_path)
    begun = {"preprocessing": Preprocessing(image_size=32).to_json()}
    (tmp_path / "fold1/run.json").write_text(json.dumps(begun))
    place = RunOptions(device="cpu", workers=0)
    runs = FoldTrainer(TrainOverrides(), CrossValConfig(folds=3), place, data, np.arange(156), 0)
    found = crossval_baseline.probe_baseline(tmp_path, runs, dealt, None)
    assert found.data_scaling_curve.points[-1].num_images == 99
    assert (found.data_scaling_curve.carried, found.data_scaling_curve.forecast.num_images) == (None, 198)


def test_by_time_the_last_fold_says_whether_more_labels_would_help(tmp_path, monkeypatch):
    """The first learns from a sixth: it would foretell of fewer labels than there are."""
    data = dataset(np.arange(180) % 2, year=2000 + np.arange(180) // 30)
    dealt = time_folds(data, k=5, column="year")
    found = probed_on(np.arange(180), data, dealt, tmp_path, monkeypatch)
    assert (found.data_scaling_curve.points[-1].num_images, found.data_scaling_curve.forecast.num_images) == (150, 300)
    assert mentions(found.label_curve_note, "5", "150", "180")
    assert label_efficiency_verdict(found.data_scaling_curve, note=found.label_curve_note)[1].endswith(
        found.label_curve_note
    )


def begun_as(folder):
    """The first fold, as far as it says that there are weights to probe."""
    (folder / "fold1").mkdir()
    recipe = get_recipe("quick").model_copy(update={"weights": "some.safetensors"})
    (folder / "fold1/recipe.yaml").write_text(recipe.to_yaml())


def probed_on(looked_at, data, dealt, tmp_path, monkeypatch):
    """What probes come to that look at features of these images, which say nothing."""
    begun_as(tmp_path)
    vectors = np.random.default_rng(1).normal(size=(len(looked_at), 8)).astype(np.float32)
    embedded = Embeddings(looked_at, data.labels[looked_at], vectors)
    monkeypatch.setattr(crossval_baseline, "_embeddings", lambda *_: embedded)
    contents = np.arange(len(data))
    runs = FoldTrainer(TrainOverrides(), CrossValConfig(folds=len(dealt.parts)), RunOptions(), data, contents, 0)
    return crossval_baseline.probe_baseline(tmp_path, runs, dealt, None)


def test_how_the_table_is_read_is_saved(tmp_path):
    saved_in(tmp_path, TrainOverrides(epochs=2), source=DataConfig("a.csv", group_column="site"))
    saved = SavedCrossVal.read(tmp_path, "b.csv")
    assert saved == SavedCrossVal(
        TrainOverrides(epochs=2), CrossValConfig(folds=3), DataConfig("b.csv", group_column="site"), "d"
    )
    saved.check_same(tmp_path, TrainOverrides(), CrossValConfig(), DataConfig("b.csv"), CPU)
    with pytest.raises(InputError, match=mentioning("group_column")):
        saved.check_same(tmp_path, TrainOverrides(), CrossValConfig(), DataConfig("b.csv", group_column="plot"), CPU)
    (tmp_path / "crossval.json").write_text("{")
    with pytest.raises(InputError, match=mentioning("crossval.json")):
        SavedCrossVal.read(tmp_path, "b.csv")


def test_resuming_otherwise_or_with_other_pictures_is_refused(whole):
    folder, _ = whole
    shutil.copytree(folder / "folds", folder / "other")
    (folder / "other/report.json").unlink()
    for words, said in (
        (("--epochs", "3"), "epochs is 1.0 there, 3.0 here"),
        (("--by", "group"), "by is auto there, group here"),
        (("--folds", "5"), "folds is 2 there, 5 here"),
    ):
        done = effnetv2("crossval", "pictures", "--output", "other", "--resume", *words, cwd=folder)
        assert done.returncode == 2
        assert said in done.stderr
    paint(folder / "more/red/new.jpg", COLORS["red"], 77)
    paint(folder / "more/red/newer.jpg", COLORS["red"], 78)
    for number in range(2):
        paint(folder / f"more/blue/{number}.jpg", COLORS["blue"], number + 80)
    done = effnetv2("crossval", "more", "--output", "other", "--resume", cwd=folder)
    assert done.returncode == 2
    assert mentions(done.stderr, "images", "other", "--output")


def test_pictures_that_have_moved_are_refused_before_anything_is_written(whole, tmp_path):
    """As seen from the folder of the folds; moved together they go on."""
    folder, _ = whole
    shutil.copytree(folder / "pictures", tmp_path / "set/pictures")
    shutil.copytree(folder / "folds", tmp_path / "folds")
    (tmp_path / "folds/report.json").unlink()
    there = {file: file.read_bytes() for file in sorted((tmp_path / "folds").rglob("*.csv"))}
    words = ("--output", "folds", "--resume", "--device", "cpu")
    done = effnetv2("crossval", "set/pictures", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert mentions(done.stderr, tmp_path, "--output")
    assert {file: file.read_bytes() for file in sorted((tmp_path / "folds").rglob("*.csv"))} == there
    shutil.move(tmp_path / "set/pictures", tmp_path / "pictures")
    done = effnetv2("crossval", "pictures", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "folds/report.json").is_file()


def test_a_picture_that_can_no_more_be_read_is_passed_over_by_the_folds_left(whole, tmp_path):
    """One of a fold that is done and one of a fold that is not; and one that was left out can be read again."""
    folder, _ = whole
    shutil.copytree(folder / "pictures", tmp_path / "pictures")
    kept = paint(tmp_path / "pictures/red/kept.jpg", COLORS["red"], 99)
    whole_bytes = kept.read_bytes()
    kept.write_bytes(b"no picture")
    words = ("crossval", "pictures", *RUN, "--output", "folds")
    killed_at("efficientnetv2.workflows.crossval:write_crossval_report", *words, cwd=tmp_path)
    dealt = pd.read_csv(tmp_path / "folds/dataset.csv").set_index("path")["fold"]
    shutil.rmtree(tmp_path / "folds/fold2")
    kept.write_bytes(whole_bytes)
    for fold in (1, 2):
        (tmp_path / "folds" / dealt[dealt == fold].index[0]).write_bytes(b"gone")
    done = effnetv2(*words, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert mentions(said, "2", "read")
    assert mentions(said, "1", "read")
    report = json.loads((tmp_path / "folds/report.json").read_text())
    assert report["num_images"] == len(dealt) - 1, "the fold that is done has answered its own"
    assert report["num_skipped"] == 2, "that, and the one that was left out from the beginning"


def test_pictures_of_folds_are_known_again_however_many_there_are(tmp_path):
    """In a moment; were each compared with each, a million would take hours."""
    data = dataset(np.arange(60_000) % 2)
    data.to_csv(tmp_path / "dataset.csv")
    began = time.perf_counter()
    rows, left_out = crossval.readable_at_start(tmp_path, data, np.arange(1, 60_000))
    assert time.perf_counter() - began < 10
    assert rows.tolist() == list(range(60_000)), "the first is of the folds, though it can't be read any more"
    assert left_out == []


def test_by_links_to_the_pictures_and_to_the_folder_the_same_files_are_found(tmp_path):
    """The way from the folder is one from where the link leads to."""
    for name, color in COLORS.items():
        paint(tmp_path / "pictures" / name / "one.jpg", color, 0)
    (tmp_path / "far/away/folds").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far/away")
    (tmp_path / "link").symlink_to(tmp_path / "pictures")
    folder = tmp_path / "near/folds"
    load_dataset(tmp_path / "pictures").to_csv(folder / "dataset.csv")
    found = crossval.with_saved_paths(folder, load_dataset(tmp_path / "link"))
    assert all(Path(found.file(row)).is_file() for row in range(len(found)))
    there = pd.read_csv(folder / "dataset.csv")["path"].tolist()
    assert found.relative_to(folder / "dataset.csv")["path"].tolist() == there


def test_pictures_that_are_reached_by_a_link_are_where_they_were(whole, tmp_path):
    folder, _ = whole
    shutil.copytree(folder / "pictures", tmp_path / "pictures")
    shutil.copytree(folder / "folds", tmp_path / "folds")
    (tmp_path / "folds/report.json").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "pictures")
    done = effnetv2("crossval", "link", "--output", "folds", "--resume", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "folds/report.json").is_file()


def test_a_picture_that_a_fold_could_not_read_is_told_and_listed(whole, tmp_path):
    """As one whose header is whole: it passed for readable when dealt. One that only a training lost is answered."""
    folder, _ = whole
    for name in ("pictures", "folds"):
        shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "folds/report.json").unlink()
    first = tmp_path / "folds/fold1"
    answers = pd.read_csv(first / "predictions.csv")
    answers.iloc[1:].to_csv(first / "predictions.csv", index=False)
    learnt = pd.read_csv(first / "dataset.csv").query("split == 'train'")["path"].iloc[0]
    listed = pd.DataFrame({"path": [answers["path"][0], learnt], "reason": "truncated"})
    listed.to_csv(first / "skipped.csv", index=False)
    done = effnetv2("crossval", "pictures", "--output", "folds", "--resume", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lost = str(Path(*Path(answers["path"][0]).parts[-2:]))
    assert mentions(done.stdout, lost, "1", "unreadable", "skipped")
    assert mentions(done.stdout, "folds/skipped.csv")
    table = pd.read_csv(tmp_path / "folds/skipped.csv")
    assert table.to_dict("records") == [{"path": lost, "reason": "truncated"}]
    report = json.loads((tmp_path / "folds/report.json").read_text())
    assert (report["num_images"], report["num_skipped"]) == (47, 1)
    page = (tmp_path / "folds/report.html").read_text()
    assert mentions(page, "1", "read")


@pytest.mark.parametrize(
    ("words", "said"),
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
def test_wrong_words_are_refused_before_anything_is_trained(whole, words, said):
    folder, _ = whole
    done = effnetv2("crossval", "pictures", *TINY, "--weights", "none", *words, cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert mentions(done.stderr, *said)
    assert not (folder / "runs").exists()


def test_tables_with_bad_cells_are_refused_by_row(tmp_path):
    for number in range(4):
        paint(tmp_path / f"{number}.jpg", COLORS["red"], number)
    good = pd.DataFrame(
        {"path": [f"{n}.jpg" for n in range(4)], "label": list("abab"), "latitude": 1.0, "longitude": 2.0, "year": 2000}
    )
    for column, value, said in (
        ("latitude", 91.0, "row 3: latitude is 91.0"),
        ("longitude", np.nan, "row 3: the longitude is empty"),
        ("label", np.nan, "row 3: the label is empty"),
        ("path", np.nan, "row 3: the path is empty"),
        ("year", np.nan, "row 3: year is empty"),
    ):
        table = good.astype({column: object})
        table.loc[1, column] = value
        table.to_csv(tmp_path / "bad.csv", index=False)
        done = effnetv2("crossval", "bad.csv", *TINY, "--folds", "2", "--by", "time", "--weights", "none", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr, done.stderr


def table_of(folder: Path, **columns: list[str]) -> Path:
    """A table of six images, alternately of two classes, with further columns."""
    for number in range(6):
        paint(folder / f"{number}.jpg", COLORS["red"], number, px=16)
    table = pd.DataFrame({"path": [f"{n}.jpg" for n in range(6)], "label": list("ababab"), **columns})
    table.to_csv(folder / "six.csv", index=False)
    return folder / "six.csv"


def test_copies_of_test_pictures_are_refused_as_in_train(tmp_path):
    made_from, split = ["", "", "", "", "1.jpg", "5.jpg"], ["train", "test", "val", "", "val", "train"]
    table_of(tmp_path, augmented_from=made_from, split=split)
    done = effnetv2("crossval", "six.csv", *RUN, "--output", "folds", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert mentions(done.stderr, "six.csv", "6", "4.jpg", "1.jpg")
    assert not (tmp_path / "folds").exists()


@pytest.mark.parametrize("split", [["val"] * 6, ["train", "val"] * 3])
def test_given_splits_do_not_count_whatever_they_leave_to_train_on(tmp_path, split):
    """All of it val, or a class that stands in val alone: the folds are dealt of both."""
    file = table_of(tmp_path, split=split)
    dataset, contents, _ = crossval.load_images(DataConfig(str(file)), RunOptions(device="cpu"), 0)
    assert set(dataset.split) == {""}
    dealt = assign_folds(dataset, k=2, seed=0, contents=contents)
    assert all({0, 1} == set(dataset.labels[part.train_rows]) for part in dealt.parts)


def test_a_class_of_test_alone_is_refused(tmp_path):
    file = table_of(tmp_path, split=["train", "test"] * 3)
    with pytest.raises(InputError, match=mentioning("'b'", "test")):
        crossval.load_images(DataConfig(str(file)), RunOptions(device="cpu"), 0)


@pytest.mark.usefixtures("on_screen")
def test_groups_that_test_shares_with_the_folds_are_told(tmp_path, capsys):
    file = table_of(tmp_path, group=list("xxyyzz"), split=["", "test", "train", "val", "", ""])
    crossval.load_images(DataConfig(str(file)), RunOptions(device="cpu"), 0)
    said = capsys.readouterr().out
    assert mentions(said, "1", "3", "'x'", "test")
    assert "'y'" not in said, "what is given as val is dealt out like all else"


@pytest.mark.parametrize(("module", "stopped"), [(FoldTrainer, "predict"), (crossval, "write_crossval_report")])
def test_one_that_is_stopped_says_how_it_goes_on_as_it_was_asked_for(module, stopped, tmp_path, monkeypatch):
    """Stopped in a fold, or while the report is written."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(FoldTrainer, "predict", lambda *_, **__: None)
    monkeypatch.setattr(module, stopped, stop)
    file, out = table_of(tmp_path), tmp_path / "folds"
    words = TrainOverrides(model="efficientnetv2_b0", weights="none", epochs=1, settings=("progressive.image_size=32",))
    place = RunOptions(out, device="cpu", workers=0, memory_gib=6.5, strict=True, probe=False)
    with pytest.raises(KeyboardInterrupt) as told:
        crossval.run_crossval(words, DataConfig(str(file)), place, CrossValConfig(folds=2))
    how = "--device cpu --workers 0 --memory-gib 6.5 --strict"
    assert mentions(str(told.value), file, out, how, "effnetv2 crossval", "--output", "--resume")


def begun(words, source, place, plan, monkeypatch):
    """Begin a cross-validation that trains nothing; what is returned goes on with it and lists its plans."""
    told = []
    monkeypatch.setattr(FoldTrainer, "predict", lambda self, *_: told.append(self.config))
    monkeypatch.setattr(crossval, "write_crossval_report", lambda *_: None)
    crossval.run_crossval(words, source, place, plan)

    def went_on(plan):
        told.clear()
        crossval.run_crossval(TrainOverrides(), source, replace(place, resume=True), plan)
        return list(told)

    return went_on


SHORT = TrainOverrides(model="efficientnetv2_b0", weights="none", epochs=1, settings=("progressive.image_size=32",))


def test_folds_go_on_by_another_name_of_their_rule(tmp_path, monkeypatch):
    """Without places auto is by class; with places their folds are others, and by time there are none."""
    for where, columns in (("plain", {}), ("placed", places(6))):
        (tmp_path / where).mkdir()
        file, out = table_of(tmp_path / where, **columns), tmp_path / where / "folds"
        went_on = begun(
            SHORT, DataConfig(str(file)), RunOptions(out, device="cpu"), CrossValConfig(folds=2), monkeypatch
        )
        assert went_on(CrossValConfig()) == [CrossValConfig(folds=2)]
        if where == "plain":
            assert went_on(CrossValConfig(by="class")) == [CrossValConfig(folds=2)]
        else:
            assert went_on(CrossValConfig(by="place")) == [CrossValConfig(folds=2)]
            with pytest.raises(InputError, match=mentioning("by", "auto", "class")):
                went_on(CrossValConfig(by="class"))
        with pytest.raises(InputError, match=mentioning("by", "auto", "time")):
            went_on(CrossValConfig(by="time"))


def fake_training(reached, asked, epochs_of=lambda words, place, pictures: 3.0):
    """In place of ``trained``: writes what a run leaves; its macro-F1 is what ``reached`` says of its settings.

    It trains for ``epochs_of`` its number of images, each of which takes a second a time.
    """

    def run(words, source, place, *_, **__):
        if (place.out / "report.json").exists():
            return
        part = load_dataset(source.data)
        asked.append((words, part, place))
        place.out.mkdir(parents=True)
        pictures = len(part.subset("train"))
        epochs = epochs_of(words, place, pictures)
        recipe = get_recipe("quick").model_copy(update={"epochs": epochs})
        (place.out / "recipe.yaml").write_text(recipe.to_yaml())
        val = part.subset("val")
        logits = torch.eye(len(part.class_names))[torch.tensor(val.labels)] * 9
        answers = Predictions(np.arange(len(val)), val.labels, logits)
        table = predictions_table(answers, val.paths, part.class_names, true_labels=list(val.table["label"]))
        write_predictions(place.out / "predictions.csv", table)
        report = {"top1": 1.0, "macro_f1": reached(words, place.out), "epochs": epochs, "wall_s": epochs * pictures}
        (place.out / "report.json").write_text(json.dumps(report))

    return run


def painted(folder: Path, count: int) -> Path:
    """A table of so many images of two classes, in pairs of one place each."""
    rows = []
    for number in range(count):
        paint(folder / f"{number}.jpg", COLORS["red"], number, px=16)
        rows.append((f"{number}.jpg", "ab"[number // 2 % 2], number // 2 % 40 + 0.5, 3.0 * (number // 2) + 0.5))
    pd.DataFrame(rows, columns=["path", "label", "latitude", "longitude"]).to_csv(folder / "all.csv", index=False)
    return folder / "all.csv"


def test_tries_are_chosen_inside_the_training_pictures(tmp_path, monkeypatch):
    """Fold 2 chooses otherwise than the others; nobody learns from, or chooses by, what the fold answers."""
    asked = []

    def reached(words, out):
        better = "_try2" if "fold2" in out.name else "_try1"
        return 0.9 if out.name.endswith(better) else 0.5

    monkeypatch.setattr(crossval_runs, "train_run", fake_training(reached, asked))
    data = load_dataset(painted(tmp_path, 48))
    plan = CrossValConfig(
        folds=3,
        by="place",
        tries=("class_sampling=null", "class_sampling=equal optimizer.lr=0.001"),
        try_settings=("epochs=2",),
    )
    contents = np.arange(48)
    dealt = plan.make_folds(data, contents, 0)
    words = TrainOverrides(minutes=90, settings=("batch_size=16",))
    runs = FoldTrainer(words, plan, RunOptions(out=tmp_path / "out"), data, contents, 0)
    answered = runs.predict(dealt, tmp_path / "out", "Fold")

    assert [one.score.chosen for one in answered] == [(plan.tries[number],) for number in (0, 1, 0)]
    assert [one.candidate_scores for one in answered] == [(0.9, 0.5), (0.5, 0.9), (0.9, 0.5)]
    assert sorted(np.concatenate([one.rows for one in answered])) == list(range(48))
    assert [place.out.name for _, _, place in asked] == [
        "fold1_try1", "fold1_try2", "fold1", "fold2_try1", "fold2_try2", "fold2", "fold3_try1", "fold3_try2", "fold3",
    ]  # fmt: skip
    place_of = dict(zip((Path(path).name for path in data.paths), np.arange(48) // 2, strict=True))
    for number, part in enumerate(dealt.parts):
        answers = {Path(data.paths[row]).name for row in part.val_rows}
        for _, listed, _ in asked[3 * number : 3 * number + 2]:
            assert answers.isdisjoint(Path(path).name for path in listed.paths)
            inner = [{place_of[Path(p).name] for p in listed.subset(name).paths} for name in ("train", "val")]
            assert inner[0].isdisjoint(inner[1])  # the rule of the folds holds within, too
        for _, listed, _ in asked[3 * number : 3 * number + 3]:  # each is told what they kept whole
            kept = dict(zip((Path(p).name for p in data.paths), dealt.clusters, strict=True))
            assert list(listed.table["kept_whole"]) == [kept[Path(p).name] for p in listed.paths]
    first = [words for words, _, _ in asked]
    assert (first[0].minutes, first[0].settings) == (None, ("batch_size=16", "class_sampling=null", "epochs=2"))
    assert first[1].settings == ("batch_size=16", "class_sampling=equal", "optimizer.lr=0.001", "epochs=2")
    assert first[2].settings == ("batch_size=16", "class_sampling=null")
    # Both tries of the first fold took 3 epochs of 1 s an image; what those of all take goes off the minutes.
    tried = sum(len(listed.subset("train")) for _, listed, _ in asked[:2]) * 3 / len(dealt.parts[0].train_rows)
    pictures = [len(part.train_rows) for part in dealt.parts]
    assert first[2].minutes == pytest.approx((90 * 0.9 - tried * sum(pictures) / 60) * pictures[0] / sum(pictures))
    # What the first of a kind has settled, the later ones repeat.
    settled = [place.settled for _, _, place in asked]
    assert settled[3] == (tmp_path / "out/choosing/try1.yaml",)
    assert settled[5] == ()  # the second try is trained whole for the first time here
    assert settled[8] == (tmp_path / "out/fold1/recipe.yaml",)
    assert not list((tmp_path / "out/choosing").glob("fold*_try*"))
    again = runs.predict(dealt, tmp_path / "out", "Fold")  # all is done: the runs are asked for again, nothing chosen
    assert [one.candidate_scores for one in again] == [one.candidate_scores for one in answered]


def test_a_try_that_cannot_be_monitor_is_refused():
    data = dataset([0] * 20 + [1] * 4, group=["a"] * 10 + ["b"] * 10 + ["c"] * 2 + ["d"] * 2)
    plan = CrossValConfig(folds=2, by="group", tries=("", "class_sampling=null"))
    dealt = plan.make_folds(data, np.arange(24), 0)
    with pytest.raises(InputError, match=mentioning("candidates", "1")):
        plan.selection_split(data, np.arange(24), dealt, 0, 0)


def test_a_val_split_of_ones_own_is_no_way_out_of_a_cross_validation():
    """Of a class with two images in two folds, each fold has one to learn: it cannot choose between tries as well."""
    data, plan = (dataset([0] * 10 + [1] * 2), CrossValConfig(folds=2, by="class", tries=("", "class_sampling=null")))
    dealt = plan.make_folds(data, np.arange(12), 0)
    with pytest.raises(InputError, match=mentioning("'c1'", "candidates")):
        plan.selection_split(data, np.arange(12), dealt, 0, 0)


def test_few_years_are_enough_to_choose_by():
    """Two years teach: the earlier one the tries, the later one chooses. One year cannot do both."""
    years = np.repeat([2001, 2002, 2003, 2004], 10)
    data, contents = dataset([0, 1] * 20, year=years), np.arange(40)
    plan = CrossValConfig(folds=1, by="time", tries=("", "class_sampling=null"))
    dealt = plan.make_folds(data, contents, 0)
    assert set(years[dealt.parts[0].train_rows]) == {2001, 2002}
    learning, asked = plan.selection_split(data, contents, dealt, 0, 0)
    assert (set(years[learning]), set(years[asked])) == ({2001}, {2002})
    more = replace(plan, folds=3)
    with pytest.raises(InputError, match=mentioning("1", "training", "fold")):
        more.selection_split(data, contents, more.make_folds(data, contents, 0), 0, 0)
    two, dealt = data.select(range(20)), plan.make_folds(data.select(range(20)), contents[:20], 0)
    with pytest.raises(InputError, match=mentioning("candidates")):
        plan.selection_split(two, contents[:20], dealt, 0, 0)


@pytest.mark.parametrize("group", [None, [None] * 80, [f"g{number // 4}" for number in range(80)]])
def test_folds_by_place_stand_beside_folds_at_random_whatever_the_groups(group):
    """A column of groups, let alone an empty one, takes no places away."""
    columns = places(80) | ({} if group is None else {"group": group})
    data, contents = dataset(np.tile([0, 1, 0, 1], 20), **columns), np.arange(80)
    plan = CrossValConfig(folds=4, by="class", compare_splits=True)
    beside_them = plan.comparison_folds(data, contents, 0, plan.make_folds(data, contents, 0))
    assert beside_them.rule == "place"


def test_what_is_of_places_is_refused_with_the_reason_where_there_are_none():
    data, contents = dataset([0, 1] * 10, group=list("abcd") * 5), np.arange(20)
    plan = CrossValConfig(folds=2, compare_splits=True)
    with pytest.raises(InputError, match=mentioning("compare_splits", "all.csv")):
        plan.comparison_folds(data, contents, 0, plan.make_folds(data, contents, 0))
    one_place = dataset([0, 1] * 10, latitude=[1.0] * 20, longitude=[2.0] * 20)
    with pytest.raises(InputError, match=mentioning("compare_splits", "all.csv", "1", "2")):
        plan.comparison_folds(one_place, contents, 0, plan.make_folds(one_place, contents, 0))
    with pytest.raises(InputError, match=mentioning("block_degrees", "0.25", "all.csv")):
        CrossValConfig(folds=2, block_degrees=0.25).make_folds(data, contents, 0)


def test_a_second_set_of_folds_that_nothing_could_be_told_of_is_refused():
    """It would take as long again; figures of images with several labels are not compared."""
    data, contents = dataset(np.tile([0, 1, 0, 1], 20), **places(80)), np.arange(80)
    data = replace(data, table=data.table.assign(label=data.table["label"] + ";"), separator=";")
    for by in ("class", "place"):
        plan = CrossValConfig(folds=4, by=by, compare_splits=True)
        dealt = plan.make_folds(data, contents, 0)
        with pytest.raises(InputError, match=mentioning("compare_splits", "all.csv")):
            plan.comparison_folds(data, contents, 0, dealt)
        assert replace(plan, compare_splits=False).comparison_folds(data, contents, 0, dealt) is not None


def test_by_time_the_last_period_has_trained_nobody(tmp_path):
    """Its images are new to all networks of the folder, so figures on them are not called optimistic."""
    table = pd.read_csv(painted(tmp_path, 12)).assign(year=2000 + np.arange(12) // 4, label=list("ab") * 6)
    table.to_csv(tmp_path / "all.csv", index=False)
    data, source = load_dataset(tmp_path / "all.csv"), DataConfig(str(tmp_path / "all.csv"))
    plan, folder = CrossValConfig(folds=2, by="time"), tmp_path / "folds"
    folder.mkdir()
    dealt = plan.make_folds(data, np.arange(12), 0)
    crossval_config.write_start(folder, SavedCrossVal(TrainOverrides(), plan, source, "d"), data, dealt)
    assert pd.read_csv(folder / "dataset.csv", keep_default_na=False)["split"].tolist() == ["train"] * 8 + [""] * 4
    assert train_overlap(folder, None, data).num_trained == 8
    assert train_overlap(folder, None, data.select(np.arange(8, 12))).num_trained == 0


def test_a_random_split_that_flatters_is_found():
    """Each place has a look of its own and a label of its own: known by heart at random, unknown in new places."""
    drawn = np.random.default_rng(0)
    place = np.arange(240) // 4
    labels = drawn.integers(0, 2, 60)[place]
    vectors = drawn.normal(size=(60, 300))[place] + 0.1 * drawn.normal(size=(240, 300))
    data = dataset(labels, latitude=place % 80 + 0.5, longitude=place * 2 + 0.5)
    embedded = Embeddings(np.arange(240), labels, vectors.astype(np.float32))
    both = [assign_folds(data, k=4, seed=0, by=by) for by in ("class", "place")]
    answers = []
    for dealt in both:
        pairs = [(part.train_rows, part.val_rows) for part in dealt.parts]
        given = out_of_fold_predictions(embedded, pairs, key=Key.of(0), balanced=False)
        answers.append(Predictions(np.arange(240), labels, torch.eye(2)[given]))
    found = compare_folds("the linear probe", answers[1], answers[0], both[1], both[0], 2, Key.of(0))
    assert found.at_random["top1"] > 0.95
    assert found.by_place["top1"] < 0.7
    assert found.difference["top1"].value == pytest.approx(found.at_random["top1"] - found.by_place["top1"])
    assert found.is_optimistic
    assert "Random folds are optimistic" in found.sentence()
    same = compare_folds("the linear probe", answers[1], answers[1], both[1], both[0], 2, Key.of(0))
    assert not same.is_optimistic


def test_four_places_that_flatter_alike_do_not_say_it_of_others():
    """Their difference is no surer than that of their 40 images."""
    labels, at_random, by_place, place = alike_places()
    answers = [Predictions(np.arange(40), labels, torch.eye(2)[each]) for each in (by_place, at_random)]
    kept, parted = Folds((), "", place, "place", 1.0), Folds((), "", np.arange(40), "class")
    found = compare_folds("the linear probe", *answers, kept, parted, 2, Key.of(0))
    assert found.difference["top1"].value == pytest.approx(0.1)
    assert not found.is_optimistic


def test_predictions_are_read_as_they_were_written(tmp_path):
    """Classes may be called as columns are, and one that the network did not know gets nothing."""
    names = ("label", "other", "path", "true_label")
    logits = torch.randn(5, 4)
    answers = Predictions(np.arange(5), np.arange(5) % 4, logits)
    table = predictions_table(answers, list("vwxyz"), names, true_labels=["other"] * 5)
    write_predictions(tmp_path / "p.csv", table)
    paths, shares = read_predictions(tmp_path / "p.csv", (*names, "unknown"))
    assert paths == list("vwxyz")
    assert shares[:, :4] == pytest.approx(logits.softmax(dim=1).numpy(), abs=1e-5)
    assert (shares[:, 4] == 0).all()


def test_the_command_for_new_pictures_can_be_typed_as_it_stands(tmp_path, monkeypatch):
    folder = tmp_path / "my folds"
    network = create("efficientnetv2_b0", num_classes=2)
    network.class_names = ("a", "b")
    for number in (1, 2):
        (folder / f"fold{number}").mkdir(parents=True)
        model_file.save(folder / f"fold{number}" / model_file.NAME, network)
    monkeypatch.setattr(model_file, "load", None)  # whether they answer together their headers say
    said = write_ensemble(folder, ["fold1", "fold2"], 1)
    assert mentions(said, folder, "effnetv2 predict", "NEW_IMAGES")


def test_networks_that_cannot_be_asked_together_are_called_by_their_folders(tmp_path):
    network = create("efficientnetv2_b0", num_classes=2)
    for run, px in (("fold1", 32), ("fold1_member2", 32), ("fold2", 32), ("fold2_member2", 48)):
        (tmp_path / run).mkdir()
        preprocessing = Preprocessing(image_size=px)
        model_file.save(tmp_path / run / model_file.NAME, network, preprocessing=preprocessing, class_names=("a", "b"))
    runs = ["fold1", "fold1_member2", "fold2", "fold2_member2"]
    said = write_ensemble(tmp_path, runs, 2)
    assert mentions(said, "fold2_member2", "ensemble")
    assert mentions(said, "image_size", "48", "32")
    assert mentions(said, tmp_path / "fold1", "effnetv2 predict", "NEW_IMAGES")
    assert not (tmp_path / ensemble.NAME).exists()
    ensemble.write_members(tmp_path, [f"{run}/{model_file.NAME}" for run in runs])
    with pytest.raises(InputError, match=mentioning("fold2_member2", "ensemble")):
        model_file.load(tmp_path)
