"""A cache of decoded images: what is kept of an image, how it is read back; room, reuse, kills, full disks, Ctrl-C."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from tests.command_line import SERVER
from tests.conftest import COLORS, paint
from tests.data.caches import PLENTY, in_a_cache, order
from tests.log_lines import logged_lines
from tests.messages import each_mentions, mentioning, mentions

from efficientnetv2.data import cache_writer
from efficientnetv2.data.cache_reader import PIXELS_OFFSET, CacheIndex, InvalidCacheError
from efficientnetv2.data.cache_writer import CacheJob, CacheSpec, cache_in_memory, cache_on_disk, remove_unused_caches
from efficientnetv2.data.crop import CROP_UNIFORMS, draw_crop
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.loader import TrainingImages, training_batches
from efficientnetv2.data.readers import source_reader
from efficientnetv2.data.sampler import BatchRequest, TrainSampler
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp, StepSettings
from efficientnetv2.utils.errors import InputError, format_bytes
from efficientnetv2.utils.logs import reported_to
from efficientnetv2.utils.random_key import Key


def crops(width, height, crop_mode, area_min, count=4000):
    """Boxes of many draws, in pixels of the image."""
    for uniforms in Key.of(1).uniform_rows(range(count), CROP_UNIFORMS):
        if crop_mode == "center":
            yield draw_crop(width, height, area_min, (3 / 4, 4 / 3), uniforms)
        else:
            part = draw_crop(1, 1, area_min, (3 / 4, 4 / 3), uniforms)
            yield part._replace(
                left=part.left * width, right=part.right * width, top=part.top * height, bottom=part.bottom * height
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
    # At 0.8 many shapes do not fit, and then the whole image is taken.
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
    assert CacheSpec.enough(image_size=96, crop_mode="squash", area_min=1.0, detail=1.0) == CacheSpec(96, "shorter")


@given(st.integers(2, 5000), st.integers(2, 5000), st.integers(1, 600), st.sampled_from(["shorter", "mean", "longer"]))
def test_a_image_is_never_enlarged_and_keeps_its_shape(width, height, px, side):
    kept = CacheSpec(px, side)
    across, down = kept.size(width, height)
    assert min(2, width) <= across <= width, "a strip stays a picture that is read"
    assert min(2, height) <= down <= height
    assert kept.size(height, width) == (down, across), "a turned picture takes as many bytes"
    rounded = 2 if 2 in (across, down) else 1
    assert abs(across - width * down / height) <= rounded * max(1, width / height) + 1e-6
    length = {"shorter": min(across, down), "longer": max(across, down), "mean": math.sqrt(across * down)}[side]
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
            picture.resize(size, Image.Resampling.BICUBIC, box=at) for picture, at in ((original, box), (small, scaled))
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
    with pytest.raises(InputError, match=r"has changed during the run.* Resume"):
        reader.source(0)


def test_a_run_never_meets_the_images_of_another_cache_in_its_place(class_folders, tmp_path):
    dataset = load_dataset(class_folders)
    _, reader = file_of(dataset, tmp_path / "cache")
    file_of(dataset.select(range(20)), tmp_path / "cache")
    (failure,) = {
        batch.message
        for batch in [
            training(dataset, reader)[BatchRequest(0, 0, StepSettings(image_size=32), *[np.zeros(1, np.int64)] * 2)]
        ]
    }
    assert "now holds other images" in failure


def cache_digest(reader, count, spec):
    return CacheJob(reader, count, spec, 1).digest()


def test_other_files_other_sizes_and_other_lists_are_other_contents(class_folders):
    dataset, kept = load_dataset(class_folders), CacheSpec(30, "shorter")
    content = cache_digest(source_reader(dataset), 48, kept)
    assert content == cache_digest(source_reader(load_dataset(class_folders)), 48, kept)
    file = Path(dataset.file(5))
    time = file.stat()
    seen = {content, cache_digest(source_reader(dataset), 47, kept)}
    seen |= {
        cache_digest(source_reader(dataset), 48, other) for other in (CacheSpec(31, "shorter"), CacheSpec(30, "mean"))
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


class Counted:
    """The reader of the originals, which counts how often it is asked for one."""

    def __init__(self, dataset):
        self.files, self.asked = source_reader(dataset), 0

    def source(self, sample):
        self.asked += 1
        return self.files.source(sample)

    def name(self, sample):
        return self.files.name(sample)

    def stamps(self, samples):
        return self.files.stamps(samples)

    def ahead(self, samples):
        return self


def counted_order(dataset, **changes):
    reader = Counted(dataset)
    return reader, replace(order(dataset), reader=reader, **changes)


def pixels_of(filled, dataset):
    reader = filled.reader(np.arange(len(dataset)), source_reader(dataset))
    return [reader.source(sample).tobytes() for sample in range(len(dataset))]


def test_a_later_run_reuses_what_is_on_disk(class_folders, tmp_path):
    dataset = load_dataset(class_folders)
    first, filling_it = counted_order(dataset)
    filled = cache_on_disk(tmp_path / "cache", filling_it)
    assert (first.asked, filled.reused) == (2 * 48, False), "once for its header, once for its pixels"
    second, again = counted_order(load_dataset(class_folders))
    reused = cache_on_disk(tmp_path / "cache", again)
    assert (second.asked, reused.reused) == (0, True)
    assert pixels_of(reused, dataset) == pixels_of(filled, dataset)


def test_memory_and_disk_hold_the_same_pixels(class_folders, tmp_path):
    dataset = load_dataset(class_folders)
    filled = cache_on_disk(tmp_path / "cache", order(dataset, threads=1))
    in_ram = cache_in_memory(order(dataset, threads=3), room_bytes=PLENTY)
    assert pixels_of(filled, dataset) == pixels_of(in_ram, dataset)
    assert in_ram.bytes == filled.bytes


def test_memory_is_given_back_with_the_last_reader(class_folders):
    reader = in_a_cache(load_dataset(class_folders))
    path = reader.path
    assert path.exists()
    del reader
    assert not path.exists()


def change_a_byte(dataset):
    paint(Path(dataset.file(3)), (1, 2, 3))


def touch(dataset):
    os.utime(dataset.file(3), ns=(0, 10**18))


@pytest.mark.parametrize("change", [change_a_byte, touch])
def test_a_changed_picture_makes_the_cache_stale(change, class_folders, tmp_path):
    dataset, said = load_dataset(class_folders), logged_lines()
    before = cache_on_disk(tmp_path / "cache", order(dataset))
    change(dataset)
    after = cache_on_disk(tmp_path / "cache", order(dataset))
    assert not after.reused
    assert mentions(said[0], "cache")
    assert after.digest != before.digest
    reader = after.reader(np.arange(48), source_reader(dataset))
    assert np.array_equal(reader.source(3), in_a_cache(dataset).source(3))
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix] == ["pictures.bin"]


def test_a_cache_that_is_cut_off_is_filled_anew(class_folders, tmp_path):
    dataset, said = load_dataset(class_folders), logged_lines()
    file = cache_on_disk(tmp_path / "cache", order(dataset)).path
    os.truncate(file, file.stat().st_size // 2)
    assert not cache_on_disk(tmp_path / "cache", order(dataset)).reused
    assert each_mentions(said, (file, "cache"))


class Failing(Counted):
    """Two images can't be had, as over a mount that fails for a moment; the files stay as they are."""

    def source(self, sample):
        if sample in (3, 40):
            raise UnreadableImageError(self.name(sample), "input/output error")
        return super().source(sample)


