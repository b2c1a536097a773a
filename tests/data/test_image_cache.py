"""The cache of decoded images: stored sizes, equal results, disk space, reuse, kills, full disks and Ctrl-C."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
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
from tests.data.caches import PLENTY, cache_job, memory_cache_reader
from tests.log_lines import logged_lines
from tests.messages import each_mentions, mentioning, mentions

from efficientnetv2.data import cache_writer
from efficientnetv2.data.cache_reader import PIXELS_OFFSET, CacheIndex, InvalidCacheError
from efficientnetv2.data.cache_writer import CacheJob, CacheSpec, cache_in_memory, cache_on_disk, remove_unused_caches
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.decode import CROP_UNIFORMS, draw_crop
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
    """Random boxes in pixels of the image."""
    for uniforms in Key.of(1).uniform_rows(range(count), CROP_UNIFORMS):
        if crop_mode == "center":
            yield draw_crop(width, height, area_min, (3 / 4, 4 / 3), uniforms)
        else:
            part = draw_crop(1, 1, area_min, (3 / 4, 4 / 3), uniforms)
            yield part._replace(
                left=part.left * width, right=part.right * width, top=part.top * height, bottom=part.bottom * height
            )


def fraction_with_enough_pixels(width, height, crop_mode, area_min, spec, image_size):
    """Fraction of random crops that have at least ``image_size`` pixels in the cached image."""
    cached_width, _ = spec.size(width, height)
    scale, enough = cached_width / width, []
    for box in crops(width, height, crop_mode, area_min):
        sides = box.width * scale, box.height * scale
        enough.append((max(sides) if crop_mode == "border" else min(sides)) >= image_size - 1e-6)
    return np.mean(enough)


@pytest.mark.parametrize("area_min", [0.05, 0.35, 0.8])
@pytest.mark.parametrize("detail", [0.25, 0.5, 0.9, 1.0])
def test_requested_fraction_of_crops_has_enough_pixels(area_min, detail):
    spec = CacheSpec.enough(image_size=128, crop_mode="squash", area_min=area_min, detail=detail)
    # At 0.8 many aspect ratios do not fit, and the crop is the full image.
    above = 0.02 if area_min < 0.8 else 0.06
    assert -0.02 <= fraction_with_enough_pixels(3000, 3000, "squash", area_min, spec, 128) - detail <= above
    assert fraction_with_enough_pixels(4000, 3000, "squash", area_min, spec, 128) >= detail - 0.02


@pytest.mark.parametrize("crop_mode", ["center", "border"])
def test_other_crop_modes_have_enough_pixels(crop_mode):
    spec = CacheSpec.enough(image_size=128, crop_mode=crop_mode, area_min=0.35, detail=0.5)
    assert fraction_with_enough_pixels(4000, 3000, crop_mode, 0.35, spec, 128) > 0.4


def test_full_detail_is_for_the_smallest_crop():
    """35 % of the area at aspect ratio 3:4 is 0.512 of the shorter side: 128 px of 250."""
    spec = CacheSpec.enough(image_size=128, crop_mode="squash", area_min=0.35, detail=1.0)
    assert spec == CacheSpec(math.ceil(128 / math.sqrt(0.35 * 0.75)), "shorter") == CacheSpec(250, "shorter")
    assert CacheSpec.enough(image_size=96, crop_mode="squash", area_min=1.0, detail=1.0) == CacheSpec(96, "shorter")


@given(st.integers(2, 5000), st.integers(2, 5000), st.integers(1, 600), st.sampled_from(["shorter", "mean", "longer"]))
def test_cached_image_is_never_enlarged_and_has_the_same_aspect_ratio(width, height, px, side):
    spec = CacheSpec(px, side)
    across, down = spec.size(width, height)
    assert min(2, width) <= across <= width, "at least 2 px if possible"
    assert min(2, height) <= down <= height
    assert spec.size(height, width) == (down, across), "a rotated image has the same bytes"
    rounded = 2 if 2 in (across, down) else 1
    assert abs(across - width * down / height) <= rounded * max(1, width / height) + 1e-6
    actual = {"shorter": min(across, down), "longer": max(across, down), "mean": math.sqrt(across * down)}[side]
    assert actual >= min(px, {"shorter": min, "longer": max, "mean": lambda *sides: 0}[side](width, height))


def smooth(seed, height, width):
    """Noise with less amplitude at higher frequency, as in photos."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    blurred = sum(scale**2 * ndimage.gaussian_filter(noise, (scale, scale, 0)) for scale in (2, 5, 15))
    levels = 128 + 50 * blurred / blurred.std()
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(("detail", "max_difference"), [(1.0, 0.5), (0.5, 1.0)])
@pytest.mark.parametrize("crop_mode", ["squash", "center", "border"])
def test_crops_of_cached_images_equal_crops_of_the_originals(crop_mode, detail, max_difference, tmp_path):
    """Pillow cuts the same box from both. The loader then rounds the box to full pixels."""
    for number in range(8):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        smooth(number, 300, 400).save(tmp_path / "ab"[number % 2] / f"{number}.jpg", quality=95)
    dataset = load_dataset(tmp_path)
    spec = CacheSpec.enough(image_size=64, crop_mode=crop_mode, area_min=0.35, detail=detail)
    reader = memory_cache_reader(dataset, spec)
    differences = []
    for number, box in enumerate(crops(400, 300, crop_mode, 0.35, count=8)):
        size = (
            (64, 64)
            if crop_mode != "border"
            else [round(64 * side / max(box.width, box.height)) for side in (box.width, box.height)]
        )
        original, small = Image.open(dataset.file(number)), Image.fromarray(reader.source(number))
        assert small.height < 200, "cached images are smaller"
        across, down = small.width / 400, small.height / 300
        scaled = [edge * scale for edge, scale in zip(box, (across, down, across, down), strict=True)]
        pair = [
            image.resize(size, Image.Resampling.BICUBIC, box=box_) for image, box_ in ((original, box), (small, scaled))
        ]
        differences.append(np.abs(np.subtract(*[np.asarray(crop, float) for crop in pair])).mean())
    assert np.mean(differences) < max_difference, "gray levels of 256"


