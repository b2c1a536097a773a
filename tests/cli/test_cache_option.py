"""``--cache``: its choices, its messages, its files; a run with a cache resumes bit for bit."""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from tests.cli.test_train_together import ARGS as TOGETHER
from tests.cli.test_train_together import STEADY, losses
from tests.command_line import TINY, effnetv2, killed_at, run_ok, run_refused
from tests.conftest import COLORS, paint
from tests.faults.test_kill_and_resume import ARGS, bits, kill_in_the_middle, rows, start
from tests.messages import mentioning, mentions
from tests.processes import effnetv2_together
from tests.recipes import with_overrides
from tests.training.test_time_limit import BEGINNING

from efficientnetv2.data.cache_writer import CacheSpec
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.preprocessing import Bands
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.training import image_cache
from efficientnetv2.training.image_cache import build_cache, estimate_cache
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.resolve_image_sizes import settings_by_size
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.run_request import RunOptions, RunRequest
from efficientnetv2.training.run_setup import ImageCounts
from efficientnetv2.training.time_budget import LengthBudget
from efficientnetv2.training.timing import LinearCost, StepTiming, StepTimings
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.resume import resume_run


@pytest.fixture
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFNETV2_CACHE", str(tmp_path / "caches"))
    return tmp_path / "caches/images"


@pytest.fixture
def large(tmp_path):
    """Images of 150 px: the cache stores them smaller, for training at 64 px."""
    for name, color in COLORS.items():
        for number in range(10):
            paint(tmp_path / "large" / name / f"{number}.jpg", color, number, px=150)
    return tmp_path / "large"


def train(images, run, *more, run_command=effnetv2):
    args = ("train", images, *TINY, "--recipe", "quick", "--weights", "none", "--output", run, *more)
    return run_command(*args, cwd=run.parent, environment={"EFFNETV2_CACHE": str(run.parent / "caches")})


def cache_note(run):
    (note,) = [line for line in json.loads((run / "run.json").read_text())["auto_choices"] if line.startswith("Cache:")]
    return note


def test_cache_in_memory_leaves_no_files(large, caches, tmp_path):
    done = train(large, tmp_path / "run", "--cache", "ram")
    assert done.returncode == 0, done.stderr
    # 64 px, crops of 35 % or more: half of them are wider than 0.725 of the shorter side
    assert mentions(cache_note(tmp_path / "run"), "24", "89", "1", "MiB")
    assert cache_note(tmp_path / "run") in (tmp_path / "run/log.txt").read_text()
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["cache_resolution"] == 0.5
    assert json.loads((tmp_path / "run/run.json").read_text())["cache_px"] == 64
    assert not caches.exists()


def test_cache_on_disk_is_reused_by_other_splits(large, caches, tmp_path):
    first = train(large, tmp_path / "first", "--cache", "disk")
    assert first.returncode == 0, first.stderr
    (folder,) = caches.iterdir()
    assert mentions(cache_note(tmp_path / "first"), folder, "30", "89", "1", "MiB", "filled")
    assert mentions(cache_note(tmp_path / "first"), "delete")
    second = train(large, tmp_path / "second", "--cache", "disk", "--seed", "1")
    assert second.returncode == 0, second.stderr
    assert mentions(cache_note(tmp_path / "second"), folder, "1", "MiB", "already")
    third = train(large, tmp_path / "third", "--cache", "disk", "--set", "cache_resolution=1")
    assert mentions(cache_note(tmp_path / "third"), "125"), third.stderr
    assert len(list(caches.iterdir())) == 2, "another size needs another cache"


def test_all_runs_of_a_cross_validation_share_one_cache(large, caches, tmp_path):
    args = ("--folds", "2", "--cache", "disk", "--output", tmp_path / "folds")
    environment = {"EFFNETV2_CACHE": str(tmp_path / "caches")}
    one_stage = ("--set", "progressive.stages=1", "--set", "progressive.image_size=32")
    run_ok("crossval", large, *TINY, *one_stage, *args, cwd=tmp_path, environment=environment)
    (folder,) = caches.iterdir()
    first, second = (cache_note(tmp_path / "folds" / name) for name in ("fold1", "fold2"))
    assert "30 images decoded" in first
    assert mentions(first, folder, "filled")
    assert mentions(second, folder, "already")