def test_what_a_mount_failed_to_give_for_a_moment_is_asked_for_again(class_folders, tmp_path):
    dataset, said = load_dataset(class_folders), logged_lines()
    failing = replace(order(dataset), reader=Failing(dataset))
    poor = cache_on_disk(tmp_path / "cache", failing)
    with pytest.raises(UnreadableImageError, match="input/output error"):
        poor.reader(np.arange(48), source_reader(dataset)).source(3)
    assert cache_on_disk(tmp_path / "cache", failing).reused, "they still can't be had"
    assert cache_writer.is_cached(tmp_path / "cache", failing)
    assert not cache_writer.is_cached(tmp_path / "cache", order(dataset))
    filled = cache_on_disk(tmp_path / "cache", order(dataset))
    assert each_mentions(said, (filled.path, "cache"))
    whole = cache_in_memory(order(dataset), room_bytes=PLENTY)
    assert pixels_of(filled, dataset) == pixels_of(whole, dataset)
    assert cache_on_disk(tmp_path / "cache", order(dataset)).reused


def test_the_size_is_known_to_the_byte_before_anything_is_decoded(class_folders, monkeypatch):
    """Images of many sizes, of which a sample would say little: 30 px of the shorter side are kept of each."""
    for number, height in enumerate((31, 60, 200)):
        Image.new("RGB", (300, height)).save(class_folders / f"red/odd_{number}.png")
    dataset = load_dataset(class_folders)
    expected = 48 * 30 * 30 * 3 + (291 + 150 + 45) * 30 * 3  # 300 x 31, 60, 200 with 30 px of height
    filled = cache_in_memory(order(dataset), room_bytes=PLENTY)
    index_bytes = filled.bytes - PIXELS_OFFSET - expected
    assert 51 * 16 <= index_bytes <= 51 * 16 + 4096

    def never(*_):
        raise AssertionError("decoded although there is no room")

    monkeypatch.setattr(cache_writer, "load_resized_image", never)
    words = "51 images, kept decoded with their shorter side up to 30 px, need 1 MiB, .* Set `cache=disk`, or keep"
    with pytest.raises(InputError, match=words):
        cache_in_memory(order(dataset), room_bytes=expected)


