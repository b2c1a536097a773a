"""``map`` and ``area`` as commands: what they write, say and refuse."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.io import netcdf_file
from tests.command_line import effnetv2, ended_well, started
from tests.messages import mentioning, mentions
from tests.rasters import PLACE, UTM, rasterio, warp, write_raster

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.geo import print_map
from efficientnetv2.geospatial.sliding_window import Grid, MapStatistics
from efficientnetv2.inference.predictor import Predictor
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.area import _from_table
from efficientnetv2.workflows.predict_map import MapResult

NAMES = ("forest", "other", "plantation")
SMALL = Architecture(
    stem_channels=8, stages=(Stage(fused_mbconv(expand=2, kernel=3), stride=2, channels=8, layers=1),), head_channels=16
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network of 32 px whose random weights answer noise with every class."""
    torch.manual_seed(3)
    network = EfficientNet(SMALL, num_classes=3)
    network.preprocessing, network.class_names = Preprocessing(image_size=32), NAMES
    with torch.no_grad():
        network.classifier.weight.mul_(30)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model_file.save(path, network)
    return path


def with_bands(model, bands, tmp_path):
    network = model_file.load(model)
    network.preprocessing = replace(network.preprocessing, bands=bands)
    model_file.save(tmp_path / "banded.safetensors", network)
    return tmp_path / "banded.safetensors"


def patches(rows=4, columns=5, px=40):
    """(3, rows * px, columns * px): a texture of its own in each square."""
    rng = np.random.default_rng(1)
    tiles = [
        [(rng.integers(0, 255, (3, 1, 1)) + rng.integers(-60, 60, (3, px, px))).clip(0, 255) for _ in range(columns)]
        for _ in range(rows)
    ]
    return np.concatenate([np.concatenate(row, axis=2) for row in tiles], axis=1).astype(np.uint8)


def refused(*words, cwd, **environment):
    done = effnetv2(*words, cwd=cwd, **environment)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert not list(cwd.glob("*map.tif*"))
    assert not list(cwd.glob(".*.partial"))
    return " ".join(done.stderr.split())


def test_each_place_is_what_predict_says_of_its_picture(model, tmp_path):
    """Windows of 400 m without overlap, cut out and shown to the model as images."""
    scene = patches()
    raster = write_raster(tmp_path / "scene.tif", scene)
    done = ended_well("geo", "map", model, raster, "--window-m", "400", "--stride-px", "40", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert (told["windows"], told["window_px"], told["map"]) == (20, 40, "map.tif")
    assert mentions(done.stderr, "5", "4", "40", "400")
    predictor = Predictor(model)
    answers = set()
    with rasterio.open(tmp_path / "map.tif") as target:
        assert (target.crs.to_string(), target.transform) == (UTM, PLACE)
        values, sure = target.read()
    for top in range(0, 160, 40):
        for left in range(0, 200, 40):
            picture = scene[:, top : top + 40, left : left + 40].transpose(1, 2, 0)
            (expected,) = predictor(Image.fromarray(picture))
            assert (values[top : top + 40, left : left + 40] == NAMES.index(expected.label) + 1).all()
            assert abs(int(sure[top + 7, left + 7]) - 100 * expected.probability) <= 0.51
            answers.add(expected.label)
    assert len(answers) > 1  # else the lines above say little
    for place, name in enumerate(NAMES, start=1):
        found = told["classes"][name]
        assert found["value"] == place
        assert found["pixels"] == (values == place).sum()
        assert found["hectares"] == pytest.approx(found["pixels"] / 100)


def test_sixteen_bits_are_seen_as_the_model_file_says(model, tmp_path):
    """The same scene as values of 100 to 2,650 in bands 5, 3, 1 of five makes the same map."""
    scene = patches()
    deep = np.zeros((5, *scene.shape[1:]), np.uint16)
    deep[[4, 2, 0]] = scene.astype(np.uint16) * 10 + 100
    words = ("--window-px", "40")
    ended_well(
        "geo", "map", model, write_raster(tmp_path / "plain.tif", scene), *words, "--output", "one.tif", cwd=tmp_path
    )
    raster = write_raster(tmp_path / "deep.tif", deep)
    known = with_bands(model, Bands((5, 3, 1), (100,) * 3, (2650,) * 3), tmp_path)
    ended_well("geo", "map", known, raster, *words, "--output", "two.tif", cwd=tmp_path)
    said = ("--bands", "5,3,1", "--value-range", "100,2650")
    ended_well("geo", "map", model, raster, *words, *said, "--output", "three.tif", cwd=tmp_path)
    maps = []
    for name in ("one.tif", "two.tif", "three.tif"):
        with rasterio.open(tmp_path / name) as target:
            maps.append(target.read())
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


def test_classes_that_are_not_on_the_map_are_counted_not_listed(capsys):
    pixels, sure = np.zeros(1_000, np.int64), np.full(1_000, np.nan)
    pixels[[3, 700]], sure[[3, 700]] = (10, 30), 0.5
    names = tuple(f"c{number:03d}" for number in range(1_000))
    tally, grid = MapStatistics(pixels, None, sure, 0), Grid(8, 8, 4, 4)
    print_map(MapResult(Path("map.tif"), Path("raster.tif"), names, tally, grid, Bands((1, 2, 3)), 1.0), Screen())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("c")][1:] == [
        ["c700", "701", "30", "75.0%", "0.50"],
        ["c003", "4", "10", "25.0%", "0.50"],
    ]
    assert mentions(lines, "1,000", "998")