def test_cross_validation_resumes_with_another_place_of_the_cache(large, caches, tmp_path):
    """Less memory may be free than at its start. Whether images are cached at all stays as it was."""
    environment = {"EFFNETV2_CACHE": str(tmp_path / "caches")}
    one_stage = ("--set", "progressive.stages=1", "--set", "progressive.image_size=32")
    args = ("crossval", large, *TINY, *one_stage, "--folds", "2", "--output", tmp_path / "folds")
    run_ok(*args, "--cache", "ram", cwd=tmp_path, environment=environment)
    (tmp_path / "folds/report.json").unlink()
    shutil.rmtree(tmp_path / "folds/fold2")
    run_ok(*args, "--resume", "--cache", "disk", cwd=tmp_path, environment=environment)
    (folder,) = caches.iterdir()
    assert mentions(cache_note(tmp_path / "folds/fold2"), folder, "filled")
    assert not mentions(cache_note(tmp_path / "folds/fold1"), folder)


@pytest.mark.parametrize(
    ("args", "facts"),
    [
        (("--cache", "dsk"), ("--cache", "dsk", "did you mean", "disk")),
        (("--set", "cache_resolution=0.5"), ("cache_resolution", "0.5", "--cache")),
        (("--cache", "ram", "--set", "cache_resolution=0"), ("--set", "cache_resolution=0", "0")),
        (("--cache", "ram", "--set", "cache_resolution=1.5"), ("--set", "cache_resolution=1.5", "1")),
    ],
)
def test_wrong_cache_options_are_refused_and_leave_no_files(args, facts, large, caches, tmp_path):
    done = train(large, tmp_path / "run", *args, run_command=run_refused)
    assert mentions(done.stderr, *facts)
    assert not (tmp_path / "run").exists()
    assert not caches.exists()


def test_resume_keeps_the_cache_option(large, caches, tmp_path):
    train(large, tmp_path / "without", run_command=run_ok)
    refused = train(large, tmp_path / "without", "--cache", "ram", "--resume", run_command=run_refused)
    assert mentions(refused.stderr, "--cache: not given there, ram here")
    kill_before_saving = partial(killed_at, "efficientnetv2.training.post_training:save_model")
    train(large, tmp_path / "with", "--cache", "disk", run_command=kill_before_saving)
    train(large, tmp_path / "with", "--resume", run_command=run_ok)
    assert "there already" in (tmp_path / "with/log.txt").read_text(), "run.json has the place of the cache"


@pytest.mark.slow
def test_resume_from_another_cache_gives_the_same_bits(large, caches, tmp_path):
    """Started in memory and resumed from disk with two workers: the same pixels as in memory without workers."""
    run_ok("train", large, *ARGS, "--workers", "0", "--cache", "ram", "--output", tmp_path / "alone", cwd=tmp_path)
    process = start(large, tmp_path / "killed", 2, "--cache", "ram")
    while not (tmp_path / "killed/recipe.yaml").exists() and process.is_running():
        pass
    process.kill()
    kill_in_the_middle(large, tmp_path / "killed", 2, random.Random(3))
    assert not (tmp_path / "killed/model.safetensors").exists(), "the run was killed too late for this test"
    run_ok(
        "train", large, *ARGS, "--workers", 2, "--cache", "disk", "--output", tmp_path / "killed", "--resume",
        cwd=tmp_path,
    )  # fmt: skip
    assert bits(tmp_path / "killed") == bits(tmp_path / "alone")
    run_ok("train", large, *ARGS, "--workers", "0", "--output", tmp_path / "without", cwd=tmp_path)
    assert bits(tmp_path / "without") != bits(tmp_path / "alone"), "the cache was used"
    losses = [[row["loss"] for row in rows(tmp_path / name) if row["kind"] == "train"] for name in ("alone", "without")]
    assert losses[0] == pytest.approx(losses[1], abs=0.5)


