"""Statistics of an image from one pass: its format and colors, in any file format."""

from __future__ import annotations

from dataclasses import replace

import imagehash
import numpy as np
import pytest
from PIL import Image

from efficientnetv2.checks.image_stats import SMALL_PX, collect_image_stats
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.decode import load_image
from efficientnetv2.preprocessing import Bands


def test_format_size_channels_and_colors_are_correct(tmp_path):
    for name, image in {
        "red.png": Image.new("RGB", (40, 30), (255, 0, 0)),
        "gray.jpg": Image.new("L", (64, 64), 100),
        "clear.png": Image.new("RGBA", (20, 20), (0, 0, 0, 0)),  # shown on white
    }.items():
        image.save(tmp_path / name)
    looked = collect_image_stats(load_dataset(tmp_path, require_labels=False), workers=2).table
    assert looked["format"].tolist() == ["PNG", "JPEG", "PNG"]
    assert looked["mode"].tolist() == ["RGBA", "L", "RGB"]
    assert list(zip(looked["width"], looked["height"], strict=True)) == [(20, 20), (64, 64), (40, 30)]
    assert looked["bytes"].tolist() == [
        (tmp_path / name).stat().st_size for name in ("clear.png", "gray.jpg", "red.png")
    ]
    assert looked["brightness"].tolist() == pytest.approx([255, 100, 0.299 * 255], abs=0.5)
    assert looked.loc[2, ["red", "green", "blue"]].tolist() == [255, 0, 0]
    assert looked["contrast"].tolist() == pytest.approx([0, 0, 0], abs=0.5)


def test_contents_are_equal_only_for_equal_files(class_folders):
    files = sorted((class_folders / "red").iterdir())
    files[1].write_bytes(files[0].read_bytes())
    files[2].write_bytes(b"")
    files[3].write_bytes(b"")
    looked = collect_image_stats(load_dataset(class_folders), workers=3)
    content = dict(zip(load_dataset(class_folders).paths, looked.table["content"], strict=True))
    first, second, third, fourth = (content[f"red/{file.name}"] for file in files[:4])
    assert first == second
    assert third != fourth  # two unreadable files are not the same image
    assert len(set(content.values())) == len(content) - 1
    assert len(looked.readable) == len(content) - 2


def test_small_images_and_hashes_are_close_to_those_of_the_full_image(class_folders):
    """Decoding at a smaller scale changes little: two levels on average, and few bits of the hash of imagehash."""
    for number in range(4):
        patches = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = Image.fromarray(patches).resize((500, 380), Image.Resampling.BICUBIC)
        image.save(class_folders / "red" / f"large_{number}.jpg", quality=95)
    dataset = load_dataset(class_folders)
    looked = collect_image_stats(dataset, workers=2)
    for row in [row for row, path in enumerate(dataset.paths) if "large" in path]:
        full = load_image(dataset.file(row))
        small = np.asarray(full.resize((SMALL_PX, SMALL_PX), Image.Resampling.BOX), dtype=float)
        assert np.abs(small - looked.small[row]).mean() < 4
        assert (imagehash.phash(full).hash.ravel() != looked.hashes[row]).sum() <= 4


def test_progress_is_reported_and_threads_do_not_change_the_result(class_folders):
    dataset = load_dataset(class_folders)
    progress = []
    one = collect_image_stats(dataset, workers=1, progress=progress.append)
    several = collect_image_stats(dataset, workers=4)
    assert progress[-1] == len(dataset)
    assert one.table.equals(several.table)
    assert (one.hashes == several.hashes).all()


def natural(number, px=128):
    """Return an image with detail at each scale, as in natural images: the amplitude is 1 / frequency."""
    rng = np.random.default_rng(number)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(px), np.fft.fftfreq(px)))
    spectrum = np.fft.fft2(rng.normal(size=(px, px))) / np.maximum(frequency, 1 / px)
    values = np.fft.ifft2(spectrum).real
    return Image.fromarray((128 + 45 * values / values.std()).clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("times", [1, 2, 4, 8])
@pytest.mark.parametrize("way", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_enlarged_images_are_detected(tmp_path, times, way):
    for number in range(12):
        image = natural(number, px=256 if times == 8 else 128)
        image.reduce(times).resize(image.size, way).save(tmp_path / f"{number:02}.jpg", quality=90)
    Image.new("RGB", (128, 128)).save(tmp_path / "99.jpg")  # too uniform to decide
    found = collect_image_stats(load_dataset(tmp_path, require_labels=False), workers=1).table["enlarged"]
    assert found.median() == times
    assert np.isnan(found.iloc[-1])


def test_rasters_that_look_equal_are_different_files(tmp_path):
    """The upper half of the range is shown alike, and one file is a copy."""
    write_raster = pytest.importorskip("tests.rasters").write_raster
    values = np.full((1, 16, 16), 60_000, dtype=np.uint16)
    for number in range(3):
        values[0, 0, 0] = 60_000 + number
        write_raster(tmp_path / f"{number}.tif", values)
    (tmp_path / "3.tif").write_bytes((tmp_path / "2.tif").read_bytes())
    dataset = load_dataset(tmp_path, require_labels=False)
    bands = Bands(numbers=(1, 1, 1), low=(0,) * 3, high=(30_000,) * 3, kinds=("uint16",))
    looked = collect_image_stats(replace(dataset, bands=bands), workers=2).table
    assert looked["content"].nunique() == 3
    assert looked["content"][2] == looked["content"][3]
    assert looked["bytes"].tolist() == [(tmp_path / path).stat().st_size for path in dataset.paths]
    assert set(looked["format"]) == {"raster (.tif)"}
