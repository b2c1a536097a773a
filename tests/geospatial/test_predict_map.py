"""The map of a test scene has the location of the scene. A simple model predicts colors."""

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
    """Predicts the color with the largest mean in a window."""

    def __init__(self) -> None:
        super().__init__(num_classes=3, in_channels=3, embed_dim=3)
        self.preprocessing = Preprocessing(image_size=8, mean=(0, 0, 0), std=(1, 1, 1))
        self.class_names = NAMES
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.num_predicted = 0

    def forward(self, x):
        self.num_predicted += len(x)
        return 40 * x.mean((2, 3)) * self.weight


def mapped(tmp_path, raster, *, window_px, stride_px=None, bands=RGB, model=None, **options):
    """Return the tally and the path of the map."""
    out = tmp_path / "map.tif"
    model = model or Colors()
    tallies = []
    with open_raster(raster) as source:
        grid = Grid(source.height, source.width, window_px, stride_px or window_px // 2)
        map_file.write_map(
            out, source, model.class_names,
            lambda put: tallies.append(predict_blocks(model, source, put, grid, bands, **options)),
            metadata={"model": "m"},
        )  # fmt: skip
    return tallies[0], out


def scene(px=600):
    """Return a red scene with squares: green, 200 px at column 300, row 100; blue, 150 px at column 50, row 400."""
    pixels = np.zeros((3, px, px), np.uint8)
    pixels[0] = 250
    pixels[:, 100:300, 300:500] = np.array(GREEN)[:, None, None]
    pixels[:, 400:550, 50:200] = np.array(BLUE)[:, None, None]
    return pixels


def test_map_has_the_location_of_the_scene(tmp_path):
    """Read by coordinates, with rasterio's transforms of both files."""
    raster = write_raster(tmp_path / "scene.tif", scene())
    tally, out = mapped(tmp_path, raster, window_px=20)
    with rasterio.open(raster) as source, rasterio.open(out) as target:
        assert target.crs == source.crs == rasterio.CRS.from_string(UTM)
        assert target.transform == source.transform == PLACE
        assert (target.width, target.height, target.count) == (600, 600, 2)
        # The green square of 2,000 m starts 3,000 m east and 1,000 m south of the corner.
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
    # The border of a color is where it fills half of a window. Only corners, where it fills a quarter, are rounded.
    wrong = values != truth
    assert wrong.mean() < 0.002
    rows, columns = np.nonzero(wrong)
    corners = [(100, 300), (100, 500), (300, 300), (300, 500), (400, 50), (400, 200), (550, 50), (550, 200)]
    assert len(rows)  # otherwise the line below checks nothing
    assert all(min(max(abs(r - a), abs(c - b)) for a, b in corners) <= 10 for r, c in zip(rows, columns, strict=True))
    assert tally.pixels.sum() == 600 * 600
    assert tally.pixels[1] == (values == 2).sum()
    assert tally.hectares[1] == pytest.approx(tally.pixels[1] * 0.01)


def test_map_does_not_depend_on_the_size_of_blocks_and_batches(tmp_path, monkeypatch):
    """Blocks of 256 px cause no seams: neither classes nor probabilities depend on the block size."""
    noise = np.random.default_rng(0).integers(0, 255, (3, 130, 300), np.uint8)
    raster = write_raster(tmp_path / "scene.tif", noise)
    first, out = mapped(tmp_path, raster, window_px=24, stride_px=7)
    with rasterio.open(out) as target:
        expected = target.read()
    monkeypatch.setattr("efficientnetv2.geospatial.sliding_window.BLOCK_PX", 48)
    monkeypatch.setattr("efficientnetv2.geospatial.sliding_window._READ_PX", 24 * 60)
    again, out = mapped(tmp_path, raster, window_px=24, stride_px=7, batch_size=5)
    with rasterio.open(out) as target:
        np.testing.assert_array_equal(target.read(), expected)
    np.testing.assert_array_equal(again.pixels, first.pixels)
    assert len(np.unique(expected[0])) == 3  # otherwise there is nothing to compare


class Counted:
    """A raster that counts its reads."""

    def __init__(self, dataset):
        self.dataset, self.reads = dataset, 0

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def read(self, *args, **more):
        self.reads += 1
        return self.dataset.read(*args, **more)


def test_row_of_blocks_is_read_at_most_twice(tmp_path):
    """For its windows, and for its mask of missing data: each read decodes strips of the full width."""
    raster = write_raster(tmp_path / "scene.tif", np.full((3, 256, 5000), 90, np.uint8))
    with open_raster(raster) as source:
        counted, grid, put = Counted(source), Grid(256, 5000, 256, 256), []
        tally = predict_blocks(Colors(), counted, lambda *block: put.append(block[2]), grid, RGB)
    assert counted.reads == 2
    assert (len(put), tally.pixels.sum()) == (20, 256 * 5000)


def test_without_overlap_each_window_has_its_own_prediction(tmp_path):
    raster = write_raster(tmp_path / "scene.tif", colored(RED, BLUE, GREEN, px=16))
    _, out = mapped(tmp_path, raster, window_px=16, stride_px=16)
    with rasterio.open(out) as target:
        assert target.read(1)[3].tolist() == [1] * 16 + [3] * 16 + [2] * 16


def test_missing_data_stay_missing_and_are_not_predicted(tmp_path):
    """The right half of the scene has no data, so that its windows need no prediction."""
    pixels = colored(RED, GREEN, px=64)
    pixels[:, :, 64:] = 7
    pixels[0, 0, 0] = 7  # only one band has this value, so the pixel has data
    raster = write_raster(tmp_path / "scene.tif", pixels, nodata=7)
    model = Colors()
    tally, out = mapped(tmp_path, raster, window_px=16, model=model)
    with rasterio.open(out) as target:
        values, sure = target.read()
        assert target.nodata == 0
    assert (values[:, :64] == 1).all()
    assert (sure[:, :64] > 0).all()
    assert (values[:, 64:] == 0).all()
    assert (sure[:, 64:] == 0).all()
    assert tally.nodata == 64 * 64
    assert model.num_predicted == 7 * 8  # 7 rows; 8 of 15 windows per row begin before column 64


def test_scene_without_data_gives_a_map_without_data(tmp_path):
    raster = write_raster(tmp_path / "scene.tif", np.zeros((3, 32, 32), np.uint8), nodata=0)
    tally, _ = mapped(tmp_path, raster, window_px=16)
    assert tally.nodata == 32 * 32
    assert np.isnan(tally.confidence).all()


def test_16_bit_and_float_values_are_scaled_by_the_bands(tmp_path):
    """Bands 4, 3 and 2 of five, scaled from 1,000 to 3,000. One pixel is NaN."""
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


def test_map_file_names_and_colors_its_classes(tmp_path):
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


def test_many_classes_have_different_colors():
    assert len(set(map_file.class_colors(200).values())) == 200


def test_map_of_more_classes_than_a_byte_has_no_color_table(tmp_path):
    class Many(Colors):
        def __init__(self) -> None:
            super().__init__()
            self.num_classes, self.class_names = 300, tuple(f"c{number}" for number in range(300))

        def forward(self, x):
            return torch.nn.functional.one_hot(torch.full((len(x),), 299), 300) * 9.0

    raster = write_raster(tmp_path / "scene.tif", colored(RED, px=16))
    _, out = mapped(tmp_path, raster, window_px=16, model=Many())
    with rasterio.open(out) as target:
        assert (target.read(1) == 300).all()
        assert (target.read(2) == 96).all()  # e^9 / (e^9 + 299)
        with pytest.raises(ValueError, match="color table"):
            target.colormap(1)


def test_truncated_raster_leaves_no_map(tmp_path):
    raster = write_raster(tmp_path / "scene.tif", scene())
    raster.write_bytes(raster.read_bytes()[:500_000])
    with pytest.raises(InputError, match=mentioning("scene.tif")):
        mapped(tmp_path, raster, window_px=20)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_geotiff_of_another_program_is_not_a_map(tmp_path):
    raster = write_raster(tmp_path / "scene.tif", scene())
    with pytest.raises(InputError, match=mentioning("scene.tif", "effnetv2 geo map")):
        map_file.count_classes(raster)


def test_missing_data_of_the_model_stay_missing(tmp_path):
    """The file declares no nodata."""
    pixels = colored(RED, GREEN, px=64)
    pixels[:, :, 64:] = 7
    raster = write_raster(tmp_path / "scene.tif", pixels)
    tally, out = mapped(tmp_path, raster, window_px=16, bands=Bands((1, 2, 3), nodata=(7,)))
    with rasterio.open(out) as target:
        values = target.read(1)
    assert (values[:, :64] == 1).all()
    assert (values[:, 64:] == 0).all()
    assert tally.nodata == 64 * 64


def test_windows_count_by_their_fraction_with_data(tmp_path):
    """The first of two windows is half missing, so that the other prevails from column 11, not from column 12."""
    pixels = np.zeros((3, 16, 24), np.uint8)
    pixels[:, :, :8] = 7
    pixels[1, :, 8:16] = 150
    pixels[0, :, 16:] = 250
    raster = write_raster(tmp_path / "scene.tif", pixels, nodata=7)
    _, out = mapped(tmp_path, raster, window_px=16, stride_px=8, bands=Bands((1, 2, 3), missing=(0, 0, 0)))
    with rasterio.open(out) as target:
        assert target.read(1)[0].tolist() == [0] * 8 + [2] * 3 + [1] * 13


def test_areas_in_degrees_are_those_of_their_rows(tmp_path):
    """Red from 60 to 30 degrees north, green from there to the equator; three rows of blocks."""
    pixels = np.zeros((3, 600, 32), np.uint8)
    pixels[0, :300], pixels[1, 300:] = 250, 250
    degrees = rasterio.Affine(0.1, 0, 10, 0, -0.1, 60)
    raster = write_raster(tmp_path / "scene.tif", pixels, crs="EPSG:4326", transform=degrees)
    tally, out = mapped(tmp_path, raster, window_px=20)
    with open_raster(out) as target:
        values, of_row = target.read(1), map_file.row_hectares(target)
    expected = [((values == value) * of_row[:, None]).sum() for value in (1, 2, 3)]
    np.testing.assert_allclose(tally.hectares, expected)
    np.testing.assert_allclose(map_file.count_classes(out)[2], expected)