def prepared(images, seed=0):
    return prepare_data(DataConfig(str(images)), val_fraction=0.2, seed=seed, strict=False)


def quick_recipe(**changes):
    return get_recipe("quick").model_copy(update={"cache_resolution": 0.5, **changes})


CPU = torch.device("cpu")
HARDWARE = Hardware(CPU)


def test_only_training_images_are_cached(tmp_path, caches):
    for first, (part, count) in zip((0, 10, 20), (("train", 6), ("val", 3), ("test", 2)), strict=True):
        for number in range(count):
            for name in ("red", "blue"):
                paint(tmp_path / "set" / part / name / f"{number}.jpg", COLORS[name], first + number)
    data = prepared(tmp_path / "set")
    assert (len(data.train), len(data.trainable)) == (12, 12)
    cache = build_cache("disk", quick_recipe(), data, HARDWARE)
    assert "12 images" in cache.note


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_cached_samples_match_their_files(where, large, caches):
    """Each image has one color, so that a wrong row would show, in any order and split."""
    for seed in (0, 1):
        train = prepared(large, seed).train
        cache = build_cache(where, quick_recipe(), prepared(large, seed), HARDWARE)
        for sample in range(len(train)):
            strongest = cache.reader.source(sample).reshape(-1, 3).mean(0).argmax()
            assert "rgb"[strongest] == train.paths[sample][0]
            assert cache.reader.name(sample) == train.file(sample)


def test_resume_with_lowered_sizes_reads_the_same_pixels(large, tmp_path):
    """``--minutes`` may lower the sizes after the cache is filled: a cache filled later has the first size."""
    data = prepared(large)
    settings = ("precision=fp32", "compile=false", "epochs=1", "batch_size=4", "ghost_batch_size=4")
    recipe = with_overrides(quick_recipe(model="efficientnetv2_b0", weights="none", minival=None), settings)
    filled = build_cache("ram", recipe, data, HARDWARE)
    lower = recipe.model_copy(update={"progressive": recipe.progressive.with_image_size(64)})
    run = RunDir(tmp_path / "run")
    facts = {"cache": "ram", "cache_px": filled.image_size}
    run.begin(lower, data.dataset, {**BEGINNING, **facts})
    request = RunRequest(run.path, lower, TrainOverrides(), RunOptions(), resumed=True)
    resumed_cache = resume_run(request, data, HARDWARE).cache
    pixels = [[one.reader.source(sample) for sample in range(3)] for one in (filled, resumed_cache)]
    np.testing.assert_array_equal(*pixels)
    assert len(pixels[0][0]) > len(build_cache("ram", lower, data, HARDWARE).reader.source(0))


def test_cache_size_follows_the_largest_training_size(large):
    quick, images = quick_recipe(), prepared(large).train
    growing = quick.model_copy(update={"progressive": replace(quick.progressive, image_size=Ramp(64, 128))})
    random_order = replace(growing.progressive, order="random", random_draws=8, seed=0)
    at_random = quick.model_copy(update={"progressive": random_order})
    # The last of four stages starts at 112 px.
    plans = [ProgressiveSchedule(image_size=Ramp(64, 128, continuous=True), stages=stages) for stages in (1, 4)]
    for recipe in (growing, at_random, *(quick_recipe(progressive=plan) for plan in plans)):
        assert image_cache._job(images, recipe).spec == CacheSpec(177, "shorter")


def test_dataset_in_another_order_uses_the_same_cache(large, caches):
    first = prepared(large)
    build_cache("disk", quick_recipe(), first, HARDWARE)
    reversed_data = replace(first, dataset=first.dataset.select(range(len(first.dataset))[::-1]))
    cache = build_cache("disk", quick_recipe(), reversed_data, HARDWARE)
    assert "there already" in cache.note
    strongest = cache.reader.source(0).reshape(-1, 3).mean(0).argmax()
    assert "rgb"[strongest] == reversed_data.train.paths[0][0]


