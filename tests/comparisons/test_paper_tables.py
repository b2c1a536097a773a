"""Tables of the paper are complete, and paper scale has the settings of the paper; nothing is trained here."""

import json
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from benchmarks.paper import __main__ as command_line
from benchmarks.paper import oom_safe_timing, params_flops, published, reproduce, runs, throughput, transfer
from benchmarks.paper.scale import SCALES
from benchmarks.paper.table import Measurement
from tests.comparisons.test_paper import make_table
from tests.messages import mentioning
from tests.recipes import with_overrides
from torch import nn

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.data.builtin_datasets import DatasetNotFoundError
from efficientnetv2.progressive import presets
from efficientnetv2.training.overrides import requested_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.errors import InputError

REPOSITORY = Path(__file__).parents[2]
TABLES = [name for name in reproduce.NAMES if name.isdigit()]


def _help():
    """The output of --help in one line."""
    return " ".join(command_line.parse_options(["6"])[0].format_help().split())


@pytest.fixture
def started_runs(tmp_path, monkeypatch):
    """The (recipe, DATA) of simulated runs; no requirement is checked and no model is timed."""
    started = []
    monkeypatch.setattr(runs, "refuse_missing", lambda runs: None)

    def fake_train(options, source, place, **_):
        started.append((requested_recipe(options, pick_device("cpu"))[0], source.data))
        place.out.mkdir(parents=True)
        (place.out / "report.json").write_text('{"top1": 0.5, "train_s": 60.0}')

    monkeypatch.setattr(runs, "train_and_report", fake_train)
    monkeypatch.setattr(params_flops, "latency_s", lambda sizes, **_: {name: [0.001, 0.002, 0.009] for name in sizes})
    measurement = Measurement((1.0, 2.0, 9.0), "images/s")
    monkeypatch.setattr(throughput, "images_per_s", lambda steps, *_: dict.fromkeys(steps, measurement))
    monkeypatch.delenv("EFFNETV2_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return started


def numbers(cell):
    """Every number in a table of paper.json, and words instead of numbers."""
    if isinstance(cell, dict):
        cell = list(cell.values())
    if isinstance(cell, list):
        return [number for value in cell for number in numbers(value)]
    measurement = published.measurement(cell, "")
    return [*measurement.values, *([measurement.word] if measurement.word else [])]


def run_options(table, **more):
    """Options of runs, if the table has runs."""
    return (
        {"data": "here", **more} | ({"weights": "none"} if table == "8" else {}) if table in reproduce.TRAINED else {}
    )


@pytest.mark.parametrize("table", TABLES)
def test_every_number_of_the_table_in_the_paper_is_present(table, started_runs, tmp_path):
    table_ = make_table(table, tmp_path / "out", **run_options(table))
    measurements = [measurement for row in table_.rows for measurement in row.paper.values()]
    present = Counter(
        value for measurement in measurements for value in (*measurement.values, measurement.spread, measurement.word)
    )
    present += Counter(float(value) for value in re.findall(r"\d+", table_.paper_note))
    assert Counter(numbers(published.rows(table))) - present == Counter()


@pytest.mark.parametrize("table", reproduce.NAMES)
def test_each_measured_column_has_a_value_or_a_reason_in_every_row(table, started_runs, tmp_path):
    table_ = make_table(table, tmp_path / "out", **run_options(table, seeds=2))
    assert any(row.ours for row in table_.rows)
    for column in {column for row in table_.rows for column in row.ours}:
        for row in table_.rows:
            assert row.ours[column].values or row.ours[column].why, (row.name, column)
    saved = json.loads((tmp_path / "out" / "table.json").read_text())
    assert "scale tiny" in table_.ours_note
    assert ("2 seeds" in table_.ours_note) == bool(started_runs)
    assert (saved["scale"], saved["seeds"]) == ("tiny", 2 if started_runs else None)


def test_spread_or_word_of_the_paper_is_printed():
    assert str(published.measurement([78.3, 0.16], "%")) == "78.3 ± 0.16"
    assert str(published.measurement("OOM", "images/s")) == "OOM"


def test_times_are_printed_as_median_and_other_values_as_mean():
    """1, 2 and 9: median 2, mean 4."""
    assert [Measurement((1.0, 2.0, 9.0), unit).middle for unit in ("ms", "images/s", "%")] == [2.0, 2.0, 4.0]
    assert str(Measurement((1.0, 2.0, 9.0), "ms")).startswith("2.00 ±")
    assert str(Measurement((300.0, 400.0, 500.0), "ms")) == "400 ± 100"
    assert str(Measurement((3.0, 4.0, 5.5), "ms")) == "4.00 ± 1.3"
    assert Measurement((1.0, 2.0, 9.0), "ms").to_json()["median"] == 2.0


def test_each_model_of_table_7_is_timed_once(started_runs, tmp_path):
    rows = {row.name: row.ours["ms"] for row in make_table("7", tmp_path / "out").rows}
    untimed = {name for name, measurement in rows.items() if not measurement.values}
    assert untimed == {f"efficientnetv2_{size}_21k" for size in ("s", "m", "l")}
    assert rows["efficientnetv2_xl_21k"].middle == 2.0
    assert rows["efficientnetv2_s_21k"].why == "the same network is timed in an earlier row"


def test_table_9_counts_available_datasets_as_the_paper(started_runs, tmp_path, monkeypatch):
    """In Flowers, the original val is trained on: 2,040 = 1,020 + 1,020."""

    def read(name):
        if name == "cifar100":
            raise InputError(f"The standard set '{name}' is damaged.")
        if name != "flowers102":
            raise DatasetNotFoundError(f"The standard set '{name}' is neither here nor there.")
        split, label = ["train", "val", "test", "test", "test"], ["a", "b", "a", "b", "c"]
        return SimpleNamespace(table=pd.DataFrame({"split": split, "label": label}))

    monkeypatch.setattr(transfer, "read_builtin", read)
    rows = {row.name: row for row in make_table("9", tmp_path / "out").rows}
    assert [rows["flowers102"].ours[name].mean for name in ("train", "eval", "classes")] == [2, 3, 3]
    assert str(rows["cifar10"].paper["train"]) == "50,000"
    assert rows["cars"].ours["train"].why == "the set is not at hand"
    assert rows["cifar100"].ours["train"].why == "the set is not at hand whole; log.txt says why"


def test_table_8_at_paper_scale_starts_each_model_from_its_weights(started_runs, tmp_path):
    table = make_table("8", tmp_path / "out", scale="paper", seeds=1)
    assert len(started_runs) == 3 * 4
    assert {recipe.weights for recipe, _ in started_runs} == {f"efficientnetv2_{size}.in1k" for size in "sml"}
    assert all(recipe.weights == f"{recipe.model}.in1k" for recipe, _ in started_runs)
    assert {data for _, data in started_runs} == {"cifar10", "cifar100", "flowers102", "stanford_cars"}
    sizes = {"efficientnetv2_s": 384, "efficientnetv2_m": 480, "efficientnetv2_l": 480}
    for recipe, _ in started_runs:
        assert recipe.progressive.last.image_size == recipe.eval_image_size == sizes[recipe.model]
        assert recipe.eval_split == "test"
    for row in table.rows:
        assert set(row.ours) == set(row.paper) == {"cifar10", "cifar100", "flowers102", "cars"}
        assert all(measurement.values for measurement in row.ours.values())


def test_table_8_at_small_scale_uses_a_dataset_of_the_paper(started_runs, tmp_path):
    """Imagenette has classes of ImageNet, and the paper has no value for it."""
    table = make_table("8", tmp_path / "out", scale="small", seeds=1, weights="none")
    assert {data for _, data in started_runs} == {"cifar10"}
    assert set(table.rows[0].ours) == {"cifar10"} < set(table.rows[0].paper)
    started_runs.clear()
    make_table("13", tmp_path / "other", scale="small", seeds=1)
    assert {data for _, data in started_runs} == {"imagenette"}
    help_ = _help()
    assert "imagenette, for table 8 cifar10 (small)" in help_


@pytest.mark.parametrize("data", ["stanford_cars", "cars"])
def test_cars_have_two_names(data, started_runs, tmp_path):
    table = make_table("8", tmp_path / "out", data=f"{data},cifar10", weights="none")
    assert set(table.rows[0].ours) == {"cars", "cifar10"}
    assert {data for _, data in started_runs} == {"stanford_cars", "cifar10"}


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        *((table, {"scale": "paper"}, "--data FOLDER") for table in ("5", "10", "12", "13")),
        ("8", {"scale": "paper", "weights": "efficientnetv2_s.in1k"}, "Leave --weights out"),
        ("8", {"scale": "small"}, "--weights none to see that everything runs"),
        ("13", {"weights": "trunk.safetensors"}, "only Table 8 starts from weights. Leave --weights out"),
        ("7", {"data": "here", "seeds": 2}, "--data here --seeds 2: for Table 7 nothing is trained"),
        ("figure1", {"weights": "none"}, "--weights none: for Figure 1 nothing is trained"),
    ],
)
def test_invalid_options_are_rejected_and_leave_no_files(table, options, message, started_runs, tmp_path):
    with pytest.raises(InputError, match=message):
        make_table(table, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "preset", "varies", "models"),
    [
        ("5", "efficientnetv2_s", {"image_size", "randaugment"}, {"efficientnetv2_s"}),
        ("10", "efficientnetv2_m", set(), {"efficientnet_b7", "efficientnetv2_m"}),
        ("13", "efficientnetv2_m", set(), {"efficientnetv2_m"}),
    ],
)
def test_paper_scale_runs_are_those_of_section_5_1(table, preset, varies, models, started_runs, tmp_path):
    table_ = make_table(table, tmp_path / "out", scale="paper", data="imagenet", seeds=1)
    settings, end = published.PAPER["imagenet1k_recipe"], presets.paper_schedule(preset).last
    for recipe, _ in started_runs:
        last = recipe.progressive.last
        assert replace(last, **{name: getattr(end, name) for name in varies}) == end
        assert (recipe.epochs, recipe.batch_size) == (settings["epochs"], settings["batch_size"])
    assert {recipe.model for recipe, _ in started_runs} == models
    assert all(name in table_.ours_note for name in (*models, f"recipe {preset}_paper"))


