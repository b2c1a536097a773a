"""The benchmark of reading: every library runs the full pipeline on one core with the same images."""

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


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["input_path", *map(str, args)])
    input_path.main()


def test_ratios_are_computed_from_the_seconds_of_each_side(class_folders, monkeypatch, capsys):
    args = ("--as-is", "--image-size", 16, "--image-size", 24, "--images", 6, "--rounds", 3, "--json")
    run(monkeypatch, class_folders, *args)
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert found["images"] == 6
    assert [size["image_size"] for size in found["sizes"]] == [16, 24]
    for size in found["sizes"]:
        assert set(size["sides"]) == {"timm", "torchvision v2", OURS, CACHED}
        for side in size["sides"].values():
            assert len(side["seconds"]) == 3
            speeds = [6 / seconds for seconds in side["seconds"]]
            assert side["images_per_s"]["median"] == pytest.approx(statistics.median(speeds))
            for name, ours in (("ours_ahead", OURS), ("cached_ahead", CACHED)):
                seconds = zip(side["seconds"], size["sides"][ours]["seconds"], strict=True)
                rounds = [other / own for other, own in seconds]
                assert side[name]["median"] == pytest.approx(statistics.median(rounds))
    assert "Measured on 6 images" in output.err


def test_default_data_is_in_the_repository():
    assert sample(None, 2).source == "examples/land_cover/images.csv"


@pytest.mark.parametrize("args", [(), ("DATA", "--as-is", "--record")])
def test_results_of_other_data_cannot_be_recorded(args, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, *args)
    assert "--as-is." in capsys.readouterr().err


def test_sample_has_all_classes_and_is_readable(class_folders):
    few = sample(str(class_folders), 7)
    assert len(few) == 7
    assert set(few.labels.tolist()) == {0, 1, 2}
    (class_folders / "blue/blue_00.jpg").write_bytes(b"not an image")
    chosen = sample(str(class_folders), 48)
    assert len(chosen) == 47
    assert not any("blue_00" in path for path in chosen.paths)


def make_reading(folder: Path) -> Reading:
    dataset = load_dataset(str(folder))
    return Reading(dataset.select(np.arange(0, len(dataset), 8)), image_size=16, batch_size=4)


def test_each_side_returns_each_image_once_in_float_batches(class_folders, monkeypatch):
    reading = make_reading(class_folders)
    assert len(reading.dataset) == 6
    batches: list[torch.Tensor] = []
    stack, augmented = torch.stack, Ours.augmented

    def record_stack(images):
        batches.append(stack(images))
        return batches[-1]

    def record_augmented(*args):
        batches.append(augmented(*args))
        return batches[-1]

    sides = reading.sides()
    monkeypatch.setattr(input_path.torch, "stack", record_stack)
    monkeypatch.setattr(Ours, "augmented", record_augmented)
    for side in ("timm", "torchvision v2"):
        sides[side]()
        assert [(*batch.shape, batch.dtype) for batch in batches] == SHAPES, side
        batches.clear()
    monkeypatch.setattr(input_path.torch, "stack", stack)
    for side in (OURS, CACHED):
        sides[side]()
        assert [(*batch.shape, batch.dtype) for batch in batches] == SHAPES, side
        first = batches[0].clone()
        batches.clear()
        sides[side]()
        assert not torch.equal(first, batches[0]), "another round has other crops"
        batches.clear()


SHAPES = [(4, 3, 16, 16, torch.float32), (2, 3, 16, 16, torch.float32)]


def test_cached_side_opens_no_file(class_folders):
    reading = make_reading(class_folders)
    plain, cached = Ours.of(reading), Ours.of(reading, kept_in_memory(reading))
    shutil.rmtree(class_folders)
    cached.round_()
    with pytest.raises(InputError, match="unreadable"):
        plain.round_()


def test_library_that_cannot_read_the_images_is_skipped():
    def fail():
        raise RuntimeError("no such format\nat all")

    lines: list[str] = []
    sides = {"other": fail, OURS: lambda: None}
    assert list(able(sides, lines.append)) == [OURS]
    assert lines == ["other is left out, because it can't read these images: no such format"]
    with pytest.raises(RuntimeError):
        able({CACHED: fail}, print)


def test_timm_is_skipped_if_missing(class_folders, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert list(make_reading(class_folders).sides(cached=False)) == ["torchvision v2", OURS]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not supported by the system")
def test_one_core_is_used_and_restored():
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()

    def fail():
        with one_core():
            assert len(os.sched_getaffinity(0)) == torch.get_num_threads() == 1
            raise InputError("inside")

    with pytest.raises(InputError, match="inside"):
        fail()
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == (before, threads)