def test_each_band_scaling_has_its_own_cache(large, caches):
    """The scaling is measured on the training images: two seeds once refilled one cache in turn."""
    data, caches_built = prepared(large), []
    for low in (0.0, 9.0, 0.0):
        bands = Bands((1, 2, 3), low=(low,) * 3, high=(255.0,) * 3)
        scaled = replace(data, dataset=replace(data.dataset, bands=bands))
        caches_built.append(build_cache("disk", quick_recipe(), scaled, HARDWARE))
    assert caches_built[0].reader.path == caches_built[2].reader.path != caches_built[1].reader.path
    assert "there already" in caches_built[2].note


def test_cache_larger_than_memory_is_refused(large, caches, monkeypatch):
    monkeypatch.setattr(image_cache, "free_bytes", lambda device: 1_000_000)
    with pytest.raises(InputError, match=mentioning("24", "2", "MiB", "cache")):
        build_cache("ram", quick_recipe(), prepared(large), HARDWARE)


def test_processes_share_the_cache_in_memory(large, tmp_path):
    args = ("train", large, *TOGETHER, *STEADY, "--epochs", "4", "--cache", "ram")
    run_ok(*args, "--output", tmp_path / "alone", cwd=tmp_path)
    first, second = effnetv2_together(2, *args, "--output", tmp_path / "both", cwd=tmp_path)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout == second.stderr == ""
    # One process computes both groups in one pass, with other rounding.
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "alone"), rel=0, abs=1e-5)


def test_shards_are_cached_like_their_files(large, caches, tmp_path):
    run_ok("data", "pack", large, tmp_path / "packed", "--shard-images", "7", cwd=tmp_path)
    of_files, of_shards = prepared(large), prepared(tmp_path / "packed")
    files, shards = (build_cache("disk", quick_recipe(), one, HARDWARE) for one in (of_files, of_shards))
    assert shards.reader.path != files.reader.path
    for sample in range(24):
        assert np.array_equal(files.reader.source(sample), shards.reader.source(sample))
    assert "there already" in build_cache("disk", quick_recipe(), of_shards, HARDWARE).note
    tar = next((tmp_path / "packed").glob("*.tar"))
    os.utime(tar, (0, 0))
    assert "filled in" in build_cache("disk", quick_recipe(), of_shards, HARDWARE).note


def test_cache_in_memory_is_refused_on_several_machines(large, caches):
    world = World(rank=0, size=4, local_rank=0, local_size=2)
    with pytest.raises(InputError, match=mentioning("2", "cache=disk")):
        build_cache("ram", quick_recipe(), prepared(large), Hardware(CPU, world=world))
    assert build_cache("disk", quick_recipe(), prepared(large), Hardware(CPU, world=world)).where == "disk"


