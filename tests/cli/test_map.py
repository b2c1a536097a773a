"""``geo map`` and ``geo area``: what they write, print and refuse."""

from __future__ import annotations

import hashlib
import json
import resource
import signal
import subprocess
import sys
import time
import unicodedata
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.io import netcdf_file
from tests.command_line import run_json, run_ok, run_refused, started
from tests.messages import mentioning, mentions
from tests.rasters import PLACE, UTM, rasterio, warp, write_raster

import efficientnetv2
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
def model_path(tmp_path_factory):
    """A model of 32 px with random weights that predicts every class on noise."""
    torch.manual_seed(3)
    model = EfficientNet(SMALL, num_classes=3)
    model.preprocessing, model.class_names = Preprocessing(image_size=32), NAMES
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model_file.save(path, model)
    return path


def save_with_bands(model_path, bands, tmp_path):
    model = model_file.load(model_path)
    model.preprocessing = replace(model.preprocessing, bands=bands)
    model_file.save(tmp_path / "banded.safetensors", model)
    return tmp_path / "banded.safetensors"


def patches(rows=4, columns=5, px=40):
    """(3, rows * px, columns * px): a separate texture in each square."""
    rng = np.random.default_rng(1)
    tiles = [
        [(rng.integers(0, 255, (3, 1, 1)) + rng.integers(-60, 60, (3, px, px))).clip(0, 255) for _ in range(columns)]
        for _ in range(rows)
    ]
    return np.concatenate([np.concatenate(row, axis=2) for row in tiles], axis=1).astype(np.uint8)


def refused(*args, cwd, **environment):
    done = run_refused(*args, cwd=cwd, **environment)
    assert not list(cwd.glob("*map.tif*"))
    assert not list(cwd.glob(".*.partial"))
    return " ".join(done.stderr.split())


