"""A map of a planted scene lies where the scene lies; a stand-in network knows colors."""

import json

import numpy as np
import pytest
import torch
from tests.messages import mentioning
from tests.rasters import PLACE, UTM, colored, rasterio, write_raster

from efficientnetv2.data.geotiff import open_raster
from efficientnetv2.geospatial import map_file
from efficientnetv2.geospatial.sliding_window import Grid, predict_blocks
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.utils.errors import InputError

RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)
NAMES = ("red", "green", "blue")
RGB = Bands(numbers=(1, 2, 3))


class Colors(Network):
    """Answers with the color that a window has most of."""

    def __init__(self) -> None:
        super().__init__(num_classes=3, in_channels=3, embed_dim=3)
        self.preprocessing = Preprocessing(image_size=8, mean=(0, 0, 0), std=(1, 1, 1))
        self.class_names = NAMES
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.looked_at = 0

    def forward(self, x):
        self.looked_at += len(x)
        return 40 * x.mean((2, 3)) * self.weight


def mapped(tmp_path, raster, *, window_px, stride_px=None, bands=RGB, network=None, **words):
    """The tally, and where the map is."""
    out = tmp_path / "map.tif"
    network = network or Colors()
    tallies = []
    with open_raster(raster) as source:
        grid = Grid(source.height, source.width, window_px, stride_px or window_px // 2)
        map_file.write_map(
            out, source, network.class_names,
            lambda put: tallies.append(predict_blocks(network, source, put, grid, bands, **words)),
            metadata={"model": "m"},
        )  # fmt: skip
    return tallies[0], out


def scene(px=600):
    """Red, with a green square of 200 px at (300, 100) and a blue one of 150 px at (50, 400): columns, rows."""
    pixels = np.zeros((3, px, px), np.uint8)
    pixels[0] = 250
    pixels[:, 100:300, 300:500] = np.array(GREEN)[:, None, None]
    pixels[:, 400:550, 50:200] = np.array(BLUE)[:, None, None]
    return pixels


def test_a_scene_comes_back_where_it_lies(tmp_path):
    """Asked by coordinates, through rasterio's transforms of both files."""
    raster = write_raster(tmp_path / "scene.tif", scene())
    tally, out = mapped(tmp_path, raster, window_px=20)
    with rasterio.open(raster) as source, rasterio.open(out) as target:
        assert target.crs == source.crs == rasterio.CRS.from_string(UTM)
        assert target.transform == source.transform == PLACE
        assert (target.width, target.height, target.count) == (600, 600, 2)
        # In meters: 3,000 m east and 1,000 m south of the corner begins the green square of 2,000 m.
        for name, east, south in (
            ("green", 4_000, 2_000),
            ("blue", 1_250, 4_750),
            ("red", 5_500, 5_500),
            ("red", 100, 100),
        ):
            ((value, sure),) = target.sample([(500_000 + east, 8_000_000 - south)])
            assert NAMES[value - 1] == name
            assert sure == 100
        values, truth = target.read(1), source.read().argmax(axis=0) + 1
    # A color's border lies where half of a window has it; only a corner, of which it is a quarter, is rounded.
    wrong = values != truth
    assert wrong.mean() < 0.002
    rows, columns = np.nonzero(wrong)
    corners = [(100, 300), (100, 500), (300, 300), (300, 500), (400, 50), (400, 200), (550, 50), (550, 200)]
    assert len(rows)  # else the line below says nothing
    assert all(min(max(abs(r - a), abs(c - b)) for a, b in corners) <= 10 for r, c in zip(rows, columns, strict=True))
    assert tally.pixels.sum() == 600 * 600
    assert tally.pixels[1] == (values == 2).sum()
    assert tally.hectares[1] == pytest.approx(tally.pixels[1] * 0.01)


def test_a_map_does_not_depend_on_how_it_is_cut_into_blocks_and_batches(tmp_path, monkeypatch):
    """Blocks of 256 px make no seams: neither classes nor probabilities change with their size."""
    noise = np.random.default_rng(0).integers(0, 255, (3, 130, 300), np.uint8)
    raster = write_raster(tmp_path / "scene.tif", noise)
    whole, out = mapped(tmp_path, raster, window_px=24, stride_px=7)
    with rasterio.open(out) as target:
        expected = target.read()
    monkeypatch.setattr("efficientnetv2.geospatial.sliding_window.BLOCK_PX", 48)
    monkeypatch.setattr("efficientnetv2.geospatial.sliding_window._READ_PX", 24 * 60)
    again, out = mapped(tmp_path, raster, window_px=24, stride_px=7, batch_size=5)
    with rasterio.open(out) as target:
        np.testing.assert_array_equal(target.read(), expected)
    np.testing.assert_array_equal(again.pixels, whole.pixels)
    assert len(np.unique(expected[0])) == 3  # else there is nothing to see


class Counted:
    """A raster that counts how often values are read of it."""

    def __init__(self, dataset):
        self.dataset, self.reads = dataset, 0

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def read(self, *words, **more):
        self.reads += 1
        return self.dataset.read(*words, **more)


def test_a_row_of_blocks_is_read_twice_at_most(tmp_path):
    """Once for its windows, once for where there is data: each read decodes the strips that go over the whole width."""
    raster = write_raster(tmp_path / "scene.tif", np.full((3, 256, 5000), 90, np.uint8))
    with open_raster(raster) as source:
        counted, grid, put = Counted(source), Grid(256, 5000, 256, 256), []
        tally = predict_blocks(Colors(), counted, lambda *block: put.append(block[2]), grid, RGB)
    assert counted.reads == 2
    assert (len(put), tally.pixels.sum()) == (20, 256 * 5000)


def test_without_overlap_each_window_is_as_it_was_answered(tmp_path):
    raster = write_raster(tmp_path / "scene.tif", colored(RED, BLUE, GREEN, px=16))
    _, out = mapped(tmp_path, raster, window_px=16, stride_px=16)
    with rasterio.open(out) as target:
        assert target.read(1)[3].tolist() == [1] * 16 + [3] * 16 + [2] * 16


def test_nodata_stays_nodata_and_is_not_looked_at(tmp_path):
    """The right half of the scene has no data; windows that lie there entirely cost nothing."""
    pixels = colored(RED, GREEN, px=64)
    pixels[:, :, 64:] = 7
    pixels[0, 0, 0] = 7  # one band alone has the value: there is data
    raster = write_raster(tmp_path / "scene.tif", pixels, nodata=7)
    network = Colors()
    tally, out = mapped(tmp_path, raster, window_px=16, network=network)
    with rasterio.open(out) as target:
        values, sure = target.read()
        assert target.nodata == 0
    assert (values[:, :64] == 1).all()
    assert (sure[:, :64] > 0).all()
    assert (values[:, 64:] == 0).all()
    assert (sure[:, 64:] == 0).all()
    assert tally.nodata == 64 * 64
    assert network.looked_at == 7 * 8  # of 7 rows of 15: those that begin before column 64


def test_a_scene_without_any_data_is_a_map_without_any(tmp_path):
    raster = write_raster(tmp_path / "scene.tif", np.zeros((3, 32, 32), np.uint8), nodata=0)
    tally, _ = mapped(tmp_path, raster, window_px=16)
    assert tally.nodata == 32 * 32
    assert np.isnan(tally.confidence).all()


def test_sixteen_bits_and_floats_are_seen_by_the_rule(tmp_path):
    """Bands 4, 3 and 2 of five, of which 1,000 to 3,000 are seen; one pixel is no number."""
    values = np.zeros((5, 32, 64), np.float32)
    values[3, :, :32], values[2, :, 32:] = 3_000, 9_000
    values[:, 5, 5] = np.nan
    raster = write_raster(tmp_path / "scene.tif", values)
    bands = Bands(numbers=(4, 3, 2), low=(1_000,) * 3, high=(3_000,) * 3)
    tally, out = mapped(tmp_path, raster, window_px=16, bands=bands)
    with rasterio.open(out) as target:
        found = target.read(1)
    assert found[0].tolist() == [1] * 32 + [2] * 32
    assert found[5, 5] == 0
    assert tally.nodata == 1


def test_the_file_names_and_colors_its_classes(tmp_path):
    raster = write_raster(tmp_path / "scene.tif", scene(600))
    tally, out = mapped(tmp_path, raster, window_px=60)
    with rasterio.open(out) as target:
        assert json.loads(target.tags()["class_names"]) == list(NAMES)
        assert target.tags(1)["class_2"] == "green"
        assert target.tags()["model"] == "m"
        assert target.descriptions == ("class", "probability of the class, per cent")
        table = target.colormap(1)
    assert table[0][3] == 0
    assert len({table[value] for value in (1, 2, 3)}) == 3
    names, pixels, hectares = map_file.count_classes(out)
    assert names == NAMES
    np.testing.assert_array_equal(pixels, tally.pixels)
    np.testing.assert_allclose(hectares, tally.hectares)


def test_classes_of_a_large_set_have_colors_of_their_own():
    assert len(set(map_file.class_colors(200).values())) == 200


def test_more_classes_than_a_byte_holds(tmp_path):
    class Many(Colors):
        def __init__(self) -> None:
            super().__init__()
            self.num_classes, self.class_names = 300, tuple(f"c{number}" for number in range(300))

        def forward(self, x):
            return torch.nn.functional.one_hot(torch.full((len(x),), 299), 300) * 9.0

    raster = write_raster(tmp_path / "scene.tif", colored(RED, px=16))
    _, out = mapped(tmp_path, raster, window_px=16, network=Many())
    with rasterio.open(out) as target:
        assert (target.read(1) == 300).all()
        assert (target.read(2) == 96).all()  # e^9 / (e^9 + 299)
        with pytest.raises(ValueError, match="color table"):
            target.colormap(1)


def test_a_raster_that_is_cut_short_leaves_no_map(tmp_path):
    raster = write_raster(tmp_path / "scene.tif", scene())
    raster.write_bytes(raster.read_bytes()[:500_000])
    with pytest.raises(InputError, match=mentioning("scene.tif")):
        mapped(tmp_path, raster, window_px=20)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_a_foreign_geotiff_is_no_map(tmp_path):
    raster = write_raster(tmp_path / "scene.tif", scene())
    with pytest.raises(InputError, match=mentioning("scene.tif", "effnetv2 geo map")):
        map_file.count_classes(raster)
