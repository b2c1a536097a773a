"""What an image looks like, from one pass: its kind and its colors, whatever it is stored as."""

from __future__ import annotations

import imagehash
import numpy as np
import pytest
from PIL import Image

from efficientnetv2.checks.image_stats import SMALL_PX, collect_image_stats
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.decode import load_image


def test_format_size_channels_and_colors_are_those_of_the_file(tmp_path):
    for name, picture in {
        "red.png": Image.new("RGB", (40, 30), (255, 0, 0)),
        "gray.jpg": Image.new("L", (64, 64), 100),
        "clear.png": Image.new("RGBA", (20, 20), (0, 0, 0, 0)),  # is laid over white
    }.items():
        picture.save(tmp_path / name)
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


def test_contents_are_equal_for_equal_files_alone(class_folders):
    files = sorted((class_folders / "red").iterdir())
    files[1].write_bytes(files[0].read_bytes())
    files[2].write_bytes(b"")
    files[3].write_bytes(b"")
    looked = collect_image_stats(load_dataset(class_folders), workers=3)
    content = dict(zip(load_dataset(class_folders).paths, looked.table["content"], strict=True))
    first, second, third, fourth = (content[f"red/{file.name}"] for file in files[:4])
    assert first == second
    assert third != fourth  # two files that can't be used are not the same image
    assert len(set(content.values())) == len(content) - 1
    assert len(looked.readable) == len(content) - 2


def test_small_squares_and_hashes_are_near_those_of_the_whole_picture(class_folders):
    """Decoding at a smaller scale changes little: two levels in the mean, and few bits of imagehash's own hash."""
    for number in range(4):
        patches = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(patches).resize((500, 380), Image.Resampling.BICUBIC)
        picture.save(class_folders / "red" / f"large_{number}.jpg", quality=95)
    dataset = load_dataset(class_folders)
    looked = collect_image_stats(dataset, workers=2)
    for row in [row for row, path in enumerate(dataset.paths) if "large" in path]:
        whole = load_image(dataset.file(row))
        small = np.asarray(whole.resize((SMALL_PX, SMALL_PX), Image.Resampling.BOX), dtype=float)
        assert np.abs(small - looked.small[row]).mean() < 4
        assert (imagehash.phash(whole).hash.ravel() != looked.hashes[row]).sum() <= 4


def test_it_tells_how_far_it_is_and_does_not_depend_on_threads(class_folders):
    dataset = load_dataset(class_folders)
    said = []
    one = collect_image_stats(dataset, workers=1, progress=said.append)
    several = collect_image_stats(dataset, workers=4)
    assert said[-1] == len(dataset)
    assert one.table.equals(several.table)
    assert (one.hashes == several.hashes).all()


def natural(number, px=128):
    """Detail at every scale, as images of the world have it: an amplitude of one over the frequency."""
    rng = np.random.default_rng(number)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(px), np.fft.fftfreq(px)))
    spectrum = np.fft.fft2(rng.normal(size=(px, px))) / np.maximum(frequency, 1 / px)
    values = np.fft.ifft2(spectrum).real
    return Image.fromarray((128 + 45 * values / values.std()).clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize("way", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_images_that_were_enlarged_are_known(tmp_path, times, way):
    for number in range(12):
        image = natural(number)
        image.reduce(times).resize(image.size, way).save(tmp_path / f"{number:02}.jpg", quality=90)
    Image.new("RGB", (128, 128)).save(tmp_path / "99.jpg")  # shows too little to say
    found = collect_image_stats(load_dataset(tmp_path, require_labels=False), workers=1).table["enlarged"]
    assert found.median() == times
    assert np.isnan(found.iloc[-1])