def test_map_equals_predict_on_each_window(model_path, tmp_path):
    """Windows of 400 m without overlap, cropped and passed to the model as images."""
    scene = patches()
    raster = write_raster(tmp_path / "scene.tif", scene)
    done = run_ok("geo", "map", model_path, raster, "--window-m", "400", "--stride-px", "40", "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert (result["windows"], result["window_px"], result["map"]) == (20, 40, "map.tif")
    assert mentions(done.stderr, "5", "4", "40", "400")
    predictor = Predictor(model_path)
    predictions = set()
    with rasterio.open(tmp_path / "map.tif") as target:
        assert (target.crs.to_string(), target.transform) == (UTM, PLACE)
        values, probability = target.read()
    for top in range(0, 160, 40):
        for left in range(0, 200, 40):
            image = scene[:, top : top + 40, left : left + 40].transpose(1, 2, 0)
            (expected,) = predictor(Image.fromarray(image))
            assert (values[top : top + 40, left : left + 40] == NAMES.index(expected.label) + 1).all()
            assert abs(int(probability[top + 7, left + 7]) - 100 * expected.probability) <= 0.51
            predictions.add(expected.label)
    assert len(predictions) > 1  # otherwise the assertions above are weak
    for value, name in enumerate(NAMES, start=1):
        found = result["classes"][name]
        assert found["value"] == value
        assert found["pixels"] == (values == value).sum()
        assert found["hectares"] == pytest.approx(found["pixels"] / 100)
        if found["pixels"]:  # the map has whole percents
            assert found["probability"] == pytest.approx(probability[values == value].mean() / 100, abs=0.006)


def test_map_of_python_equals_that_of_the_command(model_path, tmp_path):
    deep = (patches().astype(np.uint16) * 10 + 100)[[2, 1, 0]]
    raster = write_raster(tmp_path / "scene.tif", deep)
    args = ("--bands", "3,2,1", "--value-range", "100,2650", "--window-m", "400", "--stride-px", "10")
    result = run_json("geo", "map", model_path, raster, *args, cwd=tmp_path)
    drawn = efficientnetv2.predict_map(
        model_path,
        raster,
        tmp_path / "python.tif",
        bands=(3, 2, 1),
        value_range=(100, 2650),
        window_m=400,
        stride_px=10,
    )
    own = {"map": str(tmp_path / "python.tif"), "seconds": round(drawn.seconds, 2)}
    assert drawn.to_json() == result | own
    assert drawn.classes["pixels"].to_dict() == {name: one["pixels"] for name, one in result["classes"].items()}
    with rasterio.open(tmp_path / "map.tif") as first, rasterio.open(tmp_path / "python.tif") as second:
        np.testing.assert_array_equal(first.read(), second.read())
    with pytest.raises(InputError, match=mentioning("window_px", "integer", "1.5")):
        efficientnetv2.predict_map(model_path, raster, tmp_path / "other.tif", window_px=1.5)


def test_16_bit_values_are_scaled_by_the_model_file(model_path, tmp_path):
    """The same scene as values of 100 to 2,650 in bands 5, 3, 1 of five gives the same map."""
    scene = patches()
    deep = np.zeros((5, *scene.shape[1:]), np.uint16)
    deep[[4, 2, 0]] = scene.astype(np.uint16) * 10 + 100
    args = ("--window-px", "40")
    plain = write_raster(tmp_path / "plain.tif", scene)
    run_ok("geo", "map", model_path, plain, *args, "--output", "one.tif", cwd=tmp_path)
    raster = write_raster(tmp_path / "deep.tif", deep)
    with_bands = save_with_bands(model_path, Bands((5, 3, 1), (100,) * 3, (2650,) * 3), tmp_path)
    run_ok("geo", "map", with_bands, raster, *args, "--output", "two.tif", cwd=tmp_path)
    band_options = ("--bands", "5,3,1", "--value-range", "100,2650")
    run_ok("geo", "map", model_path, raster, *args, *band_options, "--output", "three.tif", cwd=tmp_path)
    maps = []
    for name in ("one.tif", "two.tif", "three.tif"):
        with rasterio.open(tmp_path / name) as target:
            maps.append(target.read())
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


def test_classes_missing_from_the_map_are_counted(capsys):
    pixels, probability = np.zeros(1_000, np.int64), np.full(1_000, np.nan)
    pixels[[3, 700]], probability[[3, 700]] = (10, 30), 0.5
    names = tuple(f"c{number:03d}" for number in range(1_000))
    tally, grid = MapStatistics(pixels, None, probability, 0), Grid(8, 8, 4, 4)
    print_map(MapResult(Path("map.tif"), Path("raster.tif"), names, tally, grid, Bands((1, 2, 3)), 1.0), Screen())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("c")][1:] == [
        ["c700", "701", "30", "75.0%", "0.50"],
        ["c003", "4", "10", "25.0%", "0.50"],
    ]
    assert mentions(lines, "1,000", "998")


def test_map_has_the_ground_control_points_of_the_scene(model_path, tmp_path):
    """Scenes of Sentinel-1 have no other location."""
    from rasterio.control import GroundControlPoint
    from rasterio.crs import CRS

    raster = write_raster(tmp_path / "scene.tif", patches(), crs=None, transform=None)
    corners = [(0, 0), (0, 160), (160, 0), (160, 160)]
    points = [GroundControlPoint(row, col, 100 + col / 1000, 1 - row / 1000) for row, col in corners]
    with warnings.catch_warnings(action="ignore"), rasterio.open(raster, "r+") as scene:
        scene.gcps = (points, CRS.from_epsg(4326))
    run_ok("geo", "map", model_path, raster, "--output", "cover.tif", cwd=tmp_path)
    with warnings.catch_warnings(action="ignore"), rasterio.open(tmp_path / "cover.tif") as found:
        (found_points, crs), block = found.gcps, found.read(1)
    assert crs == CRS.from_epsg(4326)
    assert [(p.row, p.col, p.x, p.y) for p in found_points] == [(p.row, p.col, p.x, p.y) for p in points]
    assert block.any()
    for names in ("longitude,latitude", "x,y"):
        (tmp_path / "places.csv").write_text(f"{names},label\n100.05,0.97,forest\n")
        assert mentions(refused("geo", "area", "cover.tif", "places.csv", cwd=tmp_path), "control points", "gdalwarp")


def test_raster_without_a_location_is_mapped(model_path, tmp_path):
    raster = write_raster(tmp_path / "scene.tif", patches(), crs=None, transform=None)
    done = run_ok("geo", "map", model_path, raster, cwd=tmp_path)
    assert mentions(done.stdout, "scene.tif")
    assert mentions(done.stdout, "model's input")
    assert "hectares" not in done.stdout
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("args", "profile", "facts"),
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
def test_invalid_map_options_are_refused(model_path, tmp_path, args, profile, facts):
    write_raster(tmp_path / "scene.tif", patches(), **profile)
    assert mentions(refused("geo", "map", model_path, "scene.tif", *args, cwd=tmp_path), *facts)