def test_small_image_is_cached_unchanged(class_folders):
    dataset = load_dataset(class_folders)
    reader = memory_cache_reader(dataset, CacheSpec(48, "shorter"))
    for sample in (0, 20, 47):
        assert np.array_equal(reader.source(sample), np.asarray(Image.open(dataset.file(sample))))


def test_cached_images_have_the_exif_orientation_applied(tmp_path):
    wide = smooth(3, 20, 60)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    wide.save(tmp_path / "a/turned.png", exif=exif)
    wide.convert("L").save(tmp_path / "a/gray.png")
    wide.save(tmp_path / "b/turned.jpg", exif=exif, quality=95)
    wide.save(tmp_path / "b/wide.jpg", quality=95)
    dataset = load_dataset(tmp_path)
    reader = memory_cache_reader(dataset, CacheSpec(10, "shorter"))
    shapes = {dataset.paths[row]: reader.source(row).shape for row in range(4)}
    assert shapes == {
        "a/turned.png": (30, 10, 3), "a/gray.png": (10, 30, 3), "b/turned.jpg": (30, 10, 3), "b/wide.jpg": (10, 30, 3),
    }  # fmt: skip


def training(dataset, reader, threads=1):
    return TrainingImages(dataset, Preprocessing(image_size=40), 0.3, Key.of(0), threads, reader)


@pytest.mark.parametrize(("workers", "threads"), [(0, 3), (2, 1)])
def test_batches_do_not_depend_on_workers_and_threads(workers, threads, class_folders):
    dataset = load_dataset(class_folders)
    reader = memory_cache_reader(dataset)
    sampler = TrainSampler(
        dataset.labels, ProgressiveSchedule(image_size=Ramp(24, 40), stages=2), 6, 8, 4, "equal", Key.of(3)
    )
    single = list(training_batches(training(dataset, reader), sampler, workers=0))
    parallel = list(training_batches(training(dataset, reader, threads), sampler, workers=workers))
    assert all(torch.equal(first.images, second.images) for first, second in zip(single, parallel, strict=True))
    assert len(single) == len(parallel) == 12