def test_a_raster_placed_nowhere_is_mapped_and_said_to_be(model, tmp_path):
    raster = write_raster(tmp_path / "scene.tif", patches(), crs=None, transform=None)
    done = ended_well("geo", "map", model, raster, cwd=tmp_path)
    assert mentions(done.stdout, "scene.tif")
    assert mentions(done.stdout, "model's input")
    assert "hectares" not in done.stdout
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("words", "profile", "message"),
    [
        (("--window-px", "161"), {}, ("161", "200", "160")),
        (("--window-px", "32", "--stride-px", "33"), {}, ("--stride-px", "33", "1", "32")),
        (("--window-px", "32", "--window-m", "320"), {}, ("Give one of them",)),
        (("--window-m", "320"), {"crs": "EPSG:4326"}, ("coordinates in degrees, so its pixels have no size",)),
        (("--window-m", "320"), {"crs": None}, ("has no coordinate system",)),
        (
            ("--window-m", "320"),
            {"crs": 'LOCAL_CS["site",UNIT["metre",1]]'},
            ("has a coordinate system that is not projected, so its pixels have no size",),
        ),
        (("--window-m", "3"), {}, ("scene.tif", "10", "2", "20")),
        (("--bands", "1,2,4"), {}, ("scene.tif", "3", "1", "2", "4")),
        (("--bands", "3,x"), {}, ("--bands", "3,x", "1")),
        (("--bands", "3,2"), {}, ("trained on ordinary images of 3 channels", "red")),
        (("--value-range", "5,5"), {}, ("--value-range", "5,5")),
        (("--output", "scene.tif"), {}, ("--output", "scene.tif", "RASTER")),
        (("--output", "nowhere/map.tif"), {}, ("--output", "nowhere/map.tif")),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(model, tmp_path, words, profile, message):
    write_raster(tmp_path / "scene.tif", patches(), **profile)
    assert mentions(refused("geo", "map", model, "scene.tif", *words, cwd=tmp_path), *message)


def test_a_map_replaces_a_map_and_no_other_raster(model, tmp_path):
    write_raster(tmp_path / "scene.tif", patches(2, 2))
    other = write_raster(tmp_path / "other.tif", patches(2, 2)).read_bytes()
    told = refused("geo", "map", model, "scene.tif", "--output", "other.tif", cwd=tmp_path)
    assert mentions(told, "--output", "other.tif", "effnetv2 geo map")
    assert (tmp_path / "other.tif").read_bytes() == other
    words = ("geo", "map", model, "scene.tif", "--output", "cover.tif")
    assert "already" not in ended_well(*words, cwd=tmp_path).stdout
    assert mentions(ended_well(*words, cwd=tmp_path).stdout, "cover.tif", "replaced")


def test_rasters_that_do_not_say_enough_are_refused(model, tmp_path):
    scene = patches()
    write_raster(tmp_path / "deep.tif", scene.astype(np.uint16))
    told = refused("geo", "map", model, "deep.tif", cwd=tmp_path)
    assert mentions(told, "deep.tif", "uint16", "8")
    assert "--value-range 0,3000" in told
    write_raster(tmp_path / "many.tif", np.concatenate([scene, scene]), photometric="MINISBLACK")
    told = refused("geo", "map", model, "many.tif", cwd=tmp_path)
    assert mentions(told, "many.tif", "6", "3")
    assert "as --bands 4,3,2" in told
    (tmp_path / "text.tif").write_text("no raster")
    assert mentions(refused("geo", "map", model, "text.tif", cwd=tmp_path), "text.tif", "GDAL")
    assert mentions(refused("geo", "map", model, "gone.tif", cwd=tmp_path), "gone.tif")
    known = with_bands(model, Bands((8, 4, 3)), tmp_path)
    write_raster(tmp_path / "scene.tif", scene)
    told = refused("geo", "map", known, "scene.tif", cwd=tmp_path)
    assert mentions(told, "scene.tif", "3", "8", "4")


@pytest.mark.parametrize("words", [(), ("--bands", "all"), ("--bands", "1,2,3")])
def test_a_container_of_rasters_is_refused_with_how_to_join_them(model, tmp_path, words):
    """As a climate model's: GDAL opens it, and finds its variables to be rasters of their own."""
    with netcdf_file(tmp_path / "scene.nc", "w") as file:
        for side in ("x", "y"):
            file.createDimension(side, 64)
        for name in ("one", "other"):
            file.createVariable(name, "f4", ("y", "x"))[:] = np.ones((64, 64))
    told = refused("geo", "map", model, "scene.nc", *words, cwd=tmp_path)
    assert mentions(told, "scene.nc", "band") or mentions(told, "scene.nc", "0", "band")
    assert mentions(told, "2", "gdalbuildvrt", "raster")


def test_values_of_another_kind_are_refused_unless_their_range_is_said(model, tmp_path):
    """8 bits by a rule of 16, which would see them black; the range that is said is the rule then."""
    known = with_bands(model, Bands((1, 2, 3), (100,) * 3, (2650,) * 3, kinds=("uint16",)), tmp_path)
    write_raster(tmp_path / "scene.tif", patches())
    told = refused("geo", "map", known, "scene.tif", cwd=tmp_path)
    assert mentions(told, "scene.tif", "uint8", "100", "2650", "0", "255", "uint16")
    assert mentions(told, "range", "FROM", "TO")
    ended_well("geo", "map", known, "scene.tif", "--value-range", "0,255", "--output", "one.tif", cwd=tmp_path)
    ended_well("geo", "map", model, "scene.tif", "--output", "two.tif", cwd=tmp_path)
    write_raster(tmp_path / "deep.tif", patches().astype(np.uint16))
    ended_well("geo", "map", model, "deep.tif", "--value-range", "0,255", "--output", "three.tif", cwd=tmp_path)
    maps = [rasterio.open(tmp_path / name).read() for name in ("one.tif", "two.tif", "three.tif")]
    assert len(np.unique(maps[0][0])) > 1
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


def test_predict_skips_what_map_would_not_see_as_it_would(model, tmp_path):
    """A model of ordinary images next to 16 bits, nearly black in 8, and near infrared that counts as alpha."""
    scene = patches(1, 1)
    (tmp_path / "pictures").mkdir()
    write_raster(tmp_path / "pictures/plain.tif", scene)
    write_raster(tmp_path / "pictures/deep.tif", scene.astype(np.uint16) * 10, photometric="RGB")
    write_raster(tmp_path / "pictures/infrared.tif", np.concatenate([scene, scene[:1]]))
    Image.fromarray(np.dstack([*scene, scene[0]])).save(tmp_path / "pictures/seen_through.png")
    ended_well("predict", model, "pictures", "--workers", "0", cwd=tmp_path)
    assert pd.read_csv(tmp_path / "predictions.csv")["path"].tolist() == ["plain.tif", "seen_through.png"]
    skipped = pd.read_csv(tmp_path / "predictions_skipped.csv").set_index("path")["reason"]
    assert sorted(skipped.index) == ["deep.tif", "infrared.tif"]
    assert mentions(skipped["deep.tif"], "uint16", "8")
    assert mentions(skipped["deep.tif"], "gdal_translate", "1", "2", "3", "FROM", "TO", "0", "255")
    assert mentions(skipped["infrared.tif"], "4", "3", "band")
    assert "gdal_translate -b 1 -b 2 -b 3." in skipped["infrared.tif"]


@pytest.mark.parametrize("kind", ["palette", "blue first", "white is 0", "one bit"])
def test_map_sees_what_predict_sees_or_says_that_it_does_not(model, tmp_path, kind):
    """8-bit images of which Pillow and GDAL would make different ones."""
    scene, path = patches(1, 1), tmp_path / "scene.tif"
    if kind == "blue first":
        write_raster(path, scene)
        with rasterio.open(path, "r+") as target:
            target.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("blue", "green", "red")]
    elif kind == "palette":
        Image.fromarray(scene.transpose(1, 2, 0)).convert("P").save(path)
    elif kind == "white is 0":
        write_raster(path, scene[:1], photometric="MINISWHITE")
    else:
        write_raster(path, scene[:1] // 128, NBITS=1)
    words = ("geo", "map", model, "scene.tif", "--window-px", "40")
    if kind == "blue first":
        ended_well(*words, cwd=tmp_path)
        (expected,) = Predictor(model)(Image.fromarray(scene[::-1].transpose(1, 2, 0)))
        with rasterio.open(tmp_path / "map.tif") as target:
            assert (target.read(1) == NAMES.index(expected.label) + 1).all()
        with pytest.raises(InputError, match=mentioning("scene.tif", "3", "2", "1")):
            Predictor(model)(path)
    else:
        assert mentions(refused(*words, cwd=tmp_path), "scene.tif")
        ended_well(*words, "--bands", "1,1,1", cwd=tmp_path)
        assert len(Predictor(model)(path)) == 1


def test_bands_in_further_pages_are_not_left_out_unsaid(model, tmp_path):
    from PIL import Image

    pages = [Image.fromarray(patches(2, 2).transpose(1, 2, 0)), Image.new("L", (40, 40))]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    for words in ((), ("--bands", "all")):
        told = refused("geo", "map", model, "pages.tif", *words, cwd=tmp_path)
        assert mentions(told, "pages.tif", "3", "2")
        assert "1,2,3" in told
    known = with_bands(model, Bands((1, 2, 3), (0,) * 3, (255,) * 3), tmp_path)
    assert "Its 2 pages" in refused("geo", "map", known, "pages.tif", cwd=tmp_path)
    for either in (model, known):
        ended_well("geo", "map", either, "pages.tif", "--bands", "1,2,3", cwd=tmp_path)


def test_a_model_that_answers_each_class_by_itself_is_refused(model, tmp_path):
    network = model_file.load(model)
    network.activation = "sigmoid"
    model_file.save(tmp_path / "each.safetensors", network)
    write_raster(tmp_path / "scene.tif", patches())
    told = refused("geo", "map", "each.safetensors", "scene.tif", cwd=tmp_path)
    assert mentions(told, "each.safetensors", "sigmoid")
    assert mentions(told, "map", "one class")


def test_a_model_of_other_channels_is_refused(tmp_path):
    network = EfficientNet(SMALL, num_classes=2, in_channels=5)
    network.class_names = ("a", "b")
    model_file.save(tmp_path / "five.safetensors", network)
    write_raster(tmp_path / "scene.tif", patches())
    told = refused("geo", "map", "five.safetensors", "scene.tif", cwd=tmp_path)
    assert mentions(told, "five.safetensors", "5", "channel")


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process")
def test_a_full_disk_leaves_the_old_map(model, tmp_path):
    """Stood in for by the largest file that the process may write."""
    noise = np.random.default_rng(0).integers(0, 255, (3, 900, 900), np.uint8)
    raster = write_raster(tmp_path / "scene.tif", noise)
    before = (tmp_path / planted_map(tmp_path)).read_bytes()

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = subprocess.run(
        [sys.executable, "-m", "efficientnetv2", "geo", "map", model, raster, "--window-px", "100"],
        cwd=tmp_path, preexec_fn=limited, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done
    assert mentions(done.stderr, "map.tif")
    assert "Traceback" not in done.stderr
    assert (tmp_path / "map.tif").read_bytes() == before
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_stopped_by_a_signal_it_leaves_no_half_of_a_map(model, tmp_path):
    """As by a cluster's time limit: what is written meanwhile has a hidden name, and may be gigabytes."""
    raster = write_raster(tmp_path / "scene.tif", patches(15, 15))
    running = started("geo", "map", model, raster, "--stride-px", "2", cwd=tmp_path)
    while not list(tmp_path.glob(".*.partial")):
        time.sleep(0.02)
        assert running.goes_on(), running.end()
    running.process.terminate()
    assert running.end().returncode == 130
    assert not list(tmp_path.glob(".*"))
    assert not list(tmp_path.glob("*map.tif*"))


def test_where_only_the_names_beside_it_cannot_be_written_the_map_is_whole(model, tmp_path):
    raster = write_raster(tmp_path / "scene.tif", patches())
    (tmp_path / "map.tif.aux.xml").mkdir()
    done = effnetv2("geo", "map", model, raster, "--window-px", "40", cwd=tmp_path)
    assert done.returncode == 2, done
    told = " ".join(done.stderr.split())
    assert mentions(told, "map.tif.aux.xml", "QGIS")
    with rasterio.open(tmp_path / "map.tif") as written:
        assert written.read(1).any()


def planted_map(tmp_path):
    """300 x 100 px: forest at the left, other in the middle, plantation at the right; and a last row without data."""
    from efficientnetv2.data.geotiff import open_raster
    from efficientnetv2.geospatial import map_file

    raster = write_raster(tmp_path / "blank.tif", np.zeros((1, 101, 300), np.uint8))
    values = np.repeat([[1] * 100 + [2] * 100 + [3] * 100], 101, axis=0).astype(np.uint8)
    values[100] = 0
    with open_raster(raster) as source:
        map_file.write_map(
            tmp_path / "map.tif", source, NAMES, lambda put: put(values, values, ((0, 101), (0, 300))), metadata={}
        )
    return "map.tif"


def sample(tmp_path, wrong=4):
    """Twenty places in each class, the first few of forest truly plantation, as x, y of UTM 21S."""
    rows = []
    for place, name in enumerate(NAMES):
        for number in range(20):
            x, y = 500_000 + 1_000 * place + 40 * number + 25, 8_000_000 - 45 * number - 15
            rows.append({"x": x, "y": y, "label": "plantation" if not place and number < wrong else name})
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "sample.csv", index=False)
    return table


def test_areas_are_corrected_by_places(tmp_path):
    """A third each; a fifth of the mapped forest is plantation: 1/3 * 4/5 and 1/3 * 6/5 of 300 ha."""
    planted_map(tmp_path), sample(tmp_path)
    done = ended_well("geo", "area", "map.tif", "sample.csv", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert (told["hectares"], told["left_out"]) == (pytest.approx(300), 0)
    forest, plantation = told["classes"]["forest"], told["classes"]["plantation"]
    assert forest["mapped"] == pytest.approx(1 / 3)
    assert forest["hectares"]["value"] == pytest.approx(80)
    assert plantation["hectares"]["value"] == pytest.approx(120)
    assert plantation["hectares"]["margin"] == pytest.approx(1.96 * 100 * np.sqrt(0.2 * 0.8 / 19), rel=1e-3)
    assert forest["users_accuracy"]["value"] == pytest.approx(0.8)
    assert plantation["producers_accuracy"]["value"] == pytest.approx(100 / 120)


def test_the_same_by_degrees_by_mapped_class_and_by_an_evaluation(tmp_path):
    planted_map(tmp_path)
    table = sample(tmp_path)
    expected = json.loads(ended_well("geo", "area", "map.tif", "sample.csv", "--json", cwd=tmp_path).stdout)
    xs, ys = warp.transform(UTM, "EPSG:4326", table["x"].tolist(), table["y"].tolist())
    by_degrees = pd.DataFrame({"longitude": xs, "latitude": ys, "truth": table["label"]})
    by_degrees.to_csv(tmp_path / "degrees.csv", index=False)
    table.assign(map=np.repeat(NAMES, 20))[["map", "label"]].to_csv(tmp_path / "crossed.csv", index=False)
    (tmp_path / "evaluation").mkdir()
    confusion = {"class_names": ["other", "plantation", "forest"], "confusion": [[20, 0, 0], [0, 20, 4], [0, 0, 16]]}
    (tmp_path / "evaluation/report.json").write_text(json.dumps(confusion))
    # As a report of more than a thousand classes tells it.
    cells = confusion | {"confusion_cells": [[0, 0, 20], [1, 1, 20], [1, 2, 4], [2, 2, 16]]}
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells/report.json").write_text(json.dumps({**cells, "confusion": None}))
    for words in (("degrees.csv", "--label-column", "truth"), ("crossed.csv",), ("evaluation",), ("cells",)):
        done = ended_well("geo", "area", "map.tif", *words, "--json", cwd=tmp_path)
        assert json.loads(done.stdout) == expected, words
    assert mentions(done.stderr, "not drawn")


def test_a_map_that_is_cut_short_is_named(tmp_path):
    planted_map(tmp_path), sample(tmp_path)
    whole = (tmp_path / "map.tif").read_bytes()
    (tmp_path / "map.tif").write_bytes(whole[: len(whole) // 2])
    done = effnetv2("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    assert done.returncode == 2, done
    assert mentions(done.stderr, "map.tif")


def saved_anew(tmp_path, dtype, nodata, outside):
    """The planted map as other software may leave it, its last fifty columns and rows of no data with other values."""
    with rasterio.open(tmp_path / planted_map(tmp_path)) as source:
        band, tags = source.read(1), source.tags()
    band[:, 250:] = 0
    anew = band.astype(dtype)[None]
    anew[0, band == 0] = outside
    write_raster(tmp_path / "map.tif", anew, nodata=nodata)
    with rasterio.open(tmp_path / "map.tif", "r+") as target:
        target.update_tags(**tags)


@pytest.mark.parametrize(
    ("dtype", "nodata", "outside"),
    [("uint8", 255, 255), ("float32", -9999, -9999), ("float32", None, np.nan), ("int32", -1, -1)],
)
def test_a_map_that_other_software_saved_anew_is_read_as_it_was(tmp_path, dtype, nodata, outside):
    sample(tmp_path)
    saved_anew(tmp_path, "uint8", 0, 0)
    expected = json.loads(ended_well("geo", "area", "map.tif", "sample.csv", "--json", cwd=tmp_path).stdout)
    assert (expected["hectares"], expected["left_out"]) == (pytest.approx(250), 8)
    saved_anew(tmp_path, dtype, nodata, outside)
    assert json.loads(ended_well("geo", "area", "map.tif", "sample.csv", "--json", cwd=tmp_path).stdout) == expected


@pytest.mark.parametrize(
    ("dtype", "outside", "told"), [("uint8", 4, "4"), ("float32", 1.5, "1.5"), ("int16", -1, "-1")]
)
def test_a_map_of_values_that_are_no_class_is_refused(tmp_path, dtype, outside, told):
    """One more than there are classes, between two, and below them."""
    sample(tmp_path)
    saved_anew(tmp_path, dtype, None, outside)
    done = effnetv2("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    assert done.returncode == 2, done
    assert mentions(" ".join(done.stderr.split()), told, "map.tif", "1", "3", "0")


def test_map_and_area_say_why_they_tell_no_hectares(model, tmp_path):
    """At 60 degrees in plate carrée, where a pixel covers half of what it states."""
    place = rasterio.Affine(10, 0, 1e6, 0, -10, 6_679_169)
    write_raster(tmp_path / "scene.tif", patches(2, 2), crs="EPSG:4087", transform=place)
    reason = ("pixel", "projection", "50%", "of its stated area")
    done = ended_well("geo", "map", model, "scene.tif", cwd=tmp_path)
    assert mentions(done.stdout, *reason)
    assert "hectares" not in done.stdout
    pd.DataFrame({"map": np.repeat(NAMES, 3), "label": np.repeat(NAMES, 3)}).to_csv(tmp_path / "sample.csv")
    done = ended_well("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    assert mentions(done.stdout, *reason)
    assert "mapped, pixels" in done.stdout


def test_a_class_is_known_however_its_letters_are_composed(tmp_path):
    """An umlaut as one letter in the map and as two in the sample, in both of its columns."""
    one, two = (unicodedata.normalize(form, "Wälder") for form in ("NFC", "NFD"))
    rows = pd.DataFrame({"map": [two, "elm", one], "label": [two, "elm", "elm"]})
    rows.to_csv(tmp_path / "sample.csv", index=False)
    crossed, lost = _from_table(tmp_path / "sample.csv", "label", (one, "elm"), tmp_path / "map.tif")
    assert (crossed.toarray().tolist(), lost) == ([[1, 1], [0, 1]], 0)


def test_places_beside_the_map_are_left_out_and_counted(tmp_path):
    planted_map(tmp_path)
    table = sample(tmp_path)
    beside = pd.DataFrame({"x": [1.0, 500_005], "y": [1.0, 8_000_000 - 1_005], "label": ["forest", "forest"]})
    pd.concat([table, beside]).to_csv(tmp_path / "sample.csv", index=False)
    done = ended_well("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    assert mentions(done.stdout, "2", "62", "place")
    told = json.loads(ended_well("geo", "area", "map.tif", "sample.csv", "--json", cwd=tmp_path).stdout)
    assert told["left_out"] == 2
    assert "80.0% ± 18.0" in done.stdout
    assert mentions(done.stdout, "other", "plantation")
    assert "other 15.0%, plantation 15.0%" in done.stdout  # 3 / 20


def test_places_where_the_maps_projection_does_not_reach_are_left_out_too(tmp_path):
    planted_map(tmp_path)
    table = sample(tmp_path)
    xs, ys = warp.transform(UTM, "EPSG:4326", table["x"].tolist(), table["y"].tolist())
    across = (xs[0] + 90) % 360 - 180  # a quarter of the way round: such a place has no UTM coordinates
    degrees = pd.DataFrame({"longitude": [*xs, across], "latitude": [*ys, 0.0], "label": [*table["label"], "forest"]})
    degrees.to_csv(tmp_path / "degrees.csv", index=False)
    done = ended_well("geo", "area", "map.tif", "degrees.csv", cwd=tmp_path)
    assert mentions(done.stdout, "1", "61", "place")
    assert "80.0% ± 18.0" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.assign(label="Forest"), ("2", "Forest", "label")),
        (lambda table: table.drop(columns="label"), ("sample.csv", "label")),
        (lambda table: table.drop(columns="x"), ("sample.csv", "place")),
        (lambda table: table.assign(x=table["x"].where(table.index != 7)), ("row 9: x is empty, not a number",)),
        (lambda table: table.assign(x=table["y"], y=table["x"]), ("60", "place")),
        (lambda table: table.rename(columns={"x": "longitude", "y": "latitude"}), ("500025", "-180")),
        (lambda table: table[:40], ("plantation",)),
    ],
)  # fmt: skip
def test_samples_that_say_too_little_are_refused(tmp_path, change, message):
    planted_map(tmp_path)
    change(sample(tmp_path)).to_csv(tmp_path / "sample.csv", index=False)
    done = effnetv2("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(" ".join(done.stderr.split()), *message)


def test_an_evaluation_of_other_classes_is_refused(tmp_path):
    planted_map(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps({"class_names": ["cat", "dog"], "confusion": [[1, 0], [0, 1]]}))
    done = effnetv2("geo", "area", "map.tif", "report.json", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "cat", "dog", "map.tif", "forest", "other", "plantation")


def test_an_evaluation_of_pictures_that_trained_the_model_is_no_sample(tmp_path):
    """Known by heart, hardly one of them is wrong: the interval would be as short as false."""
    planted_map(tmp_path)
    report = {"class_names": list(NAMES), "confusion": (20 * np.eye(3, dtype=int)).tolist(), "optimistic": True}
    (tmp_path / "report.json").write_text(json.dumps(report))
    done = effnetv2("geo", "area", "map.tif", "report.json", cwd=tmp_path)
    assert done.returncode == 2
    told = " ".join(done.stderr.split())
    assert mentions(told, "report.json")
    assert mentions(told, "effnetv2 evaluate MODEL OTHERS --output FOLDER")
    (tmp_path / "report.json").write_text(json.dumps(report | {"optimistic": False}))
    ended_well("geo", "area", "map.tif", "report.json", cwd=tmp_path)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_raster(model, tmp_path):
    """Of 10,000 x 10,000 px, 0.3 GB, it takes little more than of a 25th of that; the raster is sparse."""
    peaks = []
    for px in (2_000, 10_000):
        raster = tmp_path / f"scene{px}.tif"
        with rasterio.open(
            raster, "w", driver="GTiff", width=px, height=px, count=3, dtype="uint8", crs=UTM, transform=PLACE,
            tiled=True, blockxsize=512, blockysize=512, compress="deflate", sparse_ok=True,
        ):  # fmt: skip
            pass
        code = (
            "import resource, sys\nfrom efficientnetv2.cli import main as cli\n"
            "try:\n    cli.main()\nfinally:\n"
            "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "geo", "map", model, raster, "--window-px", "1000", "--json"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["windows"] == len(Grid(px, px, 1000, 500))
        peaks.append(int(done.stderr.split()[-1]) * (1 if sys.platform == "darwin" else 1024))
    assert peaks[1] - peaks[0] < 100e6, peaks