def test_map_replaces_only_an_earlier_map(model_path, tmp_path):
    write_raster(tmp_path / "scene.tif", patches(2, 2))
    other = write_raster(tmp_path / "other.tif", patches(2, 2)).read_bytes()
    output = refused("geo", "map", model_path, "scene.tif", "--output", "other.tif", cwd=tmp_path)
    assert mentions(output, "--output", "other.tif", "effnetv2 geo map")
    assert (tmp_path / "other.tif").read_bytes() == other
    args = ("geo", "map", model_path, "scene.tif", "--output", "cover.tif")
    assert "already" not in run_ok(*args, cwd=tmp_path).stdout
    assert mentions(run_ok(*args, cwd=tmp_path).stdout, "cover.tif", "replaced")


def test_rasters_without_needed_information_are_refused(model_path, tmp_path):
    scene = patches()
    write_raster(tmp_path / "deep.tif", scene.astype(np.uint16))
    output = refused("geo", "map", model_path, "deep.tif", cwd=tmp_path)
    assert mentions(output, "deep.tif", "uint16", "8")
    assert "--value-range 0,3000" in output
    write_raster(tmp_path / "many.tif", np.concatenate([scene, scene]), photometric="MINISBLACK")
    output = refused("geo", "map", model_path, "many.tif", cwd=tmp_path)
    assert mentions(output, "many.tif", "6", "3")
    assert "as --bands 4,3,2" in output
    (tmp_path / "text.tif").write_text("no raster")
    assert mentions(refused("geo", "map", model_path, "text.tif", cwd=tmp_path), "text.tif", "GDAL")
    assert mentions(refused("geo", "map", model_path, "gone.tif", cwd=tmp_path), "gone.tif")
    with_bands = save_with_bands(model_path, Bands((8, 4, 3)), tmp_path)
    write_raster(tmp_path / "scene.tif", scene)
    output = refused("geo", "map", with_bands, "scene.tif", cwd=tmp_path)
    assert mentions(output, "scene.tif", "3", "8", "4")


@pytest.mark.parametrize("args", [(), ("--bands", "all"), ("--bands", "1,2,3")])
def test_container_of_rasters_is_refused(model_path, tmp_path, args):
    """NetCDF of a climate model: GDAL opens its variables as separate rasters."""
    with netcdf_file(tmp_path / "scene.nc", "w") as file:
        for side in ("x", "y"):
            file.createDimension(side, 64)
        for name in ("one", "other"):
            file.createVariable(name, "f4", ("y", "x"))[:] = np.ones((64, 64))
    output = refused("geo", "map", model_path, "scene.nc", *args, cwd=tmp_path)
    assert mentions(output, "scene.nc", "band") or mentions(output, "scene.nc", "0", "band")
    assert mentions(output, "2", "gdalbuildvrt", "raster")


def test_other_data_type_needs_a_value_range(model_path, tmp_path):
    """8-bit values with a scaling for 16 bits would be black; ``--value-range`` replaces the scaling."""
    with_bands = save_with_bands(model_path, Bands((1, 2, 3), (100,) * 3, (2650,) * 3, kinds=("uint16",)), tmp_path)
    write_raster(tmp_path / "scene.tif", patches())
    output = refused("geo", "map", with_bands, "scene.tif", cwd=tmp_path)
    assert mentions(output, "scene.tif", "uint8", "100", "2650", "0", "255", "uint16")
    assert mentions(output, "range", "FROM", "TO")
    run_ok("geo", "map", with_bands, "scene.tif", "--value-range", "0,255", "--output", "one.tif", cwd=tmp_path)
    run_ok("geo", "map", model_path, "scene.tif", "--output", "two.tif", cwd=tmp_path)
    write_raster(tmp_path / "deep.tif", patches().astype(np.uint16))
    run_ok("geo", "map", model_path, "deep.tif", "--value-range", "0,255", "--output", "three.tif", cwd=tmp_path)
    maps = [rasterio.open(tmp_path / name).read() for name in ("one.tif", "two.tif", "three.tif")]
    assert len(np.unique(maps[0][0])) > 1
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