def test_cache_is_read_without_the_originals(class_folders, monkeypatch):
    dataset = load_dataset(class_folders)
    reader = memory_cache_reader(dataset)
    monkeypatch.setattr("efficientnetv2.data.image_io.Path.read_bytes", None)
    for path in class_folders.rglob("*.jpg"):
        path.unlink()
    sampler = TrainSampler(
        dataset.labels, ProgressiveSchedule(image_size=Ramp(24, 40), stages=2), 18, 8, 8, None, Key.of(3)
    )
    batches = list(training_batches(training(dataset, reader), sampler, workers=0))
    assert sum(len(batch.labels) for batch in batches) == 3 * 48
    assert not any(batch.unreadable for batch in batches)


def test_pickled_reader_has_no_pixels(class_folders):
    dataset = load_dataset(class_folders)
    reader = memory_cache_reader(dataset)
    before = reader.source(7).copy()
    pickled = pickle.dumps(reader)
    assert len(pickled) < 20_000, "48 images of 30 px are 130 kB"
    assert np.array_equal(pickle.loads(pickled).source(7), before)


def test_unreadable_image_has_the_same_replacement_and_reason(class_folders):
    dataset = load_dataset(class_folders)
    (class_folders / dataset.paths[20]).write_bytes(b"not an image")
    (class_folders / dataset.paths[47]).write_bytes((class_folders / dataset.paths[47]).read_bytes()[:700])
    request = BatchRequest(0, 0, StepSettings(image_size=32), np.array([20, 47, 3]), np.zeros(3, np.int64))
    direct = training(dataset, None).batch(request)
    cached = training(dataset, memory_cache_reader(dataset)).batch(request)
    assert [sample for sample, _ in direct.unreadable] == [20, 47]
    assert cached.unreadable == direct.unreadable
    assert torch.equal(cached.labels, direct.labels)


def disk_cache(dataset, folder):
    cache = cache_on_disk(folder, cache_job(dataset))
    return cache, cache.reader(np.arange(len(dataset)), source_reader(dataset))


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
def test_damaged_file_is_recognized(damage, class_folders, tmp_path):
    cache, reader = disk_cache(load_dataset(class_folders), tmp_path / "cache")
    cache.path.write_bytes(damage(cache.path.read_bytes()))
    with cache.path.open("rb") as file, pytest.raises(InvalidCacheError):
        CacheIndex.read(file)
    with pytest.raises(InputError, match=r"has changed during the run.* Resume"):
        reader.source(0)


def test_run_does_not_use_a_cache_replaced_by_another(class_folders, tmp_path):
    dataset = load_dataset(class_folders)
    _, reader = disk_cache(dataset, tmp_path / "cache")
    disk_cache(dataset.select(range(20)), tmp_path / "cache")
    request = BatchRequest(0, 0, StepSettings(image_size=32), *[np.zeros(1, np.int64)] * 2)
    failure = str(training(dataset, reader)[request])
    assert "now holds other images" in failure


def cache_digest(reader, count, spec):
    return CacheJob(reader, count, spec, 1).digest()


def test_digest_changes_with_files_size_and_list(class_folders):
    dataset, spec = load_dataset(class_folders), CacheSpec(30, "shorter")
    digest = cache_digest(source_reader(dataset), 48, spec)
    assert digest == cache_digest(source_reader(load_dataset(class_folders)), 48, spec)
    file = Path(dataset.file(5))
    stat = file.stat()
    digests = {digest, cache_digest(source_reader(dataset), 47, spec)}
    digests |= {
        cache_digest(source_reader(dataset), 48, other) for other in (CacheSpec(31, "shorter"), CacheSpec(30, "mean"))
    }
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    digests.add(cache_digest(source_reader(dataset), 48, spec))
    file.write_bytes(file.read_bytes() + b"more")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    digests.add(cache_digest(source_reader(dataset), 48, spec))
    file.unlink()
    digests.add(cache_digest(source_reader(dataset), 48, spec))
    assert len(digests) == 7


