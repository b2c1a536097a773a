"""How commands divide a time limit: what ``train --minutes`` reduces, and what a dry run estimates."""

from __future__ import annotations

import time
import timeit
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.command_line import NETWORK
from tests.messages import mentioning
from tests.recipes import with_overrides

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.inference.linear_probe import fit_probe, max_fit_work
from efficientnetv2.inference.predict import Embeddings
from efficientnetv2.training import head_init, time_budget
from efficientnetv2.training.head_init import fit_speed, images_within, probe_s
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_request import RunOptions, load_run_data
from efficientnetv2.training.run_setup import ImageCounts, RunSetup
from efficientnetv2.training.time_budget import LengthBudget
from efficientnetv2.training.timing import LinearCost, StepTiming, StepTimings
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key
from efficientnetv2.workflows import estimate
from efficientnetv2.workflows.estimate import plan_run
from efficientnetv2.workflows.train import train_and_report

# 32 images of 128, 192 and 224 px a step, in proportion to their pixels.
RATES = StepTimings(
    compile_s=0.0,
    steps=tuple(StepTiming(px, 0.0, (px / 128) ** 2, px) for px in (128, 192, 224)),
    curve=LinearCost(0.0, 0.01),
    predictions=LinearCost(0.0, 0.01),
    checkpoints=LinearCost(0.0, 0.1),
    checkpoint_bytes=1000,
    model_s=0.1,
    model_bytes=250,
)


def run_setup(images: int, *settings: str) -> RunSetup:
    recipe = with_overrides(
        get_recipe("finetune"), ["compile=false", "epochs=10", "eval_image_size=224", "minival=null", *settings]
    )
    return RunSetup(recipe, None, range(images), range(50), None, None, torch.device("cpu"), workers=0)


@pytest.mark.parametrize(
    ("minutes", "last_px"), [(5.0, 224), (3.0, 224), (2.0, 192), (1.5, 128), (0.5, 64)], ids="{}".format
)
def test_sizes_are_lowered_until_three_epochs_fit(minutes, last_px):
    """An epoch of 640 images has 20 steps of 1 to 3 s, 42 s in total; 25 s are for other work."""
    job = run_setup(640)
    recipe, rates, notes = LengthBudget(job.recipe, job.image_counts, minutes, 25.0).lower_sizes(
        RATES, lambda sized: True
    )
    assert recipe.progressive.last.image_size == last_px
    assert recipe.eval_image_size == last_px
    assert (notes == []) is (last_px == 224)
    sizes = {recipe.progressive.stage(index).image_size for index in range(3)}
    assert {rate.image_size for rate in rates.steps} == sizes
    found, _ = LengthBudget(recipe, job.image_counts, minutes, 25.0).set_length(rates)
    assert found.epochs >= 3 or last_px == 64


def test_evaluation_counts_at_the_lowered_size():
    """At 192 px, steps take 87.5 s. The rest is 60.6 s at the cost of 224 px, too much for 2.9 minutes, and 44.7 s."""
    job = run_setup(640)
    budget = LengthBudget(job.recipe, ImageCounts(640, 4000), 2.9, 25.0)
    recipe, rates, _ = budget.lower_sizes(RATES, lambda sized: True)
    assert recipe.progressive.last.image_size == recipe.eval_image_size == 192
    assert rates.predictions.each_s == pytest.approx(0.01 * (192 / 224) ** 2)
    _, rates, _ = replace(budget, read_s=0.004).lower_sizes(RATES, lambda sized: True)
    assert rates.predictions.each_s == pytest.approx(0.004 + 0.006 * (192 / 224) ** 2)


def test_step_times_scale_with_the_number_of_pixels():
    found = RATES.of_sizes([64, 160, 224, 64])
    assert [rate.image_size for rate in found.steps] == [64, 160, 224]
    assert [rate.each_s for rate in found.steps] == pytest.approx([0.25, 1.5625, 3.0625])


@pytest.mark.parametrize(("read_s", "step_s"), [(0.6, 0.7), (5.0, 1.0)])
def test_reading_takes_as_long_at_a_lower_size(read_s, step_s):
    """A step of 128 px takes 1 s, also for reading."""
    assert RATES.of_sizes([64], read_s).steps[0].each_s == pytest.approx(step_s)


