"""``effnetv2 bench train``: training with its reading, and what of it is waiting."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.command_line import effnetv2
from torch.utils.data import Dataset

from efficientnetv2.commands import bench_step, bench_train
from efficientnetv2.commands.bench_sides import OURS
from efficientnetv2.commands.bench_step import Peer, Work
from efficientnetv2.commands.bench_train import TimmLoop, fair_steps, loops, our_waits, trained
from efficientnetv2.data.ahead import answers_of
from efficientnetv2.data.manifest import read

CPU = torch.device("cpu")
WORK = Work("efficientnetv2_b0", 32, 4, rate=0.1, device=CPU, num_classes=3)


def test_speed_and_waiting_are_those_of_the_seconds(class_folders, tmp_path):
    small = ("--image-px", 32, "--batch-images", 4, "--rounds", 1, "--steps", 2, "--workers", 1)
    done = effnetv2("bench", "train", class_folders, *small, "--device", "cpu", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["pictures"], found["steps"], found["batch_images"]) == (48, 2, 4)
    assert "Precision: " in found["choice"]
    assert next(iter(found["sides"])) == "timm, 4 workers"
    assert len(found["sides"]) == 3
    for side in found["sides"].values():
        (seconds,), (waited,) = side["seconds"], side["waited_s"]
        assert 0 < waited < seconds
        assert side["waiting_share"]["median"] == pytest.approx(waited / seconds)
        assert side["images_per_s"]["median"] == pytest.approx(2 * 4 / seconds)
        assert side["ours_ahead"]["median"] == pytest.approx(seconds / found["sides"][OURS]["seconds"][0])
    assert "waiting" in done.stderr


def test_timms_loader_gives_every_picture_once_a_pass_and_goes_on(class_folders):
    manifest = read(str(class_folders))
    manifest = manifest.select(np.arange(0, len(manifest), 6))
    batches = TimmLoop(Peer("timm"), workers=0)._batches(WORK, manifest)
    passes = [[next(batches) for _ in range(2)] for _ in range(2)]
    for one in passes:
        assert sorted(torch.cat([labels for _, labels in one]).tolist()) == sorted(manifest.labels.tolist())
        assert all(images.shape == (4, 3, 32, 32) and images.dtype == torch.float32 for images, _ in one)


def test_waiting_is_the_time_until_the_batch_comes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench_train, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow():
        for number in range(2):
            now[0] += 3
            yield torch.zeros(1), torch.tensor(number)

    waiting = bench_train._Waiting(slow())
    given = iter(waiting)
    for number in range(2):
        assert int(next(given)[1]) == number
        assert waiting.seconds == 3
        now[0] += 50  # the consumer's own time is no waiting


def test_first_steps_do_not_count_and_sides_take_turns(class_folders, monkeypatch):
    order, counts = [], []

    def waits(name):
        order.append(name)
        yield from (5.0, 5.0, 0.25, 0.25, 0.25)
        raise AssertionError("one step too many")

    class Fake:
        def __str__(self):
            return "other"

        def steps(self, work, manifest):
            return waits("other")

    monkeypatch.setattr(bench_train, "loops", lambda work, workers: [Fake()])
    monkeypatch.setattr(bench_train, "our_waits", lambda *words: waits("ours"))
    found = trained(
        WORK, read(str(class_folders)), rounds=2, steps=3, workers=None, say=print, counted=counts.append
    )
    assert order == ["other", "ours", "ours", "other"]
    assert found.waited == {"other": [0.75, 0.75], OURS: [0.75, 0.75]}
    assert counts == [20, 40, 60, 80]
    assert found.images == 12


class _Slow(Dataset):
    """Of two workers together a batch comes every 40 ms."""

    def __getitem__(self, request):
        time.sleep(0.08)
        return torch.zeros(1)


def test_batches_that_were_read_while_the_first_step_compiled_do_not_count(class_folders, monkeypatch):
    """A step takes 20 ms, its batch comes after 40: half of the time is waiting, whatever was there to begin with."""

    def steps(work, recipe, read, labels):
        batches, compiling = iter(read(range(1000))), 0.5
        while True:
            began = time.perf_counter()
            next(batches)
            waited = time.perf_counter() - began
            time.sleep(0.02 + compiling)
            compiling = 0.0
            yield SimpleNamespace(waited_s=waited)

    def slowly(pictures, requests, *, workers, pin_memory):
        return answers_of(_Slow(), requests, workers, pin_memory)

    monkeypatch.setattr(bench_train, "loops", lambda work, workers: [])
    monkeypatch.setattr(bench_train, "our_steps", steps)
    monkeypatch.setattr(bench_train, "training_batches", slowly)
    manifest = read(str(class_folders))
    fair = fair_steps(WORK, 2)
    assert fair == 8, "as many as two workers read ahead"
    found = trained(WORK, manifest, rounds=3, steps=fair, workers=2, say=print, counted=lambda done: None)
    assert found.waiting_share(OURS).median == pytest.approx(0.5, abs=0.12)


def test_as_many_steps_count_as_any_side_reads_ahead(monkeypatch):
    """Ours four batches a worker, timm two."""
    monkeypatch.setattr(bench_train, "loops", lambda work, workers: [TimmLoop(Peer("timm"), 10)])
    assert [fair_steps(WORK, workers) for workers in (0, 4, 6)] == [20, 20, 24]
    monkeypatch.setattr(bench_train, "loops", lambda work, workers: [])
    assert fair_steps(WORK, None) == 8, "on a CPU no process of ours reads"


def test_timm_reads_as_far_ahead_as_is_left_out():
    """As its loader says, which is PyTorch's default."""
    from torch.utils.data import DataLoader

    loader = DataLoader(range(4), num_workers=1)  # more would warn on a machine of one core
    assert TimmLoop(Peer("timm"), 3).ahead == 3 * loader.prefetch_factor
    given = list(bench_train._read_meanwhile(range(10), 3))
    assert given == [0, 4, 5, 6, 7, 8, 9]
    assert list(bench_train._read_meanwhile(range(10), 0)) == list(range(10))