def test_digest_changes_if_two_files_are_swapped(class_folders):
    """Even if size and time of both files are the same."""
    dataset = load_dataset(class_folders)
    for row in (0, 1):
        os.utime(dataset.file(row), ns=(0, 0))
        Path(dataset.file(row)).write_bytes(b"of equal size")
        os.utime(dataset.file(row), ns=(0, 0))
    spec = CacheSpec(30, "shorter")
    first, second = (cache_digest(source_reader(dataset.select(rows)), 2, spec) for rows in ([0, 1], [1, 0]))
    assert first != second


def test_cache_of_unreadable_images_raises_for_each(class_folders):
    dataset = load_dataset(class_folders).select([0, 1])
    for row in (0, 1):
        Path(dataset.file(row)).write_bytes(b"not an image")
    reader = memory_cache_reader(dataset)
    for row in (0, 1):
        with pytest.raises(UnreadableImageError, match="is not an image"):
            reader.source(row)


class Counted:
    """A reader of the originals that counts its requests."""

    def __init__(self, dataset):
        self.files, self.requests = source_reader(dataset), 0

    def source(self, sample):
        self.requests += 1
        return self.files.source(sample)

    def name(self, sample):
        return self.files.name(sample)

    def stamps(self, samples):
        return self.files.stamps(samples)

    def ahead(self, samples):
        return self


def counted_job(dataset, **changes):
    reader = Counted(dataset)
    return reader, replace(cache_job(dataset), reader=reader, **changes)


def pixels_of(cache, dataset):
    reader = cache.reader(np.arange(len(dataset)), source_reader(dataset))
    return [reader.source(sample).tobytes() for sample in range(len(dataset))]


def test_cache_on_disk_is_reused(class_folders, tmp_path):
    dataset = load_dataset(class_folders)
    first, job = counted_job(dataset)
    cache = cache_on_disk(tmp_path / "cache", job)
    assert (first.requests, cache.reused) == (2 * 48, False), "header and pixels of each image"
    second, second_job = counted_job(load_dataset(class_folders))
    reused = cache_on_disk(tmp_path / "cache", second_job)
    assert (second.requests, reused.reused) == (0, True)
    assert pixels_of(reused, dataset) == pixels_of(cache, dataset)


def test_memory_and_disk_have_the_same_pixels(class_folders, tmp_path):
    dataset = load_dataset(class_folders)
    cache = cache_on_disk(tmp_path / "cache", cache_job(dataset, threads=1))
    in_ram = cache_in_memory(cache_job(dataset, threads=3), room_bytes=PLENTY)
    assert pixels_of(cache, dataset) == pixels_of(in_ram, dataset)
    assert in_ram.bytes == cache.bytes


def test_memory_is_freed_with_the_last_reader(class_folders):
    reader = memory_cache_reader(load_dataset(class_folders))
    path = reader.path
    assert path.exists()
    del reader
    assert not path.exists()


def change_a_byte(dataset):
    paint(Path(dataset.file(3)), (1, 2, 3))


def touch(dataset):
    os.utime(dataset.file(3), ns=(0, 10**18))


@pytest.mark.parametrize("change", [change_a_byte, touch])
def test_changed_image_makes_the_cache_stale(change, class_folders, tmp_path):
    dataset, lines = load_dataset(class_folders), logged_lines()
    before = cache_on_disk(tmp_path / "cache", cache_job(dataset))
    change(dataset)
    after = cache_on_disk(tmp_path / "cache", cache_job(dataset))
    assert not after.reused
    assert mentions(lines[0], "cache")
    assert after.digest != before.digest
    reader = after.reader(np.arange(48), source_reader(dataset))
    assert np.array_equal(reader.source(3), memory_cache_reader(dataset).source(3))
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix] == ["images.bin"]