def test_a_disk_without_room_is_refused_before_anything_is_written(class_folders, tmp_path, monkeypatch):
    usage = cache_writer.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_writer.shutil, "disk_usage", lambda _: usage._replace(free=2**30 + 100_000))
    with pytest.raises(InputError, match=mentioning("1", "MiB", "EFFNETV2_CACHE=FOLDER")):
        cache_on_disk(tmp_path / "cache", order(load_dataset(class_folders)))
    assert not (tmp_path / "cache/pictures.bin").exists()


def test_a_folder_that_cannot_be_written_is_named(class_folders, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=mentioning("EFFNETV2_CACHE=FOLDER")):
        cache_on_disk(tmp_path / "file/cache", order(load_dataset(class_folders)))


@pytest.fixture
def large(tmp_path):
    """Images enough that filling takes a moment, and that their pixels pass 1 MB."""
    for name, color in COLORS.items():
        for number in range(8):
            paint(tmp_path / "large" / name / f"{number}.jpg", color, number, px=160)
    return tmp_path / "large"


FILL = """
import logging, sys, time
from contextlib import contextmanager
from pathlib import Path
from efficientnetv2.utils.errors import InputError
from efficientnetv2.data.cache_writer import CacheJob, cache_on_disk
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.cache_writer import CacheSpec
from efficientnetv2.data.readers import source_reader
from efficientnetv2.utils.logs import reported_to

logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.INFO)

@contextmanager
def slowly(what, total, unit):
    def counted(done):
        print(what, done, flush=True)
        while (what, done) == ("filling the cache", 16) and not Path(sys.argv[3]).exists():
            time.sleep(0.01)
    yield counted

dataset = load_dataset(sys.argv[1])
try:
    order = CacheJob(source_reader(dataset), len(dataset), CacheSpec(160, "shorter"), 2)
    with reported_to(slowly):
        print(cache_on_disk(Path(sys.argv[2]), order).reused)
except InputError as error:
    sys.exit(str(error))
"""