def test_predict_skips_ambiguous_rasters(model_path, tmp_path):
    """For a model of ordinary images: 16 bits would be black in 8 bits, and near infrared would be read as alpha."""
    scene = patches(1, 1)
    (tmp_path / "pictures").mkdir()
    write_raster(tmp_path / "pictures/plain.tif", scene)
    write_raster(tmp_path / "pictures/deep.tif", scene.astype(np.uint16) * 10, photometric="RGB")
    write_raster(tmp_path / "pictures/infrared.tif", np.concatenate([scene, scene[:1]]))
    Image.fromarray(np.dstack([*scene, scene[0]])).save(tmp_path / "pictures/transparent.png")
    run_ok("predict", model_path, "pictures", "--workers", "0", cwd=tmp_path)
    assert pd.read_csv(tmp_path / "predictions.csv")["path"].tolist() == ["plain.tif", "transparent.png"]
    skipped = pd.read_csv(tmp_path / "predictions_skipped.csv").set_index("path")["reason"]
    assert sorted(skipped.index) == ["deep.tif", "infrared.tif"]
    assert mentions(skipped["deep.tif"], "uint16", "8")
    assert mentions(skipped["deep.tif"], "gdal_translate", "1", "2", "3", "FROM", "TO", "0", "255")
    assert mentions(skipped["infrared.tif"], "4", "3", "band")
    assert "gdal_translate -b 1 -b 2 -b 3." in skipped["infrared.tif"]


