"""What is kept of a picture, in which file, and how it is read back."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from tests.data.caches import in_a_cache, order

from efficientnetv2.data.cache_writer import cache_on_disk
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.decode import CROP_UNIFORMS, draw_crop
from efficientnetv2.data.image_cache import CacheIndex, CacheSpec, InvalidCacheError, cache_digest
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.loader import TrainingImages, training_batches
from efficientnetv2.data.readers import source_reader
from efficientnetv2.data.sampler import BatchRequest, TrainSampler
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp, StepSettings
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.rng import Key


def crops(width, height, crop_mode, area_min, count=4000):
    """Boxes of many draws, in pixels of the image."""
    for uniforms in Key.of(1).uniform_rows(range(count), CROP_UNIFORMS):
        if crop_mode == "center":
            yield draw_crop(width, height, area_min, (3 / 4, 4 / 3), uniforms)
        else:
            part = draw_crop(1, 1, area_min, (3 / 4, 4 / 3), uniforms)
            yield part._replace(
                left=part.left * width,
                right=part.right * width,
                top=part.top * height,
                bottom=part.bottom * height,
            )


def share_with_enough(width, height, crop_mode, area_min, kept, image_size):
    """Of random crops, those for which as many pixels are kept as the crop becomes."""
    kept_width, _ = kept.size(width, height)
    scale, enough = kept_width / width, []
    for box in crops(width, height, crop_mode, area_min):
        sides = box.width * scale, box.height * scale
        enough.append((max(sides) if crop_mode == "border" else min(sides)) >= image_size - 1e-6)
    return np.mean(enough)


@pytest.mark.parametrize("area_min", [0.05, 0.35, 0.8])
@pytest.mark.parametrize("detail", [0.25, 0.5, 0.9, 1.0])
def test_the_stated_share_of_crops_has_all_the_pixels_it_needs(area_min, detail):
    kept = CacheSpec.enough(image_size=128, crop_mode="squash", area_min=area_min, detail=detail)
    # At 0.8 many shapes do not fit, and then the whole picture is taken.
    above = 0.02 if area_min < 0.8 else 0.06
    assert -0.02 <= share_with_enough(3000, 3000, "squash", area_min, kept, 128) - detail <= above
    assert share_with_enough(4000, 3000, "squash", area_min, kept, 128) >= detail - 0.02


@pytest.mark.parametrize("crop_mode", ["center", "border"])
def test_other_framings_keep_enough_for_as_many_crops(crop_mode):
    kept = CacheSpec.enough(image_size=128, crop_mode=crop_mode, area_min=0.35, detail=0.5)
    assert share_with_enough(4000, 3000, crop_mode, 0.35, kept, 128) > 0.4


def test_full_detail_is_for_the_narrowest_of_the_smallest_crops():
    """35 % of the area in the shape 3:4 is 0.512 of the shorter side: 128 px are that of 250."""
    kept = CacheSpec.enough(image_size=128, crop_mode="squash", area_min=0.35, detail=1.0)
    assert kept == CacheSpec(math.ceil(128 / math.sqrt(0.35 * 0.75)), "shorter") == CacheSpec(250, "shorter")
    assert CacheSpec.enough(image_size=96, crop_mode="squash", area_min=1.0, detail=1.0) == CacheSpec(
        96, "shorter"
    )


@given(
    st.integers(2, 5000),
    st.integers(2, 5000),
    st.integers(1, 600),
    st.sampled_from(["shorter", "mean", "longer"]),
)
def test_a_image_is_never_enlarged_and_keeps_its_shape(width, height, px, side):
    kept = CacheSpec(px, side)
    across, down = kept.size(width, height)
    assert min(2, width) <= across <= width, "a strip stays a picture that is read"
    assert min(2, height) <= down <= height
    assert kept.size(height, width) == (down, across), "a turned picture takes as many bytes"
    rounded = 2 if 2 in (across, down) else 1
    assert abs(across - width * down / height) <= rounded * max(1, width / height) + 1e-6
    length = {"shorter": min(across, down), "longer": max(across, down), "mean": math.sqrt(across * down)}[
        side
    ]
    assert length >= min(px, {"shorter": min, "longer": max, "mean": lambda *sides: 0}[side](width, height))


def smooth(seed, height, width):
    """Noise that is the weaker the finer, as in photographs."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    soft = sum(scale**2 * ndimage.gaussian_filter(noise, (scale, scale, 0)) for scale in (2, 5, 15))
    levels = 128 + 50 * soft / soft.std()
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(("detail", "most"), [(1.0, 0.5), (0.5, 1.0)])
@pytest.mark.parametrize("crop_mode", ["squash", "center", "border"])
def test_what_is_kept_gives_the_crops_that_the_original_gives(crop_mode, detail, most, tmp_path):
    """Pillow cuts the same box out of both; ours then moves its edges to whole pixels of what it is given."""
    for number in range(8):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        smooth(number, 300, 400).save(tmp_path / "ab"[number % 2] / f"{number}.jpg", quality=95)
    dataset = load_dataset(tmp_path)
    kept = CacheSpec.enough(image_size=64, crop_mode=crop_mode, area_min=0.35, detail=detail)
    reader = in_a_cache(dataset, kept)
    differences = []
    for number, box in enumerate(crops(400, 300, crop_mode, 0.35, count=8)):
        size = (
            (64, 64)
            if crop_mode != "border"
            else [round(64 * side / max(box.width, box.height)) for side in (box.width, box.height)]
        )
        original, small = Image.open(dataset.file(number)), Image.fromarray(reader.source(number))
        assert small.height < 200, "the pictures are kept smaller"
        across, down = small.width / 400, small.height / 300
        scaled = [place * scale for place, scale in zip(box, (across, down, across, down), strict=True)]
        cut = [
            picture.resize(size, Image.Resampling.BICUBIC, box=at)
            for picture, at in ((original, box), (small, scaled))
        ]
        differences.append(np.abs(np.subtract(*[np.asarray(one, float) for one in cut])).mean())
    assert np.mean(differences) < most, "gray levels of 256"


