"""Rasters of five bands: a model learns a class from near infrared; evaluate, predict, map and refused input."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pandas as pd
import pytest
from tests.command_line import TINY, killed_at, run_ok, run_refused
from tests.conftest import paint
from tests.messages import mentioning, mentions
from tests.rasters import PLACE, UTM, rasterio, write_raster

from efficientnetv2.architectures import registry
from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.inference.predictor import Predictor
from efficientnetv2.models import model_file
from efficientnetv2.utils.errors import InputError

NAMES = ("bare", "lush")
INFRARED = {"bare": 1_500, "lush": 3_500}  # band 5; the other bands are noise, equal for both classes
PX = 32
# A model so small that thirty epochs of forty images take seconds.
SMALL = Architecture(
    stem_channels=8,
    stages=(Stage(fused_mbconv(expand=1, kernel=3), 1, 8, 1), Stage(mbconv(expand=2, kernel=3), 2, 16, 1)),
    head_channels=32,
)
ONE_STAGE = ("--set", "progressive.stages=1", "--set", "progressive.image_size=32")
FAST = (*TINY[2:], *ONE_STAGE, "--model")


def scene(class_name, rng, height=PX, width=PX):
    bands = rng.integers(500, 3_000, (5, height, width))
    bands[4] = INFRARED[class_name] + rng.integers(-800, 800, (height, width))
    return bands.astype(np.uint16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs on the same 80 rasters, half of them val: with band 5, and without."""
    folder = tmp_path_factory.mktemp("bands")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in NAMES:
            (folder / "pictures" / split / name).mkdir(parents=True)
            for number in range(20):
                file = folder / "pictures" / split / name / f"{name}{number:02d}.tif"
                write_raster(file, scene(name, rng), nodata=0)
    registry.write_architecture(folder / "small.yaml", SMALL)
    args = ("train", "pictures", *FAST, "small.yaml", "--epochs", "30", "--weights", "none")
    run_ok(
        *args, "--bands", "3,2,1,5", "--cache", "ram", "--set", "progressive.randaugment=3", "--output", "deep",
        cwd=folder,
    )  # fmt: skip
    run_ok(*args, "--bands", "3,2,1", "--output", "rgb", cwd=folder)
    return folder


def test_class_visible_in_one_band_needs_that_band(trained):
    top1 = {name: json.loads((trained / name / "report.json").read_text())["top1"] for name in ("deep", "rgb")}
    assert top1["deep"] >= 0.95
    assert top1["rgb"] <= 0.75  # of 40 images: a random classifier exceeds this once in 1,000
    output = " ".join((trained / "deep/log.txt").read_text().split())
    assert mentions(output, "4", "3", "2", "1", "5")
    assert mentions(output, "3", "2", "1", "band")
    assert mentions(output, "4", "RandAugment", "channel")
    assert (trained / "deep/report.html").read_text().count("data:image/jpeg") > 4  # galleries


def test_model_file_has_the_bands_and_their_scaling(trained):
    model = model_file.load(trained / "deep")
    preprocessing = model.preprocessing
    assert (model.in_channels, preprocessing.bands.numbers) == (4, (3, 2, 1, 5))
    for channel, (least, most) in enumerate(((500, 3_000),) * 3 + ((700, 4_300),)):
        assert preprocessing.bands.low[channel] == pytest.approx(least, abs=120)
        assert preprocessing.bands.high[channel] == pytest.approx(most, abs=120)
    assert preprocessing.mean == tuple(level / 255 for level in preprocessing.bands.missing)
    # Uniform noise has a deviation of 1 / sqrt(12); band 5 with its two modes has a larger one.
    assert preprocessing.std[:3] == pytest.approx((0.29,) * 3, abs=0.01)
    assert preprocessing.std[3] > 0.3