def test_truncated_cache_is_rebuilt(class_folders, tmp_path):
    dataset, lines = load_dataset(class_folders), logged_lines()
    file = cache_on_disk(tmp_path / "cache", cache_job(dataset)).path
    os.truncate(file, file.stat().st_size // 2)
    assert not cache_on_disk(tmp_path / "cache", cache_job(dataset)).reused
    assert each_mentions(lines, (file, "cache"))


class Failing(Counted):
    """Two images cannot be read, as during a short network failure; the files do not change."""

    def source(self, sample):
        if sample in (3, 40):
            raise UnreadableImageError(self.name(sample), "input/output error")
        return super().source(sample)


def test_temporarily_unreadable_images_are_read_again(class_folders, tmp_path):
    dataset, lines = load_dataset(class_folders), logged_lines()
    failing_job = replace(cache_job(dataset), reader=Failing(dataset))
    incomplete = cache_on_disk(tmp_path / "cache", failing_job)
    with pytest.raises(UnreadableImageError, match="input/output error"):
        incomplete.reader(np.arange(48), source_reader(dataset)).source(3)
    assert cache_on_disk(tmp_path / "cache", failing_job).reused, "the images are still unreadable"
    assert cache_writer.is_cached(tmp_path / "cache", failing_job)
    assert not cache_writer.is_cached(tmp_path / "cache", cache_job(dataset))
    cache = cache_on_disk(tmp_path / "cache", cache_job(dataset))
    assert each_mentions(lines, (cache.path, "cache"))
    complete = cache_in_memory(cache_job(dataset), room_bytes=PLENTY)
    assert pixels_of(cache, dataset) == pixels_of(complete, dataset)
    assert cache_on_disk(tmp_path / "cache", cache_job(dataset)).reused


def test_exact_size_is_known_before_decoding(class_folders, monkeypatch):
    """Images of different sizes, each cached with a shorter side of 30 px."""
    for number, height in enumerate((31, 60, 200)):
        Image.new("RGB", (300, height)).save(class_folders / f"red/odd_{number}.png")
    dataset = load_dataset(class_folders)
    expected = 48 * 30 * 30 * 3 + (291 + 150 + 45) * 30 * 3  # 300 x 31, 60, 200 with 30 px of height
    cache = cache_in_memory(cache_job(dataset), room_bytes=PLENTY)
    index_bytes = cache.bytes - PIXELS_OFFSET - expected
    assert 51 * 16 <= index_bytes <= 51 * 16 + 4096

    def fail(*_):
        raise AssertionError("decoded although there is no room")

    monkeypatch.setattr(cache_writer, "load_resized_image", fail)
    message = "51 images, kept decoded with their shorter side up to 30 px, need 1 MiB, .* Set `cache=disk`, or keep"
    with pytest.raises(InputError, match=message):
        cache_in_memory(cache_job(dataset), room_bytes=expected)


def test_full_disk_is_rejected_before_writing(class_folders, tmp_path, monkeypatch):
    usage = cache_writer.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_writer.shutil, "disk_usage", lambda _: usage._replace(free=2**30 + 100_000))
    with pytest.raises(InputError, match=mentioning("1", "MiB", "EFFNETV2_CACHE=FOLDER")):
        cache_on_disk(tmp_path / "cache", cache_job(load_dataset(class_folders)))
    assert not (tmp_path / "cache/images.bin").exists()


