"""Rasters of five bands and 16 bits, the whole way: trained, evaluated, predicted, mapped, gone on with."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from tests.command_line import TINY, effnetv2, killed_at
from tests.messages import mentioning, mentions
from tests.rasters import rasterio, write_raster

from efficientnetv2.data.config import DataConfig, describe_bands
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.inference.predictor import Predictor
from efficientnetv2.models import model_file
from efficientnetv2.preprocessing import Bands
from efficientnetv2.training.recipe_io import read_recipe as read_recipe
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.resume import restore_dataset

LEVELS = {"dark": (600, 600, 600), "lush": (900, 900, 3_000), "bare": (2_500, 2_200, 900)}  # of bands 2, 3 and 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("rasters")
    rng = np.random.default_rng(0)
    for name, values in LEVELS.items():
        (place / "pictures" / name).mkdir(parents=True)
        for number in range(16):
            bands = rng.integers(0, 9_000, (5, 40, 40)).astype(np.uint16)
            for band, value in zip((1, 2, 3), values, strict=True):
                bands[band] = value + rng.integers(-300, 300, (40, 40))
            write_raster(place / "pictures" / name / f"{name}{number:02d}.tif", bands)
    words = ("train", place / "pictures", *TINY, "--epochs", "4", "--weights", "none", "--bands", "4,3,2")
    done = effnetv2(*words, "--output", place / "run", cwd=place)
    assert done.returncode == 0, done.stderr
    return place, done, words


def test_folds_are_trained_on_rasters_that_only_the_rule_can_read(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            bands = rng.integers(0, 9_000, (5, 40, 40)).astype(np.uint16)
            write_raster(tmp_path / "pictures" / name / f"{number}.tif", bands)
    words = ("crossval", "pictures", *TINY, "--batch-size", "2", "--folds", "2", "--bands", "4,3,2")
    done = effnetv2(*words, "--output", "folds", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(tmp_path / "folds/predictions.csv")) == 8


def test_the_model_file_knows_the_rule(trained):
    place, done, _ = trained
    bands = model_file.load(place / "run").preprocessing.bands
    assert bands.numbers == (4, 3, 2)
    assert 300 <= min(bands.low) <= max(bands.low) <= 700
    assert 2_700 <= bands.high[0] <= 3_300
    assert mentions(done.stdout, "4", "3", "2", "raster")
    assert mentions(done.stdout, "5", "uint16", "raster")


@pytest.mark.parametrize(
    ("bands", "said"),
    [
        (
            Bands((1, 1, 1), (37.5,) * 3, (3957.0,) * 3),
            "band 1 as gray (others with `bands`); values 37.5 to 3957 become",
        ),
        (Bands((3, 2, 1)), "bands 3, 2, 1 as red, green and blue (others with `bands`); values 0 to 255 become"),
        (
            Bands((1, 1, 2), (0.0, 0.0, 9.0), (99.0, 99.0, 90.0)),
            "bands 1, 1, 2 as red, green and blue (others with `bands`); values 0 to 99, 0 to 99, 9 to 90 become",
        ),
    ],
)
def test_what_holds_of_all_channels_is_told_once(bands, said):
    assert mentions(describe_bands(bands, given=False), said, "0", "255")


def test_evaluate_predict_and_python_agree(trained, tmp_path):
    place, _, _ = trained
    report = json.loads((place / "run/report.json").read_text())
    words = ("evaluate", place / "run", place / "run/dataset.csv", "--split", "val", "--workers", "0")
    done = effnetv2(*words, "--output", tmp_path / "evaluation", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["confusion"] == report["confusion"]
    assert again["optimistic"] is False
    done = effnetv2("predict", place / "run", place / "pictures", "--workers", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert len(table) == 48
    assert table["predicted_label"].nunique() > 1
    files = [place / "pictures" / path for path in table["path"][::7]]
    for found, (_, row) in zip(Predictor(place / "run")(files), table[::7].iterrows(), strict=True):
        assert found.label == row["predicted_label"]
        assert found.probability == pytest.approx(row[row["predicted_label"]], abs=1e-4)


def test_a_map_of_them_is_what_predict_says_of_them(trained, tmp_path):
    """Three images side by side as one raster."""
    place, _, _ = trained
    files = [place / "pictures" / name / f"{name}03.tif" for name in LEVELS]
    scene = np.concatenate([rasterio.open(file).read() for file in files], axis=2)
    write_raster(tmp_path / "scene.tif", scene)
    done = effnetv2("geo", "map", place / "run", "scene.tif", "--stride-px", "40", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "3", "1", "40", "400")  # as the images were, which the model file knows
    names = model_file.load(place / "run").class_names
    with rasterio.open(tmp_path / "map.tif") as target:
        values = target.read(1)[20, 20::40]
    assert [names[value - 1] for value in values] == [one.label for one in Predictor(place / "run")(files)]


def test_a_run_goes_on_with_the_bands_it_was_begun_with(trained, tmp_path):
    place, _, _ = trained
    words = ("train", place / "pictures", *TINY, "--weights", "none", "--output", tmp_path / "run")
    killed_at("efficientnetv2.training.post_training:save_model", *words, "--bands", "4,3,2", cwd=tmp_path)
    other = effnetv2(*words, "--bands", "2,3,4", "--resume", cwd=tmp_path)
    assert other.returncode == 2
    assert mentions(other.stderr, "4,3,2", "raster")
    begun = tmp_path / "run/run.json"
    told = json.loads(begun.read_text())
    assert told["preprocessing"]["bands"].pop("kinds") == ["uint16"]
    told["preprocessing"]["bands"]["names"] = ["", "", ""]
    begun.write_text(json.dumps(told))  # as an earlier version had begun it
    same = effnetv2(*words, "--bands", "4,3,2", "--resume", cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    assert model_file.load(tmp_path / "run").preprocessing.bands.numbers == (4, 3, 2)


def test_a_run_goes_on_with_its_own_rule_where_a_raster_cannot_be_read_any_more(trained, tmp_path):
    """What becomes 0 and 255 is measured on the images that can be read, and so is another without one of them."""
    place, _, _ = trained
    for name in ("pictures", "run"):
        shutil.copytree(place / name, tmp_path / name)
    begun = ImageDataset.from_csv(tmp_path / "run/dataset.csv", root=tmp_path / "pictures", source="pictures")
    file = tmp_path / "pictures" / begun.subset("train").paths[0]
    file.write_bytes(b"")
    recipe = read_recipe(tmp_path / "run/recipe.yaml")
    words = {"val_fraction": recipe.val_fraction, "seed": recipe.seed, "strict": False}
    now = prepare_data(DataConfig(str(tmp_path / "pictures"), bands="4,3,2"), **words)
    again = restore_dataset(tmp_path / "run", now)
    bands = model_file.load(tmp_path / "run").preprocessing.bands
    assert now.dataset.bands != bands == again.dataset.bands
    assert again.dataset.digest() == begun.digest()
    other = prepare_data(DataConfig(str(tmp_path / "pictures"), bands="2,3,4"), **words)
    with pytest.raises(InputError, match=mentioning("4,3,2", "raster")):
        restore_dataset(tmp_path / "run", other)


def test_bands_that_are_not_there_are_refused(trained, tmp_path):
    place, _, _ = trained
    done = effnetv2(
        "train",
        place / "pictures",
        *TINY,
        "--weights",
        "none",
        "--bands",
        "7,3,2",
        "--output",
        tmp_path / "run",
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert mentions(done.stderr, "7", "3", "2", "band")
    assert not (tmp_path / "run").exists()


def test_inspect_looks_at_them_by_the_rule(trained, tmp_path):
    place, _, _ = trained
    done = effnetv2("check", place / "pictures", "--bands", "4,3,2", "--output", tmp_path / "page", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "4", "3", "2", "raster")
    assert "cannot be read" not in done.stdout
    assert (tmp_path / "page/inspection.html").stat().st_size > 20_000  # there are images in it