def test_evaluate_predict_rank_and_predictor_agree(trained, tmp_path):
    report = json.loads((trained / "deep/report.json").read_text())
    done = run_ok(
        "evaluate", trained / "deep", trained / "pictures", "--split", "val", "--workers", "0",
        "--output", "evaluation", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(done.stdout)["confusion"] == report["confusion"]
    run_ok("predict", trained / "deep", trained / "pictures/val", "--workers", "0", "--rank", "next.csv", cwd=tmp_path)
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert len(table) == 40
    assert (tmp_path / "next.html").read_text().count("data:image/") > 30
    predictor = Predictor(trained / "deep")
    rasters = [trained / "pictures/val" / path for path in table["path"][::9]]
    arrays = []
    for file in rasters:
        with rasterio.open(file) as raster:
            arrays.append(raster.read([3, 2, 1, 5]).transpose(1, 2, 0))
    predictions = zip(predictor(rasters), predictor(arrays), table[::9].iterrows(), strict=True)
    for from_file, from_array, (_, row) in predictions:
        assert from_file == from_array
        assert from_file.label == row["predicted_label"]
        assert from_file.probability == pytest.approx(row[row["predicted_label"]], abs=1e-4)
    with pytest.raises(InputError, match=mentioning("uint16", "32", "3", "4", "2", "1", "5")):
        predictor(arrays[0][..., :3])


def test_map_of_five_bands_has_the_location_of_the_scene(trained, tmp_path):
    rng = np.random.default_rng(5)
    parts = [scene(name, rng, 96, 96) for name in ("lush", "bare")]
    pixels = np.concatenate(parts, axis=2)
    pixels[:, :40, :40] = 0
    write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    done = run_ok("geo", "map", trained / "deep", "scene.tif", "--stride-px", "8", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["bands"] == [3, 2, 1, 5]
    with rasterio.open(tmp_path / "map.tif") as target:
        assert (target.crs.to_string(), target.transform, target.shape) == (UTM, PLACE, (96, 192))
        values = target.read(1)
    assert (values[:40, :40] == 0).all()
    assert (values[48:, :80] == NAMES.index("lush") + 1).mean() > 0.98
    assert (values[:, 112:] == NAMES.index("bare") + 1).mean() > 0.98


def test_images_with_other_channels_are_refused(trained, tmp_path):
    (tmp_path / "photos").mkdir()
    paint(tmp_path / "photos/one.jpg", (9, 99, 9))
    (tmp_path / "three").mkdir()
    write_raster(tmp_path / "three/two.tif", scene("bare", np.random.default_rng(0))[:3])
    for data, why in (
        ("photos", "one.jpg: is an ordinary image of 3 channels, but images of 4 bands (3, 2"),
        ("three", "two.tif: has 3 bands, but the bands to be read are 3, 2, 1, 5"),
    ):
        done = run_refused("predict", trained / "deep", data, "--workers", "0", cwd=tmp_path)
        assert why.partition(": ")[2] in " ".join(done.stderr.split())
        assert why.partition(":")[0] in done.stderr
        with pytest.raises(InputError, match=r"images\[0\]"):
            Predictor(trained / "deep")(str(tmp_path / data / why.partition(":")[0]))
    write_raster(tmp_path / "scene.tif", scene("bare", np.random.default_rng(0)))
    done = run_refused("geo", "map", trained / "deep", "scene.tif", "--bands", "3,2,1", cwd=tmp_path)
    assert mentions(done.stderr, "--bands", "3,2,1", "4", "3", "2", "1", "5")
    done = run_refused("geo", "map", trained / "rgb", "scene.tif", "--bands", "all", cwd=tmp_path)
    assert mentions(done.stderr, "3", "2", "1", "band")


def test_resume_keeps_all_bands(trained, tmp_path):
    args = (
        "train", trained / "pictures", *FAST, trained / "small.yaml", "--weights", trained / "rgb", "--output",
        tmp_path / "run",
    )  # fmt: skip
    killed_at("efficientnetv2.training.post_training:save_model", *args, "--bands", "all", cwd=tmp_path)
    run_refused(*args, "--bands", "1,2,3,4", "--resume", cwd=tmp_path, names=("1,2,3,4,5", "raster"))
    # ``--bands`` is optional on resume.
    done = run_ok(*args, "--resume", cwd=tmp_path)
    assert model_file.load(tmp_path / "run").preprocessing.bands.numbers == (1, 2, 3, 4, 5)
    run_facts = json.loads((tmp_path / "run/run.json").read_text())
    chosen = " ".join(run_facts["auto_choices"])
    assert mentions(chosen, "5", "3", "channel")
    assert mentions(chosen, "raster", "band")
    assert run_facts["linear_probe"]["top1"] > 0
    assert "Traceback" not in done.stderr


def test_balanced_table_trains_with_the_same_bands(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(24):
        class_name = NAMES[number % 2]
        (tmp_path / "pictures" / class_name).mkdir(parents=True, exist_ok=True)
        write_raster(tmp_path / "pictures" / class_name / f"{number}.tif", scene(class_name, rng), nodata=0)
    done = run_ok("data", "balance", "pictures", "balanced table.csv", "--fewer", "--bands", "3,2,1", cwd=tmp_path)
    command = "".join(" ".join(done.stdout.split()).rpartition("effnetv2 train")[1:])
    assert shlex.split(command) == [
        "effnetv2", "train", "balanced table.csv", "--bands", "3,2,1", "--set", "class_sampling=null",
    ]  # fmt: skip


@pytest.mark.slow
def test_other_commands_accept_or_refuse_many_bands(trained, tmp_path):
    """check, preview, dry run and crossval accept all bands; balance, search and AutoAugment refuse them."""
    data = trained / "pictures"
    small = ("--weights", "none", "--bands", "all")
    run_ok("check", data, "--bands", "all", "--output", "page", cwd=tmp_path)
    assert (tmp_path / "page/inspection.html").stat().st_size > 20_000
    run_ok("train", data, "--bands", "all", "--preview", "sheet.png", cwd=tmp_path)
    run_ok("train", "--dry-run", data, *FAST, trained / "small.yaml", *small, "--cache", "ram", cwd=tmp_path)
    folds = run_ok(
        "crossval", data / "train", *FAST, trained / "small.yaml", *small, "--folds", "2", "--output", "folds",
        cwd=tmp_path,
    )  # fmt: skip
    assert "lush" in (tmp_path / "folds/predictions.csv").read_text()
    output = folds.stdout + folds.stderr
    assert mentions(output, "fold2", "ensemble")
    assert mentions(output, "effnetv2 predict folds/fold1 NEW_IMAGES")
    run_ok("predict", "folds/fold1", data / "val", "--output", "new.csv", cwd=tmp_path)
    run_refused("data", "balance", data, "out", cwd=tmp_path, names=("JPEG", "3", "5"))
    run_refused("search", "run", "study", "--data", data, cwd=tmp_path, names=("3 channels",))
    done = run_refused(
        "train", data, *FAST, trained / "small.yaml", *small, "--set", "augment.autoaugment=true", cwd=tmp_path
    )
    assert mentions(done.stderr, "AutoAugment", "5", "channel")


def test_other_bands_than_those_of_the_weights_are_named(trained):
    args = ("train", "pictures", *FAST, "small.yaml", "--weights", "deep", "--dry-run", "--epochs", "1")
    assert mentions(run_ok(*args, "--bands", "1,2,3,4", cwd=trained).stdout, "3,2,1,5", "1,2,3,4", "--bands 3,2,1,5")
    assert "were trained on bands" not in run_ok(*args, "--bands", "3,2,1,5", cwd=trained).stdout