def test_unwritable_folder_is_named(class_folders, tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(InputError, match=mentioning("EFFNETV2_CACHE=FOLDER")):
        cache_on_disk(tmp_path / "file/cache", cache_job(load_dataset(class_folders)))


@pytest.fixture
def large(tmp_path):
    """Images with more than 1 MB of pixels, so that writing the cache takes some time."""
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
def slow_progress(what, total, unit):
    def counted(done):
        print(what, done, flush=True)
        while (what, done) == ("filling the cache", 16) and not Path(sys.argv[3]).exists():
            time.sleep(0.01)
    yield counted

dataset = load_dataset(sys.argv[1])
try:
    job = CacheJob(source_reader(dataset), len(dataset), CacheSpec(160, "shorter"), 2)
    with reported_to(slow_progress):
        print(cache_on_disk(Path(sys.argv[2]), job).reused)
except InputError as error:
    sys.exit(str(error))
"""


@contextmanager
def cache_process(images, cache, continue_file, **options):
    """A process that writes a cache; after 16 images it waits for ``continue_file``."""
    command = [sys.executable, "-c", FILL, str(images), str(cache), str(continue_file)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **streams, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_line(process, start):
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(process.stderr.read())


def test_killed_process_leaves_no_valid_cache(large, tmp_path):
    with cache_process(large, tmp_path / "cache", tmp_path / "never") as process:
        wait_for_line(process, "filling the cache 16")
        process.send_signal(signal.SIGKILL)
    files = [path.name for path in (tmp_path / "cache").iterdir()]
    assert "images.bin" not in files
    assert any(name.endswith(".partial") for name in files), "killed too early"
    dataset = load_dataset(large)
    assert not cache_on_disk(tmp_path / "cache", cache_job(dataset, CacheSpec(160, "shorter"))).reused
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) in (["images.bin", "lock"], ["images.bin"])
    assert cache_on_disk(tmp_path / "cache", cache_job(dataset, CacheSpec(160, "shorter"))).reused


def test_ctrl_c_stops_writing_and_leaves_no_files(large, tmp_path):
    """It waits for a file that is never written, so only the signal ends it."""
    with cache_process(large, tmp_path / "cache", tmp_path / "never") as process:
        wait_for_line(process, "filling the cache 16")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)
        assert "KeyboardInterrupt" in process.stderr.read()
    assert not any(path.suffix for path in (tmp_path / "cache").iterdir())


def test_two_processes_write_the_same_cache_once(large, tmp_path):
    continue_file = tmp_path / "continue"
    with cache_process(large, tmp_path / "cache", continue_file) as first:
        wait_for_line(first, "filling the cache 16")
        with cache_process(large, tmp_path / "cache", continue_file) as second:
            assert "waiting for it" in second.stdout.readline()
            continue_file.touch()
            assert first.wait(timeout=120) == second.wait(timeout=120) == 0
            assert second.stdout.read().splitlines()[-1] == "True"
        assert first.stdout.read().splitlines()[-1] == "False"


def test_disk_full_while_writing_is_a_short_message(large, tmp_path):
    """A limit on the file size fails like a full disk."""
    import resource

    def limit_file_size():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    with cache_process(large, tmp_path / "cache", large, preexec_fn=limit_file_size) as process:
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert mentions(stderr, "EFFNETV2_CACHE=FOLDER", "place")
    assert "Traceback" not in stderr
    assert not any(path.suffix for path in (tmp_path / "cache").iterdir())


def test_wrong_size_in_a_header_loses_no_image(class_folders, monkeypatch):
    """As if a file changes between measuring and writing."""
    dataset = load_dataset(class_folders)
    expected = memory_cache_reader(dataset)
    monkeypatch.setattr(cache_writer, "image_size", lambda source: (20, 20))
    actual = memory_cache_reader(dataset)
    assert all(np.array_equal(actual.source(row), expected.source(row)) for row in range(48))


def test_unused_caches_are_removed_after_a_month(class_folders, tmp_path):
    dataset, lines = load_dataset(class_folders), logged_lines()
    old, recent = (
        cache_on_disk(tmp_path / name, cache_job(dataset, CacheSpec(20, "shorter"))).path for name in ("old", "young")
    )
    for file, days in ((old, 31), (recent, 29)):
        os.utime(file, (time.time() - days * 86400,) * 2)
    (tmp_path / "something else").mkdir()
    cache_on_disk(tmp_path / "new", cache_job(dataset))
    assert not old.parent.exists()
    assert recent.exists()
    assert (tmp_path / "something else").exists()
    assert each_mentions(lines, (old.parent, "30"))
    os.utime(recent, (time.time() - 29 * 86400,) * 2)
    assert cache_on_disk(recent.parent, cache_job(dataset, CacheSpec(20, "shorter"))).reused
    assert time.time() - recent.stat().st_mtime < 60, "using a cache updates its time"


def test_folder_of_another_program_is_not_removed(tmp_path):
    """COLMAP writes files of this name."""
    file = tmp_path / "scene" / "images.bin"
    file.parent.mkdir()
    file.write_bytes(bytes(100))
    os.utime(file, (time.time() - 31 * 86400,) * 2)
    remove_unused_caches(tmp_path)
    assert file.exists()


def test_unfinished_caches_of_killed_runs_are_removed_after_a_month(tmp_path):
    files = [tmp_path / name / ".images.bin.0123abcd.partial" for name in ("old", "recent", "filling")]
    for file, days in zip(files, (31, 29, 31), strict=True):
        file.parent.mkdir()
        file.touch()
        (file.parent / "lock").touch()
        os.utime(file, (time.time() - days * 86400,) * 2)
    with FileLock(tmp_path / "filling/lock"):
        remove_unused_caches(tmp_path)
    assert [file.parent.exists() for file in files] == [False, True, True]
    assert files[2].exists()


def test_other_files_next_to_an_old_cache_stay(class_folders, tmp_path):
    file = cache_on_disk(tmp_path / "old", cache_job(load_dataset(class_folders), CacheSpec(20, "shorter"))).path
    (tmp_path / "old" / "notes.txt").write_text("mine")
    os.utime(file, (time.time() - 31 * 86400,) * 2)
    remove_unused_caches(tmp_path)
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["notes.txt"]


def test_locked_or_already_removed_cache_is_ignored(class_folders, tmp_path, monkeypatch):
    """It is removed between listing and reading."""
    dataset, lines = load_dataset(class_folders), logged_lines()
    files = [
        cache_on_disk(tmp_path / name, cache_job(dataset, CacheSpec(20, "shorter"))).path
        for name in ("locked", "removed")
    ]
    for file in files:
        os.utime(file, (time.time() - 31 * 86400,) * 2)
    glob = Path.glob

    def list_and_remove(self, pattern):
        found = list(glob(self, pattern))
        if files[1] in found:
            shutil.rmtree(files[1].parent)
        return found

    with FileLock(files[0].parent / "lock"), monkeypatch.context() as patch:
        patch.setattr(Path, "glob", list_and_remove)
        remove_unused_caches(tmp_path)
    assert files[0].exists()
    assert lines == []


def test_progress_ends_at_the_number_of_images(class_folders):
    progress = {}

    @contextmanager
    def record(what, total, unit):
        yield lambda done: progress.setdefault((what, total), []).append(done)

    with reported_to(record):
        cache_in_memory(cache_job(load_dataset(class_folders)), room_bytes=PLENTY)
    assert set(progress) == {("measuring images", 48), ("filling the cache", 48)}
    assert all(done == sorted(done) and done[-1] == 48 for done in progress.values())


def test_sizes_are_in_gib_from_1_gib():
    assert [format_bytes(count) for count in (10, 340 * 2**20, 2**30, 12_345_678_901)] == [
        "1 MiB", "340 MiB", "1.0 GiB", "11.5 GiB",
    ]  # fmt: skip


def _read_all(reader, start, results):
    start.wait()
    before = _private_bytes()
    total = sum(int(reader.source(sample).sum()) for sample in range(len(reader.rows)))
    results.put((total, _private_bytes() - before))


def _private_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux to measure shared memory")
@pytest.mark.parametrize("where", ["ram", "disk"])
def test_processes_share_the_memory_of_a_cache(where, large, tmp_path):
    dataset = load_dataset(large)
    job = cache_job(dataset, CacheSpec(160, "shorter"))
    cache = cache_in_memory(job, room_bytes=PLENTY) if where == "ram" else cache_on_disk(tmp_path / "cache", job)
    reader = cache.reader(np.arange(24), source_reader(dataset))
    expected = sum(int(reader.source(sample).sum()) for sample in range(24))
    start, results = SERVER.Event(), SERVER.Queue()
    processes = [SERVER.Process(target=_read_all, args=(reader, start, results)) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    measured = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert [total for total, _ in measured] == [expected] * 2
    assert cache.bytes > 1_800_000
    assert max(private for _, private in measured) < 900_000, "no process has a copy"