@contextmanager
def filler(pictures, cache, go_on, **words):
    """A process that fills a cache; after 16 images it waits until the file ``go_on`` is there."""
    command = [sys.executable, "-c", FILL, str(pictures), str(cache), str(go_on)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **streams, **words) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process, words):
    for line in process.stdout:
        if line.startswith(words):
            return
    raise AssertionError(process.stderr.read())


def test_a_killed_fill_leaves_nothing_that_is_taken_for_a_cache(large, tmp_path):
    with filler(large, tmp_path / "cache", tmp_path / "never") as process:
        wait_for(process, "filling the cache 16")
        process.send_signal(signal.SIGKILL)
    left = [path.name for path in (tmp_path / "cache").iterdir()]
    assert "pictures.bin" not in left
    assert any(name.endswith(".partial") for name in left), "it was killed too early to mean anything"
    dataset = load_dataset(large)
    assert not cache_on_disk(tmp_path / "cache", order(dataset, CacheSpec(160, "shorter"))).reused
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) in (["lock", "pictures.bin"], ["pictures.bin"])
    assert cache_on_disk(tmp_path / "cache", order(dataset, CacheSpec(160, "shorter"))).reused


def test_ctrl_c_stops_a_fill_and_leaves_nothing(large, tmp_path):
    """It waits for what never comes: nothing but the signal can end it."""
    with filler(large, tmp_path / "cache", tmp_path / "never") as process:
        wait_for(process, "filling the cache 16")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)
        assert "KeyboardInterrupt" in process.stderr.read()
    assert not any(path.suffix for path in (tmp_path / "cache").iterdir())


def test_stopping_gives_up_what_threads_have_not_begun(class_folders, monkeypatch):
    """All but the first image take until after the pool has been told to stop."""
    begun, told, threads = [], threading.Event(), threading.active_count()

    def work(reader, row, kept):
        begun.append(row)
        assert row == 0 or told.wait(60)
        return row

    class Pool(cache_writer.ThreadPoolExecutor):
        def shutdown(self, **how):
            super().shutdown(**how | {"wait": False})
            told.set()
            super().shutdown(wait=how.get("wait", True))

    monkeypatch.setattr(cache_writer, "ThreadPoolExecutor", Pool)
    with cache_writer._map_images(work, order(load_dataset(class_folders), threads=2), 1) as results:
        assert next(results) == [0]
    assert set(begun) <= {0, 1, 2}, "the first, and one more in each of two threads"
    assert threading.active_count() <= threads, "none is left"


def test_two_runs_that_want_the_same_cache_fill_it_once(large, tmp_path):
    go_on = tmp_path / "go on"
    with filler(large, tmp_path / "cache", go_on) as one:
        wait_for(one, "filling the cache 16")
        with filler(large, tmp_path / "cache", go_on) as other:
            assert "waiting for it" in other.stdout.readline()
            go_on.touch()
            assert one.wait(timeout=120) == other.wait(timeout=120) == 0
            assert other.stdout.read().splitlines()[-1] == "True"
        assert one.stdout.read().splitlines()[-1] == "False"


def test_a_disk_that_gets_full_meanwhile_is_said_without_a_traceback(large, tmp_path):
    """A limit on the size of files stands for the disk: writing past it fails as on a full one."""
    import resource

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    with filler(large, tmp_path / "cache", large, preexec_fn=limited) as process:
        _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert mentions(told, "EFFNETV2_CACHE=FOLDER", "place")
    assert "Traceback" not in told
    assert not any(path.suffix for path in (tmp_path / "cache").iterdir())


def test_a_header_that_promises_less_than_the_file_holds_costs_no_picture(class_folders, monkeypatch):
    """As when a file changes between the measuring and the filling."""
    dataset = load_dataset(class_folders)
    whole = in_a_cache(dataset)
    monkeypatch.setattr(cache_writer, "image_size", lambda source: (20, 20))
    short = in_a_cache(dataset)
    assert all(np.array_equal(short.source(row), whole.source(row)) for row in range(48))