@pytest.mark.parametrize("encoding", ["palette", "blue first", "white is 0", "one bit"])
def test_map_reads_like_predict_or_refuses(model_path, tmp_path, encoding):
    """8-bit images that Pillow and GDAL decode differently."""
    scene, path = patches(1, 1), tmp_path / "scene.tif"
    if encoding == "blue first":
        write_raster(path, scene)
        with rasterio.open(path, "r+") as target:
            target.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("blue", "green", "red")]
    elif encoding == "palette":
        Image.fromarray(scene.transpose(1, 2, 0)).convert("P").save(path)
    elif encoding == "white is 0":
        write_raster(path, scene[:1], photometric="MINISWHITE")
    else:
        write_raster(path, scene[:1] // 128, NBITS=1)
    args = ("geo", "map", model_path, "scene.tif", "--window-px", "40")
    if encoding == "blue first":
        run_ok(*args, cwd=tmp_path)
        (expected,) = Predictor(model_path)(Image.fromarray(scene[::-1].transpose(1, 2, 0)))
        with rasterio.open(tmp_path / "map.tif") as target:
            assert (target.read(1) == NAMES.index(expected.label) + 1).all()
        with pytest.raises(InputError, match=mentioning("scene.tif", "3", "2", "1")):
            Predictor(model_path)(path)
    else:
        assert mentions(refused(*args, cwd=tmp_path), "scene.tif")
        run_ok(*args, "--bands", "1,1,1", cwd=tmp_path)
        assert len(Predictor(model_path)(path)) == 1


def test_bands_in_further_pages_are_not_silently_ignored(model_path, tmp_path):
    pages = [Image.fromarray(patches(2, 2).transpose(1, 2, 0)), Image.new("L", (40, 40))]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    for args in ((), ("--bands", "all")):
        output = refused("geo", "map", model_path, "pages.tif", *args, cwd=tmp_path)
        assert mentions(output, "pages.tif", "3", "2")
        assert "1,2,3" in output
    with_bands = save_with_bands(model_path, Bands((1, 2, 3), (0,) * 3, (255,) * 3), tmp_path)
    assert "Its 2 pages" in refused("geo", "map", with_bands, "pages.tif", cwd=tmp_path)
    for any_model in (model_path, with_bands):
        run_ok("geo", "map", any_model, "pages.tif", "--bands", "1,2,3", cwd=tmp_path)


def test_multilabel_model_is_refused(model_path, tmp_path):
    model = model_file.load(model_path)
    model.activation = "sigmoid"
    model_file.save(tmp_path / "multilabel.safetensors", model)
    write_raster(tmp_path / "scene.tif", patches())
    output = refused("geo", "map", "multilabel.safetensors", "scene.tif", cwd=tmp_path)
    assert mentions(output, "multilabel.safetensors", "sigmoid")
    assert mentions(output, "map", "one class")


def test_model_with_five_channels_is_refused(tmp_path):
    model = EfficientNet(SMALL, num_classes=2, in_channels=5)
    model.class_names = ("a", "b")
    model_file.save(tmp_path / "five.safetensors", model)
    write_raster(tmp_path / "scene.tif", patches())
    output = refused("geo", "map", "five.safetensors", "scene.tif", cwd=tmp_path)
    assert mentions(output, "five.safetensors", "5", "channel")


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process")
def test_full_disk_keeps_the_earlier_map(model_path, tmp_path):
    """Simulated by a limit on the file size of the process."""
    noise = np.random.default_rng(0).integers(0, 255, (3, 900, 900), np.uint8)
    raster = write_raster(tmp_path / "scene.tif", noise)
    before = (tmp_path / write_map(tmp_path)).read_bytes()

    def limit_file_size():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = subprocess.run(
        [sys.executable, "-m", "efficientnetv2", "geo", "map", model_path, raster, "--window-px", "100"],
        cwd=tmp_path, preexec_fn=limit_file_size, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done
    assert mentions(done.stderr, "map.tif")
    assert "Traceback" not in done.stderr
    assert (tmp_path / "map.tif").read_bytes() == before
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_signal_leaves_no_partial_map(model_path, tmp_path):
    """As by the time limit of a cluster: the hidden partial file may have gigabytes."""
    raster = write_raster(tmp_path / "scene.tif", patches(15, 15))
    running = started("geo", "map", model_path, raster, "--stride-px", "2", cwd=tmp_path)
    while not list(tmp_path.glob(".*.partial")):
        time.sleep(0.02)
        assert running.is_running(), running.end()
    running.process.terminate()
    assert running.end().returncode == 130
    assert not list(tmp_path.glob(".*"))
    assert not list(tmp_path.glob("*map.tif*"))


def test_map_is_complete_without_its_class_name_file(model_path, tmp_path):
    raster = write_raster(tmp_path / "scene.tif", patches())
    (tmp_path / "map.tif.aux.xml").mkdir()
    done = run_refused("geo", "map", model_path, raster, "--window-px", "40", cwd=tmp_path)
    output = " ".join(done.stderr.split())
    assert mentions(output, "map.tif.aux.xml", "QGIS")
    with rasterio.open(tmp_path / "map.tif") as written:
        assert written.read(1).any()


def write_map(tmp_path, **location):
    """300 x 100 px: forest on the left, other in the middle, plantation on the right; and a last row without data."""
    from efficientnetv2.data.geotiff import open_raster
    from efficientnetv2.geospatial import map_file

    raster = write_raster(tmp_path / "blank.tif", np.zeros((1, 101, 300), np.uint8), **location)
    values = np.repeat([[1] * 100 + [2] * 100 + [3] * 100], 101, axis=0).astype(np.uint8)
    values[100] = 0
    with open_raster(raster) as source:
        map_file.write_map(
            tmp_path / "map.tif", source, NAMES, lambda put: put(values, values, ((0, 101), (0, 300))), metadata={}
        )
    return "map.tif"


def write_sample(tmp_path, wrong=4):
    """Twenty points in each class, the first few of forest truly plantation, as x, y of UTM 21S."""
    rows = []
    for index, name in enumerate(NAMES):
        for number in range(20):
            x, y = 500_000 + 1_000 * index + 40 * number + 25, 8_000_000 - 45 * number - 15
            rows.append({"x": x, "y": y, "label": "plantation" if not index and number < wrong else name})
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "sample.csv", index=False)
    return table


def test_areas_are_corrected_by_the_sample(tmp_path):
    """A third each; a fifth of the mapped forest is plantation: 1/3 * 4/5 and 1/3 * 6/5 of 300 ha."""
    write_map(tmp_path), write_sample(tmp_path)
    result = run_json("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    assert (result["hectares"], result["left_out"]) == (pytest.approx(300), 0)
    forest, plantation = result["classes"]["forest"], result["classes"]["plantation"]
    assert forest["mapped"] == pytest.approx(1 / 3)
    assert forest["hectares"]["value"] == pytest.approx(80)
    assert plantation["hectares"]["value"] == pytest.approx(120)
    assert plantation["hectares"]["margin"] == pytest.approx(1.96 * 100 * np.sqrt(0.2 * 0.8 / 19), rel=1e-3)
    assert forest["users_accuracy"]["value"] == pytest.approx(0.8)
    assert plantation["producers_accuracy"]["value"] == pytest.approx(100 / 120)
    areas = efficientnetv2.estimate_areas(tmp_path / "map.tif", tmp_path / "sample.csv")
    assert areas.to_json() == result
    row = areas.classes.loc["forest"]
    assert row["share"] * areas.hectares == pytest.approx(80)
    assert (row["users_accuracy"], row["samples"]) == (pytest.approx(0.8), 20)


def test_sample_in_degrees_by_class_or_from_an_evaluation(tmp_path):
    write_map(tmp_path)
    table = write_sample(tmp_path)
    expected = run_json("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    xs, ys = warp.transform(UTM, "EPSG:4326", table["x"].tolist(), table["y"].tolist())
    by_degrees = pd.DataFrame({"longitude": xs, "latitude": ys, "truth": table["label"]})
    by_degrees.to_csv(tmp_path / "degrees.csv", index=False)
    table.assign(map=np.repeat(NAMES, 20))[["map", "label"]].to_csv(tmp_path / "crossed.csv", index=False)
    (tmp_path / "evaluation").mkdir()
    confusion = {"class_names": ["other", "plantation", "forest"], "confusion": [[20, 0, 0], [0, 20, 4], [0, 0, 16]]}
    (tmp_path / "evaluation/report.json").write_text(json.dumps(confusion))
    # The format for more than a thousand classes.
    cells = confusion | {"confusion_cells": [[0, 0, 20], [1, 1, 20], [1, 2, 4], [2, 2, 16]]}
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells/report.json").write_text(json.dumps({**cells, "confusion": None}))
    for args in (("degrees.csv", "--label-column", "truth"), ("crossed.csv",), ("evaluation",), ("cells",)):
        done = run_ok("geo", "area", "map.tif", *args, "--json", cwd=tmp_path)
        assert json.loads(done.stdout) == expected, args
    assert mentions(done.stderr, "not drawn")


def test_places_are_located_on_the_map_despite_a_column_of_an_earlier_one(tmp_path):
    """A stratified sample has the classes of the map that it was drawn from."""
    write_map(tmp_path)
    table = write_sample(tmp_path)
    expected = run_json("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    table.assign(map=np.roll(np.repeat(NAMES, 20), 20)).to_csv(tmp_path / "earlier.csv", index=False)
    assert run_json("geo", "area", "map.tif", "earlier.csv", cwd=tmp_path) == expected


def test_truncated_map_is_refused(tmp_path):
    write_map(tmp_path), write_sample(tmp_path)
    content = (tmp_path / "map.tif").read_bytes()
    (tmp_path / "map.tif").write_bytes(content[: len(content) // 2])
    run_refused("geo", "area", "map.tif", "sample.csv", cwd=tmp_path, names=("map.tif",))


def resave_map(tmp_path, dtype, nodata, outside):
    """The map as other software may save it, with other values for no data in its last fifty columns and rows."""
    with rasterio.open(tmp_path / write_map(tmp_path)) as source:
        band, tags = source.read(1), source.tags()
    band[:, 250:] = 0
    converted = band.astype(dtype)[None]
    converted[0, band == 0] = outside
    write_raster(tmp_path / "map.tif", converted, nodata=nodata)
    with rasterio.open(tmp_path / "map.tif", "r+") as target:
        target.update_tags(**tags)


@pytest.mark.parametrize(
    ("dtype", "nodata", "outside"),
    [("uint8", 255, 255), ("float32", -9999, -9999), ("float32", None, np.nan), ("int32", -1, -1)],
)
def test_map_resaved_by_other_software_is_read(tmp_path, dtype, nodata, outside):
    write_sample(tmp_path)
    resave_map(tmp_path, "uint8", 0, 0)
    expected = run_json("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    assert (expected["hectares"], expected["left_out"]) == (pytest.approx(250), 8)
    resave_map(tmp_path, dtype, nodata, outside)
    assert run_json("geo", "area", "map.tif", "sample.csv", cwd=tmp_path) == expected


@pytest.mark.parametrize(
    ("dtype", "outside", "fact"), [("uint8", 4, "4"), ("float32", 1.5, "1.5"), ("int16", -1, "-1")]
)
def test_map_with_unknown_values_is_refused(tmp_path, dtype, outside, fact):
    """One above the last class, one between two classes, and one below the first."""
    write_sample(tmp_path)
    resave_map(tmp_path, dtype, None, outside)
    done = run_refused("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    assert mentions(" ".join(done.stderr.split()), fact, "map.tif", "1", "3", "0")


def test_hectares_are_omitted_in_a_distorted_projection(model_path, tmp_path):
    """At 60 degrees in plate carrée a pixel covers half of its nominal area."""
    transform = rasterio.Affine(10, 0, 1e6, 0, -10, 6_679_169)
    write_raster(tmp_path / "scene.tif", patches(2, 2), crs="EPSG:4087", transform=transform)
    reason = ("pixel", "projection", "50%", "of its stated area")
    done = run_ok("geo", "map", model_path, "scene.tif", cwd=tmp_path)
    assert mentions(done.stdout, *reason)
    assert "hectares" not in done.stdout
    pd.DataFrame({"map": np.repeat(NAMES, 3), "label": np.repeat(NAMES, 3)}).to_csv(tmp_path / "sample.csv")
    done = run_ok("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    assert mentions(done.stdout, *reason)
    assert "mapped, pixels" in done.stdout


def test_class_names_are_compared_after_unicode_normalization(tmp_path):
    """An umlaut as one code point in the map and as two in the sample."""
    one, two = (unicodedata.normalize(form, "Wälder") for form in ("NFC", "NFD"))
    rows = pd.DataFrame({"map": [two, "elm", one], "label": [two, "elm", "elm"]})
    rows.to_csv(tmp_path / "sample.csv", index=False)
    crossed, lost = _from_table(tmp_path / "sample.csv", "label", (one, "elm"), tmp_path / "map.tif")
    assert (crossed.toarray().tolist(), lost) == ([[1, 1], [0, 1]], 0)


def test_points_outside_the_map_are_counted(tmp_path):
    write_map(tmp_path)
    table = write_sample(tmp_path)
    outside = pd.DataFrame({"x": [1.0, 500_005], "y": [1.0, 8_000_000 - 1_005], "label": ["forest", "forest"]})
    pd.concat([table, outside]).to_csv(tmp_path / "sample.csv", index=False)
    done = run_ok("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    assert mentions(done.stdout, "2", "62", "place")
    result = run_json("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    assert result["left_out"] == 2
    assert "80.0% ± 18.0" in done.stdout
    assert mentions(done.stdout, "other", "plantation")
    assert "other 15.0%, plantation 15.0%" in done.stdout  # 3 / 20


@pytest.mark.parametrize("left", [165, -195])
def test_longitudes_may_cross_the_date_line(left, tmp_path):
    """30 degrees around it, from 165 to 195 or from -195 to -165."""
    write_map(tmp_path, crs="EPSG:4326", transform=rasterio.Affine(0.1, 0, left, 0, -0.1, 0))
    places = [(170, -1, "forest"), (180, -1, "other"), (-170, -1, "plantation")] * 20
    pd.DataFrame(places, columns=["longitude", "latitude", "label"]).to_csv(tmp_path / "places.csv", index=False)
    result = run_json("geo", "area", "map.tif", "places.csv", cwd=tmp_path)
    assert result["left_out"] == 0
    assert result["classes"]["plantation"]["users_accuracy"]["value"] == 1


def test_points_outside_the_projection_are_counted(tmp_path):
    write_map(tmp_path)
    table = write_sample(tmp_path)
    xs, ys = warp.transform(UTM, "EPSG:4326", table["x"].tolist(), table["y"].tolist())
    opposite = (xs[0] + 90) % 360 - 180  # 90 degrees away: such a point has no UTM coordinates
    degrees = pd.DataFrame({"longitude": [*xs, opposite], "latitude": [*ys, 0.0], "label": [*table["label"], "forest"]})
    degrees.to_csv(tmp_path / "degrees.csv", index=False)
    done = run_ok("geo", "area", "map.tif", "degrees.csv", cwd=tmp_path)
    assert mentions(done.stdout, "1", "61", "place")
    assert "80.0% ± 18.0" in done.stdout


@pytest.mark.parametrize(
    ("change", "facts"),
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
def test_incomplete_samples_are_refused(tmp_path, change, facts):
    write_map(tmp_path)
    change(write_sample(tmp_path)).to_csv(tmp_path / "sample.csv", index=False)
    done = run_refused("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    assert mentions(" ".join(done.stderr.split()), *facts)


def test_evaluation_of_other_classes_is_refused(tmp_path):
    write_map(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps({"class_names": ["cat", "dog"], "confusion": [[1, 0], [0, 1]]}))
    done = run_refused("geo", "area", "map.tif", "report.json", cwd=tmp_path)
    assert mentions(done.stderr, "cat", "dog", "map.tif", "forest", "other", "plantation")


def test_evaluation_on_training_images_is_refused_as_a_sample(tmp_path):
    """Hardly one memorized image is wrong, so the interval would be far too short."""
    write_map(tmp_path)
    report = {"class_names": list(NAMES), "confusion": (20 * np.eye(3, dtype=int)).tolist(), "optimistic": True}
    (tmp_path / "report.json").write_text(json.dumps(report))
    done = run_refused("geo", "area", "map.tif", "report.json", cwd=tmp_path)
    output = " ".join(done.stderr.split())
    assert mentions(output, "report.json")
    assert mentions(output, "effnetv2 evaluate MODEL OTHERS --output FOLDER")
    (tmp_path / "report.json").write_text(json.dumps(report | {"optimistic": False}))
    run_ok("geo", "area", "map.tif", "report.json", cwd=tmp_path)


def test_evaluation_of_another_model_is_refused(model_path, tmp_path):
    """The areas would be corrected by the errors of another map."""
    raster = write_raster(tmp_path / "scene.tif", patches())
    efficientnetv2.predict_map(model_path, raster, tmp_path / "map.tif", window_px=40)
    report = {"class_names": list(NAMES), "confusion": (20 * np.eye(3, dtype=int)).tolist()}
    other = report | {"sha256": {"model.safetensors": "0" * 64}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=mentioning("other.json", "map.tif", "another model", "Evaluate")):
        efficientnetv2.estimate_areas(tmp_path / "map.tif", tmp_path / "other.json")
    own = report | {"sha256": {"model.safetensors": hashlib.sha256(model_path.read_bytes()).hexdigest()}}
    for name, accepted in (("own", own), ("unknown", report), ("folds", other | {"evaluated_on": "out-of-fold"})):
        (tmp_path / f"{name}.json").write_text(json.dumps(accepted))
        assert efficientnetv2.estimate_areas(tmp_path / "map.tif", tmp_path / f"{name}.json").left_out == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_raster(model_path, tmp_path):
    """A raster of 10,000 x 10,000 px (0.3 GB) needs little more memory than a 25th of it; the rasters are sparse."""
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
            [sys.executable, "-c", code, "geo", "map", model_path, raster, "--window-px", "1000", "--json"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["windows"] == len(Grid(px, px, 1000, 500))
        peaks.append(int(done.stderr.split()[-1]) * (1 if sys.platform == "darwin" else 1024))
    assert peaks[1] - peaks[0] < 100e6, peaks


def test_shares_in_degrees_are_of_the_ground(tmp_path):
    """As many pixels of forest (60 to 30 degrees) as of other (30 to 0), but 42 % of the area on the ellipsoid."""
    band = np.repeat(np.repeat([1, 2], 30)[:, None], 20, axis=1)[None].astype(np.uint8)
    degrees = rasterio.Affine(1, 0, 0, 0, -1, 60)
    path = write_raster(tmp_path / "map.tif", band, crs="EPSG:4326", transform=degrees)
    with rasterio.open(path, "r+") as target:
        target.update_tags(class_names=json.dumps(["forest", "other"]))
    (tmp_path / "sample.csv").write_text("map,label\n" + "forest,forest\n" * 5 + "other,other\n" * 5)
    result = run_json("geo", "area", "map.tif", "sample.csv", cwd=tmp_path)
    assert result["classes"]["forest"]["mapped"] == pytest.approx(0.4239, abs=0.001)