def test_a_small_image_is_kept_as_it_is(class_folders):
    dataset = load_dataset(class_folders)
    reader = in_a_cache(dataset, CacheSpec(48, "shorter"))
    for sample in (0, 20, 47):
        assert np.array_equal(reader.source(sample), np.asarray(Image.open(dataset.file(sample))))


def test_images_are_kept_upright_whatever_their_kind(tmp_path):
    wide = smooth(3, 20, 60)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    wide.save(tmp_path / "a/turned.png", exif=turned)
    wide.convert("L").save(tmp_path / "a/gray.png")
    wide.save(tmp_path / "b/turned.jpg", exif=turned, quality=95)
    wide.save(tmp_path / "b/wide.jpg", quality=95)
    dataset = load_dataset(tmp_path)
    reader = in_a_cache(dataset, CacheSpec(10, "shorter"))
    shapes = {dataset.paths[row]: reader.source(row).shape for row in range(4)}
    assert shapes == {
        "a/turned.png": (30, 10, 3), "a/gray.png": (10, 30, 3), "b/turned.jpg": (30, 10, 3), "b/wide.jpg": (10, 30, 3),
    }  # fmt: skip


def training(dataset, reader, threads=1):
    return TrainingImages(dataset, Preprocessing(image_size=40), 0.3, Key.of(0), threads, reader)


@pytest.mark.parametrize(("workers", "threads"), [(0, 3), (2, 1)])
def test_batches_from_the_cache_do_not_depend_on_who_reads_them(workers, threads, class_folders):
    dataset = load_dataset(class_folders)
    reader = in_a_cache(dataset)
    sampler = TrainSampler(
        dataset.labels, ProgressiveSchedule(image_size=Ramp(24, 40), stages=2), 6, 8, 4, "equal", Key.of(3)
    )
    alone = list(training_batches(training(dataset, reader), sampler, workers=0))
    shared = list(training_batches(training(dataset, reader, threads), sampler, workers=workers))
    assert all(torch.equal(one.images, other.images) for one, other in zip(alone, shared, strict=True))
    assert len(alone) == len(shared) == 12


def test_reading_opens_no_original(class_folders, monkeypatch):
    dataset = load_dataset(class_folders)
    reader = in_a_cache(dataset)
    monkeypatch.setattr("efficientnetv2.data.image_io.Path.read_bytes", None)
    for path in class_folders.rglob("*.jpg"):
        path.unlink()
    sampler = TrainSampler(
        dataset.labels, ProgressiveSchedule(image_size=Ramp(24, 40), stages=2), 18, 8, 8, None, Key.of(3)
    )
    batches = list(training_batches(training(dataset, reader), sampler, workers=0))
    assert sum(len(batch.labels) for batch in batches) == 3 * 48
    assert not any(batch.unreadable for batch in batches)


