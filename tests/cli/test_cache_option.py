"""``--cache``: what it decides, what it says, what it leaves; and that a run with it resumes to the same bits."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from tests.cli.test_train_together import STEADY, losses
from tests.cli.test_train_together import WORDS as TOGETHER
from tests.command_line import TINY, effnetv2, killed_at
from tests.conftest import COLORS, paint
from tests.faults.test_kill_and_resume import WORDS, bits, kill_in_the_middle, rows, start
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
from efficientnetv2.training.image_sizes import settings_by_size
from efficientnetv2.training.length_by_time import LengthBudget
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.run_request import RunOptions, RunRequest
from efficientnetv2.training.run_setup import ImageCounts
from efficientnetv2.training.timing import LinearCost, StepTiming, StepTimings
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.resume import resume_run


@pytest.fixture
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFNETV2_CACHE", str(tmp_path / "caches"))
    return tmp_path / "caches/pictures"


@pytest.fixture
def large(tmp_path):
    """Images of 150 px: at 64 px of training they are kept smaller."""
    for name, color in COLORS.items():
        for number in range(10):
            paint(tmp_path / "large" / name / f"{number}.jpg", color, number, px=150)
    return tmp_path / "large"


def train(pictures, run, *more, run_command=effnetv2):
    words = ("train", pictures, *TINY, "--recipe", "quick", "--weights", "none", "--output", run, *more)
    return run_command(*words, cwd=run.parent, environment={"EFFNETV2_CACHE": str(run.parent / "caches")})


def note_of(run):
    (note,) = [line for line in json.loads((run / "run.json").read_text())["auto_choices"] if line.startswith("Cache:")]
    return note


def test_a_run_with_the_cache_in_memory_leaves_nothing_of_it_behind(large, caches, tmp_path):
    done = train(large, tmp_path / "run", "--cache", "ram")
    assert done.returncode == 0, done.stderr
    # 64 px, crops of 35 % or more: half of them are wider than 0.725 of the shorter side
    assert mentions(note_of(tmp_path / "run"), "24", "89", "1", "MiB")
    assert note_of(tmp_path / "run") in (tmp_path / "run/log.txt").read_text()
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["cache_resolution"] == 0.5
    assert json.loads((tmp_path / "run/run.json").read_text())["cache_px"] == 64
    assert not caches.exists()


def test_the_cache_on_disk_serves_the_next_run_and_other_hold_outs(large, caches, tmp_path):
    first = train(large, tmp_path / "first", "--cache", "disk")
    assert first.returncode == 0, first.stderr
    (folder,) = caches.iterdir()
    assert mentions(note_of(tmp_path / "first"), folder, "30", "89", "1", "MiB", "filled")
    assert mentions(note_of(tmp_path / "first"), "delete")
    second = train(large, tmp_path / "second", "--cache", "disk", "--seed", "1")
    assert second.returncode == 0, second.stderr
    assert mentions(note_of(tmp_path / "second"), folder, "1", "MiB", "already")
    third = train(large, tmp_path / "third", "--cache", "disk", "--set", "cache_resolution=1")
    assert mentions(note_of(tmp_path / "third"), "125"), third.stderr
    assert len(list(caches.iterdir())) == 2, "another size is another cache"


def test_all_runs_of_a_cross_validation_have_one_cache(large, caches, tmp_path):
    words = ("--folds", "2", "--ensemble", "2", "--cache", "disk", "--output", tmp_path / "folds")
    environment = {"EFFNETV2_CACHE": str(tmp_path / "caches")}
    one_stage = ("--set", "progressive.stages=1", "--set", "progressive.image_size=32")
    done = effnetv2("crossval", large, *TINY, *one_stage, *words, cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    (folder,) = caches.iterdir()
    first, *others = [
        note_of(tmp_path / "folds" / name) for name in ("fold1", "fold1_member2", "fold2", "fold2_member2")
    ]
    assert "30 images decoded" in first
    assert mentions(first, folder, "filled")
    assert all(mentions(note, folder, "already") for note in others)


def test_the_demo_passes_without_a_cache_and_recipes_have_none():
    assert get_recipe("quick").cache_resolution is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cache", "dsk"), ("--cache", "dsk", "did you mean", "disk")),
        (("--set", "cache_resolution=0.5"), ("cache_resolution", "0.5", "--cache")),
        (("--cache", "ram", "--set", "cache_resolution=0"), ("--set", "cache_resolution=0", "0")),
        (("--cache", "ram", "--set", "cache_resolution=1.5"), ("--set", "cache_resolution=1.5", "1")),
    ],
)
def test_wrong_words_are_refused_and_leave_nothing(words, message, large, caches, tmp_path):
    done = train(large, tmp_path / "run", *words)
    assert done.returncode == 2
    assert mentions(done.stderr, *message)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
    assert not caches.exists()


def test_what_was_begun_with_or_without_a_cache_goes_on_so(large, caches, tmp_path):
    assert train(large, tmp_path / "without").returncode == 0
    refused = train(large, tmp_path / "without", "--cache", "ram", "--resume")
    assert refused.returncode == 2
    assert mentions(refused.stderr, "cache_resolution", "0.5")
    before_its_end = partial(killed_at, "efficientnetv2.training.post_training:save_model")
    train(large, tmp_path / "with", "--cache", "disk", run_command=before_its_end)
    gone_on = train(large, tmp_path / "with", "--resume")
    assert gone_on.returncode == 0, gone_on.stderr
    assert "there already" in (tmp_path / "with/log.txt").read_text(), "where it was kept is remembered"


@pytest.mark.slow
def test_a_run_killed_and_gone_on_with_from_another_cache_ends_with_the_same_bits(large, caches, tmp_path):
    """In memory, killed, from disk, both with two workers: the same pixels as alone, in memory without workers."""
    alone = effnetv2(
        "train", large, *WORDS, "--workers", "0", "--cache", "ram", "--output", tmp_path / "alone", cwd=tmp_path
    )
    assert alone.returncode == 0, alone.stderr
    process = start(large, tmp_path / "killed", 2, "--cache", "ram")
    while not (tmp_path / "killed/recipe.yaml").exists() and process.goes_on():
        pass
    process.kill()
    kill_in_the_middle(large, tmp_path / "killed", 2, random.Random(3))
    assert not (tmp_path / "killed/model.safetensors").exists(), "it was killed too late to mean anything"
    done = effnetv2(
        "train",
        large,
        *WORDS,
        "--workers",
        2,
        "--cache",
        "disk",
        "--output",
        tmp_path / "killed",
        "--resume",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert bits(tmp_path / "killed") == bits(tmp_path / "alone")
    without = effnetv2("train", large, *WORDS, "--workers", "0", "--output", tmp_path / "without", cwd=tmp_path)
    assert without.returncode == 0, without.stderr
    assert bits(tmp_path / "without") != bits(tmp_path / "alone"), "the cache was read at all"
    losses = [[row["loss"] for row in rows(tmp_path / name) if row["kind"] == "train"] for name in ("alone", "without")]
    assert losses[0] == pytest.approx(losses[1], abs=0.5)


def prepared(pictures, seed=0):
    return prepare_data(DataConfig(str(pictures)), val_fraction=0.2, seed=seed, strict=False)


def of_recipe(**changes):
    return get_recipe("quick").model_copy(update={"cache_resolution": 0.5, **changes})


CPU = torch.device("cpu")
HARDWARE = Hardware(CPU)


def test_the_train_part_of_a_given_split_is_kept_alone(tmp_path, caches):
    for first, (part, count) in zip((0, 10, 20), (("train", 6), ("val", 3), ("test", 2)), strict=True):
        for number in range(count):
            for name in ("red", "blue"):
                paint(tmp_path / "set" / part / name / f"{number}.jpg", COLORS[name], first + number)
    given = prepared(tmp_path / "set")
    assert (len(given.train), len(given.trainable)) == (12, 12)
    kept = build_cache("disk", of_recipe(), given, HARDWARE)
    assert "12 images" in kept.note


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_samples_find_their_own_pictures(where, large, caches):
    """Whatever the order of the list and the hold-out are: each has one color."""
    for seed in (0, 1):
        train = prepared(large, seed).train
        kept = build_cache(where, of_recipe(), prepared(large, seed), HARDWARE)
        for sample in range(len(train)):
            strongest = kept.reader.source(sample).reshape(-1, 3).mean(0).argmax()
            assert "rgb"[strongest] == train.paths[sample][0]
            assert kept.reader.name(sample) == train.file(sample)


def test_a_run_whose_sizes_were_lowered_goes_on_with_the_pixels_that_it_began_with(large, tmp_path):
    """``--minutes`` may lower sizes when the cache is filled already: what is filled later is kept as large."""
    ready = prepared(large)
    settings = ("precision=fp32", "compile=false", "epochs=1", "batch_size=4", "ghost_batch_size=4")
    begun = with_overrides(of_recipe(model="efficientnetv2_b0", weights="none", minival=None), settings)
    filled = build_cache("ram", begun, ready, HARDWARE)
    lower = begun.model_copy(update={"progressive": begun.progressive.with_image_size(64)})
    run = RunDir(tmp_path / "run")
    facts = {"cache": "ram", "cache_px": filled.image_size}
    run.begin(lower, ready.dataset, {**BEGINNING, **facts})
    request = RunRequest(run.path, lower, TrainOverrides(), RunOptions(), resumed=True)
    again = resume_run(request, ready, HARDWARE).cache
    pixels = [[one.reader.source(sample) for sample in range(3)] for one in (filled, again)]
    np.testing.assert_array_equal(*pixels)
    assert len(pixels[0][0]) > len(build_cache("ram", lower, ready, HARDWARE).reader.source(0))


def test_the_largest_picture_of_the_run_decides_whenever_it_is_drawn():
    quick = of_recipe()
    growing = quick.model_copy(update={"progressive": replace(quick.progressive, image_size=Ramp(64, 128))})
    drawn = replace(growing.progressive, order="random", random_draws=8, seed=0)
    at_random = quick.model_copy(update={"progressive": drawn})
    assert image_cache._spec(at_random) == image_cache._spec(growing) == CacheSpec(177, "shorter")
    for stages in (1, 4):  # the last of four begins at 112 px
        always = ProgressiveSchedule(image_size=Ramp(64, 128, continuous=True), stages=stages)
        assert image_cache._spec(of_recipe(progressive=always)) == CacheSpec(177, "shorter")


def test_a_list_in_another_order_has_the_same_cache(large, caches):
    first = prepared(large)
    build_cache("disk", of_recipe(), first, HARDWARE)
    backwards = replace(first, dataset=first.dataset.select(range(len(first.dataset))[::-1]))
    kept = build_cache("disk", of_recipe(), backwards, HARDWARE)
    assert "there already" in kept.note
    strongest = kept.reader.source(0).reshape(-1, 3).mean(0).argmax()
    assert "rgb"[strongest] == backwards.train.paths[0][0]


def test_each_rule_of_rasters_has_its_own_cache(large, caches):
    """It is measured on those that train, so those of two seeds took turns in one place, filled again each time."""
    given, done = prepared(large), []
    for low in (0.0, 9.0, 0.0):
        rule = Bands((1, 2, 3), low=(low,) * 3, high=(255.0,) * 3)
        ready = replace(given, dataset=replace(given.dataset, bands=rule))
        done.append(build_cache("disk", of_recipe(), ready, HARDWARE))
    assert done[0].reader.path == done[2].reader.path != done[1].reader.path
    assert "there already" in done[2].note


def test_memory_that_is_not_there_is_refused_with_the_way_out(large, caches, monkeypatch):
    monkeypatch.setattr(image_cache, "free_bytes", lambda device: 1_000_000)
    with pytest.raises(InputError, match=mentioning("24", "2", "MiB", "cache")):
        build_cache("ram", of_recipe(), prepared(large), HARDWARE)


def test_processes_of_one_machine_read_the_memory_that_the_first_has_filled(large, tmp_path):
    words = ("train", large, *TOGETHER, *STEADY, "--epochs", "4", "--cache", "ram")
    alone = effnetv2(*words, "--output", tmp_path / "alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    first, second = effnetv2_together(2, *words, "--output", tmp_path / "both", cwd=tmp_path)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout == second.stderr == ""
    # Alone, both groups run in one pass, which rounds otherwise.
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "alone"), rel=0, abs=1e-5)


def test_shards_are_kept_as_their_files_are(large, caches, tmp_path):
    done = effnetv2("data", "pack", large, tmp_path / "packed", "--shard-images", "7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    of_files, of_shards = prepared(large), prepared(tmp_path / "packed")
    files, shards = (build_cache("disk", of_recipe(), one, HARDWARE) for one in (of_files, of_shards))
    assert shards.reader.path != files.reader.path
    for sample in range(24):
        assert np.array_equal(files.reader.source(sample), shards.reader.source(sample))
    assert "there already" in build_cache("disk", of_recipe(), of_shards, HARDWARE).note
    tar = next((tmp_path / "packed").glob("*.tar"))
    os.utime(tar, (0, 0))
    assert "filled in" in build_cache("disk", of_recipe(), of_shards, HARDWARE).note


def test_memory_does_not_reach_to_another_machine(large, caches):
    two = World(rank=0, size=4, local_rank=0, local_size=2)
    with pytest.raises(InputError, match=mentioning("2", "cache=disk")):
        build_cache("ram", of_recipe(), prepared(large), Hardware(CPU, world=two))
    assert build_cache("disk", of_recipe(), prepared(large), Hardware(CPU, world=two)).where == "disk"


def test_minutes_that_filling_alone_takes_are_refused(large):
    ready = prepared(large)
    recipe = with_overrides(get_recipe("quick"), ["compile=false", "batch_size=8", "epochs=1"])
    counts = ImageCounts(len(ready.train), len(ready.val))
    second = LinearCost(0.0, 0.0)
    sizes = sorted({setting.image_size for setting in settings_by_size(recipe)})
    rates = StepTimings(0.0, tuple(StepTiming(px, 0.0, 1.0, 1) for px in sizes), second, second, second, 1, 0.0, 1)
    with pytest.raises(InputError, match=mentioning("minutes", "1.5", "1.6")):
        LengthBudget(recipe, counts, 1.5, 90.0).set_length(rates)
    assert LengthBudget(recipe, counts, 1.5, 90.0).is_exceeded(rates)
    assert not LengthBudget(recipe, counts, 1.6, 90.0).is_exceeded(rates)
    assert not LengthBudget(recipe, counts, None, 90.0).is_exceeded(rates)


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_what_a_cache_will_take_is_foreseen_from_some_of_the_pictures(where, large, caches, monkeypatch):
    """Half of the images are kept to foresee all: the bytes are those of the cache but for its index."""
    ready = prepared(large)
    monkeypatch.setattr(image_cache, "_ESTIMATED", len(ready.train) // 2)
    before = estimate_cache(where, of_recipe(), ready, CPU)
    assert len(before.images) == len(ready.train) // 2
    assert not list(caches.rglob("*")), "nothing was kept"
    real = build_cache(where, of_recipe(), ready, HARDWARE)
    size = real.reader.path.stat().st_size
    assert before.bytes == pytest.approx(size, rel=0.3)
    assert before.seconds > 0


def test_a_cache_on_disk_that_is_there_takes_no_time(large, caches, monkeypatch):
    """But for looking whether it is there; keeping some takes 100 s here."""
    ready, now = prepared(large), [0.0]

    def kept(*given, real=image_cache._in_memory):
        now[0] += 100
        return real(*given)

    monkeypatch.setattr(image_cache, "_in_memory", kept)
    monkeypatch.setattr(image_cache, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert estimate_cache("disk", of_recipe(), ready, CPU).seconds >= 100
    build_cache("disk", of_recipe(), ready, HARDWARE)
    assert estimate_cache("disk", of_recipe(), ready, CPU).seconds == 0


def test_a_cache_that_will_not_fit_into_memory_is_foreseen(large, monkeypatch):
    monkeypatch.setattr(image_cache, "_room", lambda device: 200_000)
    monkeypatch.setattr(image_cache, "_ESTIMATED", 1)
    with pytest.raises(InputError, match=mentioning("cache=disk")):
        estimate_cache("ram", of_recipe(), prepared(large), CPU)


def test_a_cache_on_disk_is_foreseen_from_as_many_pictures_as_memory_has_room_for(large, caches, monkeypatch):
    ready = prepared(large)
    whole = build_cache("disk", of_recipe(), ready, HARDWARE).reader.path.stat().st_size
    monkeypatch.setattr(image_cache, "_room", lambda device: whole // 3)
    before = estimate_cache("disk", of_recipe(), ready, CPU)
    assert len(ready.train) // 8 < len(before.images) < len(ready.train) // 2
    assert before.bytes == pytest.approx(whole, rel=0.4)
    monkeypatch.setattr(image_cache, "_room", lambda device: 1)
    with pytest.raises(InputError, match=r"cache.ram"):
        estimate_cache("disk", of_recipe(), ready, CPU)


def test_a_detail_that_was_set_is_not_overwritten_by_the_word():
    words = TrainOverrides(recipe="quick", cache="ram", settings=("cache_resolution=0.9",))
    recipe, _ = requested_recipe(words, CPU)
    assert recipe.cache_resolution == 0.9


def test_pictures_of_one_name_are_not_kept_on_disk():
    """Tars of others may call two alike. In memory all are those that train, in their order."""
    twice = SimpleNamespace(paths=["x.tar#a.jpg", "x.tar#a.jpg", "x.tar#b.jpg"])
    pictures = SimpleNamespace(paths=["x.tar#b.jpg", "x.tar#c.jpg", "x.tar#a.jpg"])
    assert image_cache._rows_in(pictures, SimpleNamespace(paths=["x.tar#a.jpg", "x.tar#b.jpg"])).tolist() == [2, 0]
    with pytest.raises(InputError, match=mentioning("x.tar#a.jpg", "cache=ram")):
        image_cache._rows_in(twice, pictures)