def test_minutes_shorter_than_filling_the_cache_are_refused(large):
    data = prepared(large)
    recipe = with_overrides(get_recipe("quick"), ["compile=false", "batch_size=8", "epochs=1"])
    counts = ImageCounts(len(data.train), len(data.val))
    no_cost = LinearCost(0.0, 0.0)
    sizes = sorted({setting.image_size for setting in settings_by_size(recipe)})
    rates = StepTimings(0.0, tuple(StepTiming(px, 0.0, 1.0, 1) for px in sizes), no_cost, no_cost, no_cost, 1, 0.0, 1)
    with pytest.raises(InputError, match=mentioning("minutes", "1.5", "1.6")):
        LengthBudget(recipe, counts, 1.5, 90.0).set_length(rates)
    assert LengthBudget(recipe, counts, 1.5, 90.0).is_exceeded(rates)
    assert not LengthBudget(recipe, counts, 1.6, 90.0).is_exceeded(rates)
    assert not LengthBudget(recipe, counts, None, 90.0).is_exceeded(rates)


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_cache_size_is_estimated_from_some_images(where, large, caches, monkeypatch):
    """Half of the images are encoded to estimate the bytes of all; the index is not included."""
    data = prepared(large)
    monkeypatch.setattr(image_cache, "_ESTIMATED", len(data.train) // 2)
    estimated = estimate_cache(where, quick_recipe(), data, CPU)
    assert len(estimated.images) == len(data.train) // 2
    assert not list(caches.rglob("*")), "no file was written"
    built = build_cache(where, quick_recipe(), data, HARDWARE)
    size = built.reader.path.stat().st_size
    assert estimated.bytes == pytest.approx(size, rel=0.3)
    assert estimated.seconds > 0


def test_existing_cache_on_disk_takes_no_time(large, caches, monkeypatch):
    """Encoding takes 100 s here."""
    data, now = prepared(large), [0.0]

    def slow_encoding(job, *, room_bytes, real=image_cache.cache_in_memory):
        now[0] += 100
        return real(job, room_bytes=room_bytes)

    monkeypatch.setattr(image_cache, "cache_in_memory", slow_encoding)
    monkeypatch.setattr(image_cache, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert estimate_cache("disk", quick_recipe(), data, CPU).seconds >= 100
    build_cache("disk", quick_recipe(), data, HARDWARE)
    assert estimate_cache("disk", quick_recipe(), data, CPU).seconds == 0


def test_machines_with_a_shared_home_have_a_cache_each(large, caches, monkeypatch):
    """The times of their image files may differ, and each would replace the cache of the other."""
    data, hardware = prepared(large), replace(HARDWARE, world=World(size=2))
    files = set()
    for name in ("first", "second"):
        monkeypatch.setattr(platform, "node", lambda name=name: name)
        files.add(build_cache("disk", quick_recipe(), data, hardware).reader.path)
    assert len(files) == 2


def test_estimate_refuses_a_cache_larger_than_memory(large, monkeypatch):
    monkeypatch.setattr(image_cache, "_room", lambda device: 200_000)
    monkeypatch.setattr(image_cache, "_ESTIMATED", 1)
    with pytest.raises(InputError, match=mentioning("cache=disk")):
        estimate_cache("ram", quick_recipe(), prepared(large), CPU)


def test_disk_estimate_uses_as_many_images_as_fit_in_memory(large, caches, monkeypatch):
    data = prepared(large)
    full_bytes = build_cache("disk", quick_recipe(), data, HARDWARE).reader.path.stat().st_size
    monkeypatch.setattr(image_cache, "_room", lambda device: full_bytes // 3)
    estimated = estimate_cache("disk", quick_recipe(), data, CPU)
    assert len(data.train) // 8 < len(estimated.images) < len(data.train) // 2
    assert estimated.bytes == pytest.approx(full_bytes, rel=0.4)
    monkeypatch.setattr(image_cache, "_room", lambda device: 1)
    with pytest.raises(InputError, match=r"cache.ram"):
        estimate_cache("disk", quick_recipe(), data, CPU)


def test_cache_option_keeps_a_set_cache_resolution():
    overrides = TrainOverrides(recipe="quick", cache="ram", settings=("cache_resolution=0.9",))
    recipe, _ = requested_recipe(overrides, CPU)
    assert recipe.cache_resolution == 0.9


def test_images_with_equal_names_are_not_cached_on_disk():
    """Other tools may write equal names into a tar; in memory the order of the training images identifies them."""
    repeated = SimpleNamespace(paths=["x.tar#a.jpg", "x.tar#a.jpg", "x.tar#b.jpg"])
    images = SimpleNamespace(paths=["x.tar#b.jpg", "x.tar#c.jpg", "x.tar#a.jpg"])
    assert image_cache._rows_in(images, SimpleNamespace(paths=["x.tar#a.jpg", "x.tar#b.jpg"])).tolist() == [2, 0]
    with pytest.raises(InputError, match=mentioning("x.tar#a.jpg", "cache=ram")):
        image_cache._rows_in(repeated, images)
