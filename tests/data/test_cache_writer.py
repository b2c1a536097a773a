"""Filling a cache: room, reuse, two at once, kills, full disks, Ctrl-C."""

from __future__ import annotations

import os
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
from filelock import FileLock
from PIL import Image
from tests.command_line import SERVER
from tests.conftest import COLORS, paint
from tests.data.caches import PLENTY, in_a_cache, order
from tests.log_lines import logged_lines
from tests.messages import each_mentions, mentioning, mentions

from efficientnetv2.data import cache_writer
from efficientnetv2.data.cache_writer import (
    cache_in_memory,
    cache_on_disk,
    format_bytes,
    remove_unused_caches,
)
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.image_cache import PIXELS_OFFSET, CacheSpec
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.readers import source_reader
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.logs import reported_to


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
    """Two pictures can't be had, as over a mount that fails for a moment; the files stay as they are."""

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
    """Pictures of many sizes, of which a sample would say little: 30 px of the shorter side are kept of each."""
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
    words = "51 images, kept decoded with their shorter side up to 30 px, need 1 MiB, .* Use --cache disk, or keep"
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
    """Pictures enough that filling takes a moment, and that their pixels pass 1 MB."""
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
from efficientnetv2.data.image_cache import CacheSpec
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
    """A process that fills a cache; after 16 pictures it waits until the file ``go_on`` is there."""
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
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) in (
        ["lock", "pictures.bin"],
        ["pictures.bin"],
    )
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
    """All but the first picture take until after the pool has been told to stop."""
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
        cache_on_disk(tmp_path / name, order(dataset, CacheSpec(20, "shorter"))).path
        for name in ("old", "young")
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


def test_a_cache_that_another_run_is_at_or_has_removed_already_is_left_alone(
    class_folders, tmp_path, monkeypatch
):
    """Between the listing and the look at it."""
    dataset, said = load_dataset(class_folders), logged_lines()
    files = [
        cache_on_disk(tmp_path / name, order(dataset, CacheSpec(20, "shorter"))).path
        for name in ("taken", "gone")
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
    filled = (
        cache_in_memory(big, room_bytes=PLENTY) if where == "ram" else cache_on_disk(tmp_path / "cache", big)
    )
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
