"""The benchmark of reading: every side does the whole way, on one core, from the same images."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import input_path
from benchmarks.input_path import CACHED, Ours, Reading, able, kept_in_memory, one_core, sample
from benchmarks.train_step import OURS

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.utils.errors import InputError


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["input_path", *map(str, words)])
    input_path.main()


def test_ratios_are_those_of_the_seconds_and_every_side_is_there(class_folders, monkeypatch, capsys):
    words = ("--as-is", "--image-size", 16, "--image-size", 24, "--images", 6, "--rounds", 3, "--json")
    run(monkeypatch, class_folders, *words)
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["images"] == 6
    assert [size["image_size"] for size in found["sizes"]] == [16, 24]
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
    assert "Measured on 6 images" in printed.err


def test_without_data_the_images_of_the_repository_are_read():
    assert sample(None, 2).source == "examples/land_cover/pictures.csv"


@pytest.mark.parametrize("words", [(), ("DATA", "--as-is", "--record")])
def test_what_cannot_be_recorded_is_refused(words, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, *words)
    assert "--as-is." in capsys.readouterr().err


def test_images_are_spread_over_the_classes_and_readable(class_folders):
    few = sample(str(class_folders), 7)
    assert len(few) == 7
    assert set(few.labels.tolist()) == {0, 1, 2}
    (class_folders / "blue/blue_00.jpg").write_bytes(b"not a picture")
    chosen = sample(str(class_folders), 48)
    assert len(chosen) == 47
    assert not any("blue_00" in path for path in chosen.paths)


def test_bare_pixels_are_refused(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(b"\1" + bytes(3072) + b"\0" + bytes(range(256)) * 12)
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match="nothing to decode"):
        sample(str(tmp_path), 2)


def reading_of(folder: Path) -> Reading:
    dataset = load_dataset(str(folder))
    return Reading(dataset.select(np.arange(0, len(dataset), 8)), image_size=16, batch_size=4)


def test_every_side_gives_each_picture_once_in_float_batches(class_folders, monkeypatch):
    reading = reading_of(class_folders)
    assert len(reading.dataset) == 6
    batches: list[torch.Tensor] = []
    stack, augmented = torch.stack, Ours.augmented

    def stacked(pictures):
        batches.append(stack(pictures))
        return batches[-1]

    def ours(*words):
        batches.append(augmented(*words))
        return batches[-1]

    sides = reading.sides()
    monkeypatch.setattr(input_path.torch, "stack", stacked)
    monkeypatch.setattr(Ours, "augmented", ours)
    for side in ("timm", "torchvision v2"):
        sides[side]()
        assert [(*one.shape, one.dtype) for one in batches] == SHAPES, side
        batches.clear()
    monkeypatch.setattr(input_path.torch, "stack", stack)
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
    assert lines == ["other is left out, because it can't read these images: no such format"]
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