def test_table_13_uses_m_and_vanilla_has_its_last_stage(started_runs, tmp_path):
    schedule = presets.paper_schedule("efficientnetv2_m")
    adaptive = published.rows("13")["progressive_resize"][1][0]
    assert [name for name, row in published.rows("7").items() if row[0] == adaptive] == ["efficientnetv2_m"]
    make_table("13", tmp_path / "out", scale="paper", data="imagenet", seeds=1)
    first = [recipe.progressive.stage(0) for recipe, _ in started_runs if recipe.progressive.order == "growing"]
    assert first == [replace(schedule.last, image_size=128), schedule.stage(0)]


def test_page_has_the_commands_of_table_13(started_runs, tmp_path):
    page = (REPOSITORY / "docs/how-to/reproduce-the-paper.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [shlex.split(line) for line in page.splitlines() if line.startswith("torchrun ")]
    recipes = {}
    for args in lines:
        overrides = [args[position + 1] for position, arg in enumerate(args) if arg == "--set"]
        recipe, folder = (args[args.index(option) + 1] for option in ("--recipe", "--output"))
        if "_" in folder:
            recipes[folder] = with_overrides(get_recipe(recipe), overrides)
    make_table("13", tmp_path / "out", scale="paper", data="imagenet", seeds=1)
    assert len(recipes) == len(started_runs) == 4
    for recipe, _ in started_runs:
        assert [folder for folder, documented in recipes.items() if documented == recipe] != [], recipe.progressive


@pytest.mark.parametrize("table", ["12", "13"])
def test_page_counts_the_runs_of_a_table_at_paper_scale(table, started_runs, tmp_path):
    """One run per cell and seed of that scale."""
    page = " ".join((REPOSITORY / "docs/how-to/reproduce-the-paper.md").read_text(encoding="utf-8").split())
    make_table(table, tmp_path / "out", scale="paper", data="imagenet", seeds=1)
    num_runs = len(started_runs) * SCALES["paper"].seeds
    assert f"Table {table} has {num_runs}" in page


def test_table_5_evaluates_at_the_size_of_training(started_runs, tmp_path):
    make_table("5", tmp_path / "out", scale="paper", data="imagenet", seeds=1)
    assert {recipe.eval_image_size for recipe, _ in started_runs} == {None}


def test_table_10_evaluates_each_model_at_the_size_of_its_counts(started_runs, tmp_path):
    """B7 at 600 px: the center square, 600 of 632 px. M at 480 px: the full image."""
    table = make_table("10", tmp_path / "out", scale="paper", data="imagenet", seeds=1)
    assert {
        recipe.model: (recipe.eval_image_size, recipe.crop_mode, recipe.crop_pct) for recipe, _ in started_runs
    } == {"efficientnet_b7": (600, "center", 600 / 632), "efficientnetv2_m": (480, "squash", 1.0)}
    assert {recipe.random_crop_mode for recipe, _ in started_runs} == {"center"}
    assert "Each evaluated at its own size." in table.ours_note


def test_runs_of_another_scale_or_device_are_rejected(started_runs, tmp_path):
    out = tmp_path / "out"
    make_table("13", out, data="here")
    with pytest.raises(InputError, match=mentioning("--scale", "tiny", "small", "--output")):
        make_table("13", out, data="here", scale="small")
    with pytest.raises(InputError, match=mentioning("table", "13", "12")):
        make_table("12", out, data="here")
    saved = json.loads((out / "asked.json").read_text())
    (out / "asked.json").write_text(json.dumps(saved | {"device": "cuda"}))
    with pytest.raises(InputError, match=mentioning("--device", "cuda", "cpu")):
        make_table("13", out, data="here")


def test_runs_without_a_saved_scale_are_continued(started_runs, tmp_path):
    out = tmp_path / "out"
    make_table("13", out, data="here")
    saved = json.loads((out / "asked.json").read_text())
    (out / "asked.json").write_text(json.dumps({name: saved[name] for name in ("data", "weights")}))
    make_table("13", out, data="here")
    assert json.loads((out / "asked.json").read_text()) == saved
    assert len(started_runs) == 4


def test_make_reproduce_makes_every_table():
    rule = (REPOSITORY / "Makefile").read_text().partition("\nreproduce:")[2].partition("\n\n")[0]
    in_loop = rule.partition("for table in ")[2].partition(";")[0].split()
    single = re.findall(r"python -m benchmarks.paper (\w+)", rule)
    assert sorted(in_loop + single) == sorted(reproduce.NAMES)


@pytest.mark.parametrize(
    ("table", "scale", "batch", "note"),
    [
        ("7", "paper", 16, "the time of 16 images on cuda in bf16 at a batch of 16"),
        ("11", "paper", 128, "the time of 128 images on cuda in bf16 at a batch of 128"),
        ("7", "small", 1, "an image's time on cuda in bf16 at a batch of 1"),
        ("7", "tiny", 1, "an image's time on cuda in fp32 at a batch of 1"),
    ],
)
def test_predictions_are_timed_with_the_batch_and_precision_of_the_scale(table, scale, batch, note, monkeypatch):
    """Images/s are of the full pass: 4 s for 128 images."""
    timings = []

    def latency_s(sizes, *, rounds, device, timing):
        timings.append((rounds, timing))
        return {name: [4.0] for name in sizes}

    monkeypatch.setattr(params_flops, "latency_s", latency_s)
    monkeypatch.setattr(params_flops, "lower_precision", lambda device: "bf16")
    table_ = params_flops.counted(table, SCALES[scale], torch.device("cuda"), print)
    precision = "fp32" if scale == "tiny" else "bf16"
    assert timings == [(SCALES[scale].latency_rounds, params_flops.Timing(batch, precision))]
    assert note in table_.ours_note
    if table == "11":
        assert table_.rows[0].ours["images/s"].values == (32.0,)
    monkeypatch.setattr(params_flops, "lower_precision", lambda device: None)
    assert params_flops.Timing.of(SCALES["paper"], torch.device("cpu"), paper_batch=16) == (16, "fp32")


@pytest.mark.parametrize("table", ["2", "3"])
def test_steps_use_16_bits_except_at_tiny_scale(table, monkeypatch):
    requests = []

    def speeds(steps, rounds, device, precision):
        requests.append((precision, {step.batch_size for step in steps.values()}))
        return dict.fromkeys(steps, Measurement((1.0,), "images/s"))

    monkeypatch.setattr(throughput, "images_per_s", speeds)
    monkeypatch.setattr(params_flops, "lower_precision", lambda device: "bf16")
    make, gpu = {"2": throughput.table_2, "3": throughput.table_3}[table], torch.device("cuda")
    table_ = make(SCALES["paper"], gpu, print)
    assert requests == [("bf16", {12, 24} if table == "2" else {32})]
    assert "bf16" in table_.ours_note
    assert "bf16" in make(SCALES["small"], torch.device("cpu"), print).ours_note
    assert "fp32" in make(SCALES["tiny"], gpu, print).ours_note


def test_steps_are_timed_alternately(monkeypatch):
    """The second step has no memory. The order is reversed in every second round."""
    order = []

    def step(request, device, precision):
        if request.batch_size == 2:
            raise MemoryError
        return lambda: order.append(request.batch_size)

    monkeypatch.setattr(throughput, "_step", step)
    steps = {name: throughput.Step(None, 32, images) for name, images in (("a", 1), ("b", 2), ("c", 3))}
    found = throughput.images_per_s(steps, 3, torch.device("cpu"), "fp32")
    assert order == [1, 3, *(1, 3), *(3, 1), *(1, 3), *(3, 1)]  # each alone, a warm-up round, three rounds
    assert [len(found[name].values) for name in steps] == [3, 0, 3]
    assert found["b"].why == "out of memory"


def test_predictions_are_timed_alternately_and_missing_models_have_a_reason(monkeypatch):
    """One of three models is of another family, and one has no memory."""
    calls, passes = [], []

    def create(name):
        if name == "efficientnetv2_l":
            raise MemoryError
        model = nn.Conv2d(3, 1, 1).requires_grad_(False)
        model.register_forward_hook(lambda *_: passes.append(name))
        return model

    monkeypatch.setattr(params_flops, "create", create)
    alternate = oom_safe_timing.interleave

    num_passes = {"passes": 0}

    def record(sides, **options):
        """0.5 s per round for any number of passes."""
        calls.append((list(sides), options["rounds"], options["warmup"]))
        alternate(sides, **options)
        before = len(passes)
        sides["efficientnetv2_s"]()
        num_passes["passes"] = len(passes) - before
        return {name: [0.5] * options["rounds"] for name in sides}

    monkeypatch.setattr(oom_safe_timing, "interleave", record)
    first = iter([0.1, 9.0])  # of each model alone: three passes per round, and one
    monkeypatch.setattr(params_flops, "interleave", lambda sides, **_: {name: [next(first)] for name in sides})
    names = ["efficientnetv2_s", "efficientnetv2_l", "resnet50", "efficientnetv2_b0"]
    timing = params_flops.Timing(4, "fp32")
    found = params_flops.latencies(names, "images/s", SCALES["tiny"], torch.device("cpu"), timing, print)
    assert calls == [(["efficientnetv2_s", "efficientnetv2_b0"], 9, 1)]  # both remaining models in one measurement
    assert [len(found[name].values) for name in names] == [9, 0, 0, 9]
    assert found["efficientnetv2_s"].middle == pytest.approx(4 * num_passes["passes"] / 0.5)
    assert num_passes["passes"] == 3
    assert found["efficientnetv2_b0"].middle == pytest.approx(4 / 0.5)
    assert found["efficientnetv2_l"].why == "out of memory"
    assert found["resnet50"].why == "not a network of this family"


def test_predictions_are_timed_on_the_same_noise(monkeypatch):
    """On a constant image an untrained model computes only zeros."""
    params_create, images, activations = params_flops.create, [], []

    def create(name):
        model = params_create(name)
        model.register_forward_pre_hook(lambda _, args: images.append(args[0]))
        model.blocks[-1].register_forward_hook(lambda _, args, output: activations.append(args[0]))
        return model

    monkeypatch.setattr(params_flops, "create", create)
    for _ in range(2):
        timing = params_flops.Timing(1, "fp32")
        params_flops.latency_s({"efficientnetv2_b0": 32}, rounds=1, device=torch.device("cpu"), timing=timing)
    assert torch.equal(images[0], images[-1])
    assert all(activation.abs().max() > 0 for activation in activations)


def test_step_runs_without_mocks():
    speeds = throughput.images_per_s(
        {"b0": throughput.Step(get_architecture("efficientnet_b0"), 32, 2)}, 1, torch.device("cpu"), "bf16"
    )
    assert speeds["b0"].values[0] > 0