def test_caches_that_no_run_has_used_for_a_month_are_removed(class_folders, tmp_path):
    dataset, said = load_dataset(class_folders), logged_lines()
    old, young = (
        cache_on_disk(tmp_path / name, order(dataset, CacheSpec(20, "shorter"))).path for name in ("old", "young")
    )
    for file, days in ((old, 31), (young, 29)):
        os.utime(file, (time.time() - days * 86400,) * 2)
    (tmp_path / "something else").mkdir()
    cache_on_disk(tmp_path / "new", order(dataset))
    assert not old.parent.exists()
    assert young.exists()
    assert (tmp_path / "something else").exists()
    assert each_mentions(said, (old.parent, "30"))
    os.utime(young, (time.time() - 29 * 86400,) * 2)
    assert cache_on_disk(young.parent, order(dataset, CacheSpec(20, "shorter"))).reused
    assert time.time() - young.stat().st_mtime < 60, "using it makes it young"


def test_a_cache_that_another_run_is_at_or_has_removed_already_is_left_alone(class_folders, tmp_path, monkeypatch):
    """Between the listing and the look at it."""
    dataset, said = load_dataset(class_folders), logged_lines()
    files = [
        cache_on_disk(tmp_path / name, order(dataset, CacheSpec(20, "shorter"))).path for name in ("taken", "gone")
    ]
    for file in files:
        os.utime(file, (time.time() - 31 * 86400,) * 2)
    glob = Path.glob

    def listed(self, pattern):
        found = list(glob(self, pattern))
        if files[1] in found:
            shutil.rmtree(files[1].parent)
        return found

    with FileLock(files[0].parent / "lock"), monkeypatch.context() as patch:
        patch.setattr(Path, "glob", listed)
        remove_unused_caches(tmp_path)
    assert files[0].exists()
    assert said == []


def test_progress_ends_at_the_number_of_pictures(class_folders):
    seen = {}

    @contextmanager
    def counting(what, total, unit):
        yield lambda done: seen.setdefault((what, total), []).append(done)

    with reported_to(counting):
        cache_in_memory(order(load_dataset(class_folders)), room_bytes=PLENTY)
    assert set(seen) == {("measuring images", 48), ("filling the cache", 48)}
    assert all(done == sorted(done) and done[-1] == 48 for done in seen.values())


def test_amounts_are_said_in_gib_from_one_on():
    assert [format_bytes(count) for count in (10, 340 * 2**20, 2**30, 12_345_678_901)] == [
        "1 MiB", "340 MiB", "1.0 GiB", "11.5 GiB",
    ]  # fmt: skip


def _read_all(reader, start, answers):
    start.wait()
    before = _private_bytes()
    total = sum(int(reader.source(sample).sum()) for sample in range(len(reader.rows)))
    answers.put((total, _private_bytes() - before))


def _private_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells what memory is shared")
@pytest.mark.parametrize("where", ["ram", "disk"])
def test_processes_share_the_memory_of_a_cache(where, large, tmp_path):
    dataset = load_dataset(large)
    big = order(dataset, CacheSpec(160, "shorter"))
    filled = cache_in_memory(big, room_bytes=PLENTY) if where == "ram" else cache_on_disk(tmp_path / "cache", big)
    reader = filled.reader(np.arange(24), source_reader(dataset))
    expected = sum(int(reader.source(sample).sum()) for sample in range(24))
    start, answers = SERVER.Event(), SERVER.Queue()
    processes = [SERVER.Process(target=_read_all, args=(reader, start, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    told = [answers.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert [total for total, _ in told] == [expected] * 2
    assert filled.bytes > 1_800_000
    assert max(private for _, private in told) < 900_000, "none has a copy of its own"
