"""Rasters of five bands and 16 bits: trained, mapped, resumed, checked and refused."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from tests.command_line import TINY, killed_at, run_ok, run_refused
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

LEVELS = {"dark": (600, 600, 600), "lush": (900, 900, 3_000), "bare": (2_500, 2_200, 900)}  # bands 2, 3 and 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rasters")
    rng = np.random.default_rng(0)
    for name, values in LEVELS.items():
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(16):
            bands = rng.integers(0, 9_000, (5, 40, 40)).astype(np.uint16)
            for band, value in zip((1, 2, 3), values, strict=True):
                bands[band] = value + rng.integers(-300, 300, (40, 40))
            write_raster(folder / "pictures" / name / f"{name}{number:02d}.tif", bands)
    args = ("train", folder / "pictures", *TINY, "--epochs", "4", "--weights", "none", "--bands", "4,3,2")
    done = run_ok(*args, "--output", folder / "run", cwd=folder)
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def test_crossval_applies_bands_to_rasters(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            bands = rng.integers(0, 9_000, (5, 40, 40)).astype(np.uint16)
            write_raster(tmp_path / "pictures" / name / f"{number}.tif", bands)
    args = ("crossval", "pictures", *TINY, "--batch-size", "2", "--folds", "2", "--bands", "4,3,2")
    run_ok(*args, "--output", "folds", cwd=tmp_path)
    assert len(pd.read_csv(tmp_path / "folds/predictions.csv")) == 8


def test_model_file_has_the_band_scaling(trained):
    bands = model_file.load(trained / "run").preprocessing.bands
    assert bands.numbers == (4, 3, 2)
    assert 300 <= min(bands.low) <= max(bands.low) <= 700
    assert 2_700 <= bands.high[0] <= 3_300
    output = (trained / "stdout.txt").read_text()
    assert mentions(output, "4", "3", "2", "raster")
    assert mentions(output, "5", "uint16", "raster")


@pytest.mark.parametrize(
    ("scaling", "facts"),
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
def test_equal_channel_scaling_is_described_once(scaling, facts):
    assert mentions(describe_bands(scaling, given=False), facts, "0", "255")


def test_map_equals_the_predictor(trained, tmp_path):
    """Three images next to each other as one raster."""
    files = [trained / "pictures" / name / f"{name}03.tif" for name in LEVELS]
    scene = np.concatenate([rasterio.open(file).read() for file in files], axis=2)
    write_raster(tmp_path / "scene.tif", scene)
    done = run_ok("geo", "map", trained / "run", "scene.tif", "--stride-px", "40", cwd=tmp_path)
    assert mentions(done.stdout, "3", "1", "40", "400")  # the image size in meters, from the model file
    names = model_file.load(trained / "run").class_names
    with rasterio.open(tmp_path / "map.tif") as target:
        values = target.read(1)[20, 20::40]
    assert [names[value - 1] for value in values] == [one.label for one in Predictor(trained / "run")(files)]


def test_resume_keeps_the_bands(trained, tmp_path):
    args = ("train", trained / "pictures", *TINY, "--weights", "none", "--output", tmp_path / "run")
    killed_at("efficientnetv2.training.post_training:save_model", *args, "--bands", "4,3,2", cwd=tmp_path)
    run_refused(*args, "--bands", "2,3,4", "--resume", cwd=tmp_path, names=("4,3,2", "raster"))
    nodata = ("--bands", "4,3,2", "--nodata", "-9999")
    run_refused(*args, *nodata, "--resume", cwd=tmp_path, names=("--nodata", "none"))
    run_ok(*args, "--bands", "4,3,2", "--resume", cwd=tmp_path)
    assert model_file.load(tmp_path / "run").preprocessing.bands.numbers == (4, 3, 2)


def test_resume_keeps_the_scaling_despite_an_unreadable_raster(trained, tmp_path):
    """The scaling is measured on the readable images, so it would differ without one of them."""
    for name in ("pictures", "run"):
        shutil.copytree(trained / name, tmp_path / name)
    saved = ImageDataset.from_csv(tmp_path / "run/dataset.csv", root=tmp_path / "pictures", source="pictures")
    file = tmp_path / "pictures" / saved.subset("train").paths[0]
    file.write_bytes(b"")
    recipe = read_recipe(tmp_path / "run/recipe.yaml")
    args = {"val_fraction": recipe.val_fraction, "seed": recipe.seed, "strict": False}
    now = prepare_data(DataConfig(str(tmp_path / "pictures"), bands="4,3,2"), **args)
    restored = restore_dataset(tmp_path / "run", now)
    bands = model_file.load(tmp_path / "run").preprocessing.bands
    assert now.dataset.bands != bands == restored.dataset.bands
    assert restored.dataset.digest() == saved.digest()
    other = prepare_data(DataConfig(str(tmp_path / "pictures"), bands="2,3,4"), **args)
    with pytest.raises(InputError, match=mentioning("4,3,2", "raster")):
        restore_dataset(tmp_path / "run", other)


def test_missing_bands_are_refused(trained, tmp_path):
    args = ("train", trained / "pictures", *TINY, "--bands", "7,3,2", "--output", "run")
    run_refused(*args, cwd=tmp_path, names=("7", "3", "2", "band"))
    assert not (tmp_path / "run").exists()


def test_check_applies_the_bands(trained, tmp_path):
    done = run_ok("check", trained / "pictures", "--bands", "4,3,2", "--output", tmp_path / "page", cwd=tmp_path)
    assert mentions(done.stdout, "4", "3", "2", "raster")
    assert "cannot be read" not in done.stdout
    assert (tmp_path / "page/inspection.html").stat().st_size > 20_000  # with thumbnails
