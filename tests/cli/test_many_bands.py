"""Rasters of many bands, the whole way: what only near infrared shows is learnt, asked for, mapped and refused."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pandas as pd
import pytest
from tests.command_line import TINY, effnetv2, ended_well, killed_at
from tests.conftest import paint
from tests.messages import mentioning, mentions
from tests.rasters import PLACE, UTM, rasterio, write_raster

from efficientnetv2.architectures import registry
from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.inference.predictor import Predictor
from efficientnetv2.models import model_file
from efficientnetv2.utils.errors import InputError

NAMES = ("bare", "lush")
INFRARED = {"bare": 1_500, "lush": 3_500}  # of band 5; the others are noise, the same of both
PX = 32
# A network so small that thirty epochs of forty images take seconds.
SMALL = Architecture(
    stem_channels=8,
    stages=(Stage(fused_mbconv(expand=1, kernel=3), 1, 8, 1), Stage(mbconv(expand=2, kernel=3), 2, 16, 1)),
    head_channels=32,
)
ONE_STAGE = ("--set", "progressive.stages=1", "--set", "progressive.image_size=32")
FAST = (*TINY[2:], *ONE_STAGE, "--model")


def scene(kind, rng, height=PX, width=PX):
    bands = rng.integers(500, 3_000, (5, height, width))
    bands[4] = INFRARED[kind] + rng.integers(-800, 800, (height, width))
    return bands.astype(np.uint16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs on the same 80 rasters, half of them val: with band 5, and without."""
    place = tmp_path_factory.mktemp("bands")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in NAMES:
            (place / "pictures" / split / name).mkdir(parents=True)
            for number in range(20):
                file = place / "pictures" / split / name / f"{name}{number:02d}.tif"
                write_raster(file, scene(name, rng), nodata=0)
    registry.write_architecture(place / "small.yaml", SMALL)
    words = ("train", "pictures", *FAST, "small.yaml", "--epochs", "30", "--weights", "none")
    deep = ended_well(
        *words, "--bands", "3,2,1,5", "--cache", "ram", "--set", "progressive.randaugment=3", "--output", "deep",
        cwd=place,
    )  # fmt: skip
    ended_well(*words, "--bands", "3,2,1", "--output", "rgb", cwd=place)
    return place, deep


def test_what_only_one_band_shows_is_learnt_with_it_and_not_without(trained):
    place, done = trained
    top1 = {name: json.loads((place / name / "report.json").read_text())["top1"] for name in ("deep", "rgb")}
    assert top1["deep"] >= 0.95
    assert top1["rgb"] <= 0.75  # of 40 images: 1 in 1,000 guesses is as good
    told = " ".join(done.stdout.split() + (place / "deep/log.txt").read_text().split())
    assert mentions(told, "4", "3", "2", "1", "5")
    assert mentions(told, "3", "2", "1", "band")
    assert mentions(told, "4", "RandAugment", "channel")
    assert (place / "deep/report.html").read_text().count("data:image/jpeg") > 4  # galleries


def test_the_model_file_says_which_bands_and_how(trained):
    place, _ = trained
    network = model_file.load(place / "deep")
    seen = network.preprocessing
    assert (network.in_channels, seen.bands.numbers) == (4, (3, 2, 1, 5))
    for channel, (least, most) in enumerate(((500, 3_000),) * 3 + ((700, 4_300),)):
        assert seen.bands.low[channel] == pytest.approx(least, abs=120)
        assert seen.bands.high[channel] == pytest.approx(most, abs=120)
    assert seen.mean == tuple(level / 255 for level in seen.bands.missing)
    # Even noise has a deviation of 1 / sqrt(12); band 5, of two heaps, a greater one.
    assert seen.std[:3] == pytest.approx((0.29,) * 3, abs=0.01)
    assert seen.std[3] > 0.3


