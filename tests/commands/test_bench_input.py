"""``effnetv2 bench input``: every side does the whole way, on one core, from the same pictures."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.command_line import effnetv2
from tests.messages import mentioning, mentions

from efficientnetv2.base.errors import InputError
from efficientnetv2.commands import bench_input, bench_job, demo
from efficientnetv2.commands.bench_input import CACHED, Ours, Reading, able, kept_in_memory, one_core
from efficientnetv2.commands.bench_pictures import some_pictures
from efficientnetv2.commands.bench_sides import OURS
from efficientnetv2.commands.bench_step import Work
from efficientnetv2.commands.source import Source
from efficientnetv2.data.manifest import read

ROOT = Path(__file__).parents[2]


def test_ratios_are_those_of_the_seconds_and_every_side_is_there(class_folders, tmp_path):
    words = ("--image-px", 16, "--image-px", 24, "--pictures", 6, "--rounds", 3, "--json")
    done = effnetv2("bench", "input", class_folders, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pictures"] == 6
    assert "timm" in found["versions"]
    assert [size["image_px"] for size in found["sizes"]] == [16, 24]
    for size in found["sizes"]:
        assert set(size["sides"]) == {"timm", "torchvision v2", OURS, CACHED}
        for side in size["sides"].values():
            assert len(side["seconds"]) == 3
            speeds = [6 / one for one in side["seconds"]]
            assert side["images_per_s"]["median"] == pytest.approx(statistics.median(speeds))
            for name, ours in (("ours_ahead", OURS), ("cached_ahead", CACHED)):
                seconds = zip(side["seconds"], size["sides"][ours]["seconds"], strict=True)
                rounds = [theirs / our for theirs, our in seconds]
                assert side[name]["median"] == pytest.approx(statistics.median(rounds))
    assert mentions(done.stderr, "6", "48")
    assert "cached by" in done.stderr


def test_without_data_the_pictures_of_the_clone_are_read():
    words = ("--image-px", 16, "--pictures", 2, "--rounds", 1, "--json")
    done = effnetv2("bench", "input", *words, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"] == "examples/land_cover/pictures.csv"


def test_without_data_and_clone_the_message_asks_for_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "a/b/c/d/demo.py"))
    with pytest.raises(InputError, match=mentioning("DATA")):
        some_pictures(None, most=1, least=1, say=print)


def test_pictures_are_spread_over_the_classes_and_readable(class_folders):
    few = some_pictures(Source(str(class_folders)), most=7, least=1, say=print)
    assert len(few) == 7
    assert set(few.labels.tolist()) == {0, 1, 2}
    (class_folders / "blue/blue_00.jpg").write_bytes(b"not a picture")
    lines = []
    chosen = some_pictures(Source(str(class_folders)), most=48, least=1, say=lines.append)
    assert len(chosen) == 47
    assert not any("blue_00" in path for path in chosen.paths)
    assert "47 of 48" in lines[-1]


def test_too_few_pictures_are_refused(class_folders, tmp_path):
    words = ("--batch-images", 64, "--image-px", 32, "--device", "cpu")
    done = effnetv2("bench", "train", class_folders, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "48", "64", "training")


def test_pictures_that_were_not_looked_at_are_not_said_to_be_missing(class_folders):
    (class_folders / "blue/blue_00.jpg").write_bytes(b"")  # the first one is among those that are looked at
    few = "has 39 readable training pictures among the 40 that were looked at, but 40 are needed"
    with pytest.raises(InputError, match=few):
        some_pictures(Source(str(class_folders)), most=40, least=40, say=print)
    with pytest.raises(InputError, match=mentioning("47", "64", "--batch-images")):
        some_pictures(Source(str(class_folders)), most=64, least=64, say=print)


def test_a_batch_may_be_larger_than_what_is_looked_at_otherwise(class_folders, monkeypatch):
    asked = []

    def looked_at(source, *, most, least, say):
        asked.append((most, least))
        raise InputError("enough")

    monkeypatch.setattr(bench_job, "some_pictures", looked_at)
    for images in (32, 2048):
        work = Work("efficientnetv2_b0", 64, images, 0.2, torch.device("cpu"))
        with pytest.raises(InputError, match="enough"):
            bench_job.bench_train(work, None, rounds=1, steps=1, workers=0, as_json=True)
    assert asked == [(1024, 32), (4096, 2048)]


def test_bare_pixels_are_refused(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(b"\1" + bytes(3072) + b"\0" + bytes(range(256)) * 12)
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match="nothing to decode"):
        some_pictures(Source(str(tmp_path)), most=2, least=1, say=print)


def reading_of(folder: Path) -> Reading:
    manifest = read(str(folder))
    return Reading(manifest.select(np.arange(0, len(manifest), 8)), image_px=16, batch_images=4)


def test_every_side_gives_each_picture_once_in_float_batches(class_folders, monkeypatch):
    reading = reading_of(class_folders)
    assert len(reading.manifest) == 6
    batches: list[torch.Tensor] = []
    stack, augmented = torch.stack, Ours.augmented

    def stacked(pictures):
        batches.append(stack(pictures))
        return batches[-1]

    def ours(*words):
        batches.append(augmented(*words))
        return batches[-1]

    sides = reading.sides()
    monkeypatch.setattr(bench_input.torch, "stack", stacked)
    monkeypatch.setattr(Ours, "augmented", ours)
    for side in ("timm", "torchvision v2"):
        sides[side]()
        assert [(*one.shape, one.dtype) for one in batches] == SHAPES, side
        batches.clear()
    monkeypatch.setattr(bench_input.torch, "stack", stack)
    for side in (OURS, CACHED):
        sides[side]()
        assert [(*one.shape, one.dtype) for one in batches] == SHAPES, side
        first = batches[0].clone()
        batches.clear()
        sides[side]()
        assert not torch.equal(first, batches[0]), "another round has other draws"
        batches.clear()


SHAPES = [(4, 3, 16, 16, torch.float32), (2, 3, 16, 16, torch.float32)]


def test_the_cached_side_opens_no_file(class_folders):
    reading = reading_of(class_folders)
    plain, cached = Ours.of(reading), Ours.of(reading, kept_in_memory(reading))
    shutil.rmtree(class_folders)
    cached.round_()
    with pytest.raises(InputError, match="unreadable"):
        plain.round_()


def test_who_cannot_read_the_pictures_is_left_out_but_never_ours():
    def fails():
        raise RuntimeError("no such format\nat all")

    lines: list[str] = []
    sides = {"other": fails, OURS: lambda: None}
    assert list(able(sides, lines.append)) == [OURS]
    assert lines == ["other is left out, for it can't read these pictures: no such format"]
    with pytest.raises(RuntimeError):
        able({CACHED: fails}, print)


def test_without_timm_the_others_are_measured(class_folders, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert list(reading_of(class_folders).sides(cached=False)) == ["torchvision v2", OURS]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not say")
def test_one_core_within_and_all_of_them_after():
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()

    def fails():
        with one_core():
            assert len(os.sched_getaffinity(0)) == torch.get_num_threads() == 1
            raise InputError("on the way")

    with pytest.raises(InputError, match="on the way"):
        fails()
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == (before, threads)