@pytest.mark.parametrize(
    ("seconds", "most", "images"),
    [(1000.0, 5000, None), (10.0, 5000, 506), (0.0, 5000, 0), (10.0, 200, None), (3.01, 200, 152)],
)
def test_probe_uses_as_many_images_as_time_permits(seconds, most, images, monkeypatch):
    """Embedding takes 10 ms per image, half as many of val as of train.

    A fit of 100 iterations has 2 * 100 * 10 * 1,000 multiply-adds per training image. Those that choose the penalty
    have 3.75 times as many, and all of them once more are the learning curve: 19 million, 4.75 ms.
    """
    monkeypatch.setattr(head_init, "fit_speed", lambda: 4e9)
    train = type("Part", (), {"class_names": ("a",) * 10, "__len__": lambda self: 600})()
    val = type("Part", (), {"__len__": lambda self: 400})()
    prepared, model = SimpleNamespace(train=train, val=val), SimpleNamespace(embed_dim=1000)
    assert images_within(seconds, prepared, model, 0.01, most) == images
    if images:
        took, more = (probe_s(count, train, count // 2, model, 0.01) for count in (images, images + 2))
        assert took <= seconds < more


def test_speed_of_fitting_is_not_overestimated():
    """Of 700 images in 30 classes. With another process on the machine, one may be twice as slow as the other."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 30, 700)
    vectors = (generator.normal(size=(30, 1280))[labels] + 5 * generator.normal(size=(700, 1280))).astype(np.float32)
    embeddings = Embeddings(np.arange(700), labels, vectors)
    shortest_s = min(timeit.repeat(lambda: fit_probe(embeddings, key=Key.of(0), balanced=False), number=1, repeat=3))
    assert max_fit_work(700, 30, 1280) / shortest_s > fit_speed() / 2


def test_parallel_workers_reduce_the_time_per_image(class_folders, monkeypatch):
    monkeypatch.setattr(time_budget, "load_eval_image", lambda *args: time.sleep(0.02))
    alone, shared = (
        time_budget.seconds_per_read(load_dataset(class_folders), get_recipe("quick"), workers) for workers in (1, 8)
    )
    assert alone >= 0.02
    assert shared < alone / 4


def test_images_are_timed_again_on_other_files(class_folders, monkeypatch):
    """Those of the first time are in memory by then."""
    read, dataset = [], load_dataset(class_folders)
    monkeypatch.setattr(time_budget, "load_eval_image", lambda source, _: read.append(source))
    for again in (False, True):
        time_budget.seconds_per_read(dataset, get_recipe("quick"), 0, again=again)
    assert len(set(read)) == len(read) == 32


TINY = (
    "batch_size=8", "progressive.stages=2", "progressive.image_size={start: 32, end: 64}", "precision=fp32",
)  # fmt: skip


def plan(capsys, folder, out, *settings: str, **overrides) -> dict:
    """The report of a dry run."""
    request = TrainOverrides(model=NETWORK, weights="none", recipe="quick", settings=(*TINY, *settings), **overrides)
    options = RunOptions(out=out, device="cpu", workers=0)
    return plan_run(request, DataConfig(str(folder)), options).report


@pytest.mark.parametrize(
    ("settings", "overrides"), [(("compile=true", "epochs=2"), {}), ((), {"minutes": 600.0})], ids=["requested", "auto"]
)
def test_dry_run_does_not_wait_for_the_compiler(settings, overrides, class_folders, tmp_path, monkeypatch, capsys):
    def hang(*_, **__):
        raise AssertionError("it would hang")

    monkeypatch.setattr(torch, "compile", hang)
    monkeypatch.chdir(tmp_path)
    found = plan(capsys, class_folders, tmp_path / "run", *settings, **overrides)
    assert any("Compiling: about 3 minutes, estimated" in note for note in found["auto_choices"]) is bool(settings)
    assert any("Not compiled (trying it may take minutes)" in note for note in found["auto_choices"]) is bool(overrides)
    assert found["others_s"].get("compiling", 0.0) == (200.0 if settings else 0.0)


def test_dry_run_estimates_what_it_cannot_measure_in_time(class_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(estimate, "_WITHIN_S", 0.0)
    monkeypatch.setattr(estimate, "explain_predictions", lambda *_: pytest.fail("the report was timed"))
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    found = plan(capsys, class_folders, tmp_path / "run", "epochs=2", "compile=false")
    assert time.perf_counter() - start < 90
    assert any(note.startswith("Estimated") and "the report" in note for note in found["auto_choices"])
    assert found["others_s"]["report"] > 0


@pytest.mark.parametrize(("minutes", "share"), [(5.0, 0.0), (8.0, 0.4), (50.0, 1.0)])
def test_dry_run_limits_what_a_run_limits_before_its_first_step(minutes, share):
    """A fifth of the minutes may pass before. No run shortens the check of the images (start-up) or the cache."""
    fixed_s = {"start-up": 50.0, "filling the cache": 14.0, "report": 30.0}
    found = estimate._within_minutes(fixed_s | {"linear probe": 60.0, "measuring": 20.0}, minutes)
    assert found == pytest.approx(fixed_s | {"linear probe": 60.0 * share, "measuring": 20.0 * share})


def test_checking_many_images_leaves_time_to_measure(class_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "_WITHIN_S", 30.0)
    begun = []

    def read_slowly(*given, **options):
        time.sleep(0.5)
        return load_run_data(*given, **options)

    def begin(request, data, hardware, budget):
        begun.append(budget.seconds)
        raise InputError("enough")

    monkeypatch.setattr(estimate, "load_run_data", read_slowly)
    monkeypatch.setattr(estimate, "select_weights", begin)
    with pytest.raises(InputError, match="enough"):
        plan(capsys, class_folders, tmp_path / "run", "epochs=2", "compile=false")
    assert 30.5 <= begun[0] < 60


def test_too_few_minutes_are_refused():
    job = run_setup(640)
    recipe, rates, _ = LengthBudget(job.recipe, job.image_counts, 0.5, 29.0).lower_sizes(RATES, lambda sized: True)
    with pytest.raises(InputError, match=mentioning("minutes", "0.5", "0.48")):
        LengthBudget(recipe, job.image_counts, 0.5, 29.0).set_length(rates)


def test_time_limit_counts_from_the_start_of_the_command(class_folders, tmp_path, monkeypatch):
    seen, began = [], time.monotonic() - 3

    def limit(seconds, report_s, rates, used_s=0.0, began=None):
        seen.append((seconds, began))
        raise InputError("enough")

    monkeypatch.setattr(time_budget, "TimeLimit", limit)
    overrides = TrainOverrides(model=NETWORK, weights="none", recipe="quick", minutes=5.0, settings=TINY)
    options = RunOptions(out=tmp_path / "run", device="cpu", workers=0)
    with pytest.raises(InputError, match="enough"):
        train_and_report(overrides, DataConfig(str(class_folders)), options, began=began)
    assert seen == [(300.0, began)]


@pytest.mark.parametrize(
    ("changes", "balanced"),
    [
        ({"class_sampling": None}, False),
        ({"class_sampling": "sqrt"}, True),
        ({"class_sampling": None, "class_weights": "equal"}, True),
        ({"class_sampling": None, "logit_adjustment": 1.0}, True),
    ],
)
@pytest.mark.parametrize(("most", "most_val"), [(None, None), (9, 5)])
def test_probe_has_the_balance_and_the_time_of_the_run(changes, balanced, most, most_val, monkeypatch):
    seen = []
    monkeypatch.setattr(head_init, "linear_probe", lambda *_, **options: seen.append(options))
    recipe = get_recipe("finetune").model_copy(update={**changes, "head_init": "random"})
    split = np.array(["train", "val", "train", "train"], dtype=object)
    data = SimpleNamespace(contents=np.array([3, 1, 3, 2]), dataset=SimpleNamespace(split=split), train=None, val=None)
    head_init.fit_head(None, data, None, recipe, Hardware(torch.device("cpu")), most)
    (options,) = seen
    assert (options["balanced"], options["max_images"], options["max_val_images"]) == (balanced, most, most_val)
    assert options["contents"].tolist() == [3, 3, 2]


@pytest.mark.parametrize("known", [(), ("a", "b")])
def test_probe_replaces_only_a_new_classifier(known, monkeypatch):
    """Weights of the same classes keep theirs, as where a run is trained longer."""
    replaced, network = [], SimpleNamespace(class_names=known)
    monkeypatch.setattr(head_init, "linear_probe", lambda *_, **options: SimpleNamespace(classifier=None))
    monkeypatch.setattr(head_init, "to_linear_layer", lambda classifier, classes: ("weight", "bias"))
    monkeypatch.setattr(head_init, "set_classifier_weights", lambda *given: replaced.append(given))
    recipe = get_recipe("finetune").model_copy(update={"head_init": "linear_probe"})
    split, train = np.array(["train", "train"], dtype=object), SimpleNamespace(class_names=("a", "b"))
    data = SimpleNamespace(contents=np.arange(2), dataset=SimpleNamespace(split=split), train=train, val=None)
    head_init.fit_head(network, data, None, recipe, Hardware(torch.device("cpu")))
    assert replaced == ([] if known else [(network, "weight", "bias")])