def test_evaluate_predict_rank_and_python_agree(trained, tmp_path):
    place, _ = trained
    report = json.loads((place / "deep/report.json").read_text())
    done = ended_well(
        "evaluate", place / "deep", place / "pictures", "--split", "val", "--workers", "0",
        "--output", "evaluation", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(done.stdout)["confusion"] == report["confusion"]
    ended_well("predict", place / "deep", place / "pictures/val", "--workers", "0", "--rank", "next.csv", cwd=tmp_path)
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert len(table) == 40
    assert (tmp_path / "next.html").read_text().count("data:image/") > 30
    predictor = Predictor(place / "deep")
    rasters = [place / "pictures/val" / path for path in table["path"][::9]]
    arrays = []
    for file in rasters:
        with rasterio.open(file) as raster:
            arrays.append(raster.read([3, 2, 1, 5]).transpose(1, 2, 0))
    answers = zip(predictor(rasters), predictor(arrays), table[::9].iterrows(), strict=True)
    for from_file, from_array, (_, row) in answers:
        assert from_file == from_array
        assert from_file.label == row["predicted_label"]
        assert from_file.probability == pytest.approx(row[row["predicted_label"]], abs=1e-4)
    with pytest.raises(InputError, match=mentioning("uint16", "32", "3", "4", "2", "1", "5")):
        predictor(arrays[0][..., :3])


def test_a_map_of_five_bands_lies_where_the_scene_lies(trained, tmp_path):
    place, _ = trained
    rng = np.random.default_rng(5)
    parts = [scene(name, rng, 96, 96) for name in ("lush", "bare")]
    whole = np.concatenate(parts, axis=2)
    whole[:, :40, :40] = 0
    write_raster(tmp_path / "scene.tif", whole, nodata=0)
    done = ended_well("geo", "map", place / "deep", "scene.tif", "--stride-px", "8", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["bands"] == [3, 2, 1, 5]
    with rasterio.open(tmp_path / "map.tif") as target:
        assert (target.crs.to_string(), target.transform, target.shape) == (UTM, PLACE, (96, 192))
        values = target.read(1)
    assert (values[:40, :40] == 0).all()
    assert (values[48:, :80] == NAMES.index("lush") + 1).mean() > 0.98
    assert (values[:, 112:] == NAMES.index("bare") + 1).mean() > 0.98


def test_pictures_of_other_channels_are_refused_by_name(trained, tmp_path):
    place, _ = trained
    (tmp_path / "photos").mkdir()
    paint(tmp_path / "photos/one.jpg", (9, 99, 9))
    (tmp_path / "three").mkdir()
    write_raster(tmp_path / "three/two.tif", scene("bare", np.random.default_rng(0))[:3])
    for data, why in (
        ("photos", "one.jpg: is an ordinary image of 3 channels, but images of 4 bands (3, 2"),
        ("three", "two.tif: has 3 bands, but the bands to be read are 3, 2, 1, 5"),
    ):
        done = effnetv2("predict", place / "deep", data, "--workers", "0", cwd=tmp_path)
        assert done.returncode == 2
        assert why.partition(": ")[2] in " ".join(done.stderr.split())
        assert why.partition(":")[0] in done.stderr
        with pytest.raises(InputError, match="number 0, from 0"):
            Predictor(place / "deep")(str(tmp_path / data / why.partition(":")[0]))
    write_raster(tmp_path / "scene.tif", scene("bare", np.random.default_rng(0)))
    done = effnetv2("geo", "map", place / "deep", "scene.tif", "--bands", "3,2,1", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "--bands", "3,2,1", "4", "3", "2", "1", "5")
    done = effnetv2("geo", "map", place / "rgb", "scene.tif", "--bands", "all", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "3", "2", "1", "band")


def test_a_run_goes_on_with_all_its_bands(trained, tmp_path):
    place, _ = trained
    words = (
        "train",
        place / "pictures",
        *FAST,
        place / "small.yaml",
        "--weights",
        place / "rgb",
        "--output",
        tmp_path / "run",
    )
    killed_at("efficientnetv2.training.post_training:save_model", *words, "--bands", "all", cwd=tmp_path)
    other = effnetv2(*words, "--bands", "1,2,3,4", "--resume", cwd=tmp_path)
    assert other.returncode == 2
    assert mentions(other.stderr, "1,2,3,4,5", "raster")
    # All of them is what nobody has to say.
    done = ended_well(*words, "--resume", cwd=tmp_path)
    assert model_file.load(tmp_path / "run").preprocessing.bands.numbers == (1, 2, 3, 4, 5)
    begun = json.loads((tmp_path / "run/run.json").read_text())
    chosen = " ".join(begun["auto_choices"])
    assert mentions(chosen, "5", "3", "channel")
    assert mentions(chosen, "raster", "band")
    assert begun["linear_probe"]["top1"] > 0
    assert "Traceback" not in done.stderr


def test_fewer_pictures_train_with_the_same_bands(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(24):
        kind = NAMES[number % 2]
        (tmp_path / "pictures" / kind).mkdir(parents=True, exist_ok=True)
        write_raster(tmp_path / "pictures" / kind / f"{number}.tif", scene(kind, rng), nodata=0)
    done = ended_well("data", "balance", "pictures", "few of them.csv", "--fewer", "--bands", "3,2,1", cwd=tmp_path)
    command = "".join(" ".join(done.stdout.split()).rpartition("effnetv2 train")[1:])
    assert shlex.split(command) == [
        "effnetv2", "train", "few of them.csv", "--bands", "3,2,1", "--set", "class_sampling=null",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_other_verbs(trained, tmp_path):
    """inspect, augment, plan and crossval with every band; balance and search, which say that they can't."""
    place, _ = trained
    data = place / "pictures"
    small = ("--weights", "none", "--bands", "all")
    ended_well("check", data, "--bands", "all", "--output", "page", cwd=tmp_path)
    assert (tmp_path / "page/inspection.html").stat().st_size > 20_000
    ended_well("train", data, "--bands", "all", "--preview", "sheet.png", cwd=tmp_path)
    ended_well("train", "--dry-run", data, *FAST, place / "small.yaml", *small, "--cache", "ram", cwd=tmp_path)
    folds = ended_well(
        "crossval",
        data / "train",
        *FAST,
        place / "small.yaml",
        *small,
        "--folds",
        "2",
        "--output",
        "folds",
        cwd=tmp_path,
    )
    assert "lush" in (tmp_path / "folds/predictions.csv").read_text()
    told = folds.stdout + folds.stderr
    assert mentions(told, "fold2", "ensemble")
    assert mentions(told, "effnetv2 predict folds/fold1 NEW_IMAGES")
    ended_well("predict", "folds/fold1", data / "val", "--output", "new.csv", cwd=tmp_path)
    done = effnetv2("data", "balance", data, "out", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "JPEG", "3", "5")
    done = effnetv2("search", "run", "study", "--data", data, cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "3 channels")
    done = effnetv2(
        "train", data, *FAST, place / "small.yaml", *small, "--set", "augment.autoaugment=true", cwd=tmp_path
    )
    assert done.returncode == 2
    assert mentions(done.stderr, "AutoAugment", "5", "channel")