def test_ours_trains_on_the_pictures_of_data_with_randaugment(class_folders, monkeypatch):
    manifest = read(str(class_folders))
    seen = []
    monkeypatch.setattr(
        bench_train,
        "our_steps",
        lambda work, recipe, read, labels: seen.append((recipe, labels)) or iter(()),
    )
    trained_nothing = our_waits(WORK, bench_train.our_recipe(WORK)[0], manifest, 0)
    assert list(trained_nothing) == []
    assert seen[0][1].tolist() == manifest.labels.tolist()
    given = []

    def waits(work, recipe, manifest, workers):
        given.append((recipe, workers))
        yield from (0.0,) * 3

    monkeypatch.setattr(bench_train, "loops", lambda work, workers: [])
    monkeypatch.setattr(bench_train, "our_waits", waits)
    trained(WORK, manifest, rounds=1, steps=1, workers=None, say=print, counted=lambda done: None)
    recipe, workers = given[0]
    assert recipe.progressive.at(0, steps=10).randaugment == 9
    assert (recipe.augment.flip, recipe.augment.randaugment_layers, workers) == ("horizontal", 2, 0)


def test_the_loops_are_timms_own_and_its_tuned_ones(monkeypatch):
    monkeypatch.setattr(bench_train, "lower_precision", lambda device: "bf16")
    monkeypatch.setattr(bench_train, "cores", lambda: 3)
    tuned = "timm channels-last fused bf16, "
    assert [str(one) for one in loops(WORK, None)] == [
        "timm, 4 workers", f"{tuned}0 workers", f"{tuned}3 workers",
    ]  # fmt: skip
    assert [str(one) for one in loops(WORK, 1)] == ["timm, 4 workers", f"{tuned}1 worker"]
    monkeypatch.setattr(bench_step.importlib.util, "find_spec", lambda name: None)
    assert loops(WORK, None) == []