def test_a_reader_travels_without_the_images(class_folders):
    dataset = load_dataset(class_folders)
    reader = in_a_cache(dataset)
    before = reader.source(7).copy()
    luggage = pickle.dumps(reader)
    assert len(luggage) < 20_000, "48 pictures of 30 px are 130 kB"
    assert np.array_equal(pickle.loads(luggage).source(7), before)


def test_an_unreadable_image_has_its_stand_in_and_its_reason_as_without_a_cache(class_folders):
    dataset = load_dataset(class_folders)
    (class_folders / dataset.paths[20]).write_bytes(b"no longer a picture")
    (class_folders / dataset.paths[47]).write_bytes((class_folders / dataset.paths[47]).read_bytes()[:700])
    request = BatchRequest(0, 0, StepSettings(image_size=32), np.array([20, 47, 3]), np.zeros(3, np.int64))
    direct = training(dataset, None).batch(request)
    cached = training(dataset, in_a_cache(dataset)).batch(request)
    assert [sample for sample, _ in direct.unreadable] == [20, 47]
    assert cached.unreadable == direct.unreadable
    assert torch.equal(cached.labels, direct.labels)


def file_of(dataset, folder):
    filled = cache_on_disk(folder, order(dataset))
    return filled, filled.reader(np.arange(len(dataset)), source_reader(dataset))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content[:-200] + bytes(100) + content[-100:],
        lambda content: b"",
        lambda content: bytes(len(content)),
        lambda content: content[:8] + bytes([9]) + content[9:],
    ],
)
def test_a_damaged_file_is_told_from_a_whole_one(damage, class_folders, tmp_path):
    filled, reader = file_of(load_dataset(class_folders), tmp_path / "cache")
    filled.path.write_bytes(damage(filled.path.read_bytes()))
    with filled.path.open("rb") as file, pytest.raises(InvalidCacheError):
        CacheIndex.read(file)
    with pytest.raises(InputError, match=r"has changed during the run.* --resume"):
        reader.source(0)


def test_a_run_never_meets_the_images_of_another_cache_in_its_place(class_folders, tmp_path):
    dataset = load_dataset(class_folders)
    _, reader = file_of(dataset, tmp_path / "cache")
    file_of(dataset.select(range(20)), tmp_path / "cache")
    (failure,) = {
        batch.message
        for batch in [
            training(dataset, reader)[
                BatchRequest(0, 0, StepSettings(image_size=32), *[np.zeros(1, np.int64)] * 2)
            ]
        ]
    }
    assert "holds other images by now" in failure


def test_other_files_other_sizes_and_other_lists_are_other_contents(class_folders):
    dataset, kept = load_dataset(class_folders), CacheSpec(30, "shorter")
    content = cache_digest(source_reader(dataset), 48, kept)
    assert content == cache_digest(source_reader(load_dataset(class_folders)), 48, kept)
    file = Path(dataset.file(5))
    time = file.stat()
    seen = {content, cache_digest(source_reader(dataset), 47, kept)}
    seen |= {
        cache_digest(source_reader(dataset), 48, other)
        for other in (CacheSpec(31, "shorter"), CacheSpec(30, "mean"))
    }
    os.utime(file, ns=(time.st_atime_ns, time.st_mtime_ns + 1))
    seen.add(cache_digest(source_reader(dataset), 48, kept))
    file.write_bytes(file.read_bytes() + b"more")
    os.utime(file, ns=(time.st_atime_ns, time.st_mtime_ns))
    seen.add(cache_digest(source_reader(dataset), 48, kept))
    file.unlink()
    seen.add(cache_digest(source_reader(dataset), 48, kept))
    assert len(seen) == 7


def test_files_that_exchanged_their_places_are_another_content(class_folders):
    """A name goes with its stamp, even where the stamps are alike."""
    dataset = load_dataset(class_folders)
    for row in (0, 1):
        os.utime(dataset.file(row), ns=(0, 0))
        Path(dataset.file(row)).write_bytes(b"of one length")
        os.utime(dataset.file(row), ns=(0, 0))
    kept = CacheSpec(30, "shorter")
    one, other = (cache_digest(source_reader(dataset.select(rows)), 2, kept) for rows in ([0, 1], [1, 0]))
    assert one != other


def test_a_cache_of_nothing_but_damage_says_so_of_each(class_folders):
    dataset = load_dataset(class_folders).select([0, 1])
    for row in (0, 1):
        Path(dataset.file(row)).write_bytes(b"no picture")
    reader = in_a_cache(dataset)
    for row in (0, 1):
        with pytest.raises(UnreadableImageError, match="is not an image"):
            reader.source(row)
