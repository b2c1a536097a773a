"""The paper's tables are there whole, and at the paper's scale they are the paper's work; nothing is trained here."""

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
from tests.comparisons.test_paper import made
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
    """What --help prints, in one line."""
    return " ".join(command_line.parse_options(["6"])[0].format_help().split())


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """What runs are asked for, (recipe, DATA); none is made, needs nothing, and no network is timed."""
    asked = []
    monkeypatch.setattr(runs, "refuse_missing", lambda runs: None)

    def begin(words, source, place, **_):
        asked.append((requested_recipe(words, pick_device("cpu"))[0], source.data))
        place.out.mkdir(parents=True)
        (place.out / "report.json").write_text('{"top1": 0.5, "train_s": 60.0}')

    monkeypatch.setattr(runs, "train_and_report", begin)
    monkeypatch.setattr(params_flops, "latency_s", lambda sizes, **how: {one: [0.001, 0.002, 0.009] for one in sizes})
    figure = Measurement((1.0, 2.0, 9.0), "images/s")
    monkeypatch.setattr(throughput, "images_per_s", lambda steps, *given: dict.fromkeys(steps, figure))
    monkeypatch.delenv("EFFNETV2_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return asked


def numbers(given):
    """Every number in a table of paper.json, and words in the place of one."""
    if isinstance(given, dict):
        given = list(given.values())
    if isinstance(given, list):
        return [one for value in given for one in numbers(value)]
    figure = published.measurement(given, "")
    return [*figure.values, *([figure.word] if figure.word else [])]


def of_runs(table, **more):
    """Words for whatever the table is: those of runs, if it has some."""
    return (
        {"data": "here", **more} | ({"weights": "none"} if table == "8" else {}) if table in reproduce.TRAINED else {}
    )


@pytest.mark.parametrize("table", TABLES)
def test_every_number_of_the_papers_table_is_in_it(table, begun, tmp_path):
    shown = made(table, tmp_path / "out", **of_runs(table))
    figures = [figure for row in shown.rows for figure in row.paper.values()]
    there = Counter(one for figure in figures for one in (*figure.values, figure.spread, figure.word))
    there += Counter(float(one) for one in re.findall(r"\d+", shown.paper_note))
    assert Counter(numbers(published.rows(table))) - there == Counter()


@pytest.mark.parametrize("table", reproduce.NAMES)
def test_each_of_our_columns_has_a_figure_or_a_reason_in_every_row_and_the_scale_is_told(table, begun, tmp_path):
    shown = made(table, tmp_path / "out", **of_runs(table, seeds=2))
    assert any(row.ours for row in shown.rows)
    for column in {column for row in shown.rows for column in row.ours}:
        for row in shown.rows:
            assert row.ours[column].values or row.ours[column].why, (row.name, column)
    kept = json.loads((tmp_path / "out" / "table.json").read_text())
    assert "scale tiny" in shown.ours_note
    assert ("2 seeds" in shown.ours_note) == bool(begun)
    assert (kept["scale"], kept["seeds"]) == ("tiny", 2 if begun else None)


def test_a_spread_or_a_word_of_the_papers_is_printed():
    assert str(published.measurement([78.3, 0.16], "%")) == "78.3 ± 0.16"
    assert str(published.measurement("OOM", "images/s")) == "OOM"


def test_of_times_the_median_is_printed_and_of_all_else_the_mean():
    """1, 2 and 9: median 2, mean 4."""
    assert [Measurement((1.0, 2.0, 9.0), unit).middle for unit in ("ms", "images/s", "%")] == [2.0, 2.0, 4.0]
    assert str(Measurement((1.0, 2.0, 9.0), "ms")).startswith("2.00 ±")
    assert str(Measurement((300.0, 400.0, 500.0), "ms")) == "400 ± 100"
    assert str(Measurement((3.0, 4.0, 5.5), "ms")) == "4.00 ± 1.3"
    assert Measurement((1.0, 2.0, 9.0), "ms").to_json()["median"] == 2.0


def test_each_network_of_table_7_is_timed_once_xl_too(begun, tmp_path):
    rows = {row.name: row.ours["ms"] for row in made("7", tmp_path / "out").rows}
    untimed = {name for name, figure in rows.items() if not figure.values}
    assert untimed == {f"efficientnetv2_{size}_21k" for size in ("s", "m", "l")}
    assert rows["efficientnetv2_xl_21k"].middle == 2.0
    assert rows["efficientnetv2_s_21k"].why == "the same network is timed in an earlier row"


def test_table_9_counts_the_sets_at_hand_as_the_paper_does(begun, tmp_path, monkeypatch):
    """Flowers' own val is trained on: the paper counts 2,040 = 1,020 + 1,020."""

    def read(name):
        if name == "cifar100":
            raise InputError(f"The standard set '{name}' is damaged.")
        if name != "flowers102":
            raise DatasetNotFoundError(f"The standard set '{name}' is neither here nor there.")
        split, label = ["train", "val", "test", "test", "test"], ["a", "b", "a", "b", "c"]
        return SimpleNamespace(table=pd.DataFrame({"split": split, "label": label}))

    monkeypatch.setattr(transfer, "read_builtin", read)
    rows = {row.name: row for row in made("9", tmp_path / "out").rows}
    assert [rows["flowers102"].ours[name].mean for name in ("train", "eval", "classes")] == [2, 3, 3]
    assert str(rows["cifar10"].paper["train"]) == "50,000"
    assert rows["cars"].ours["train"].why == "the set is not at hand"
    assert rows["cifar100"].ours["train"].why == "the set is not at hand whole; log.txt says why"


def test_table_8_at_the_papers_scale_begins_each_network_with_its_own_weights_on_each_set(begun, tmp_path):
    shown = made("8", tmp_path / "out", scale="paper", seeds=1)
    assert len(begun) == 3 * 4
    assert {recipe.weights for recipe, _ in begun} == {f"efficientnetv2_{size}.in1k" for size in "sml"}
    assert all(recipe.weights == f"{recipe.model}.in1k" for recipe, _ in begun)
    assert {data for _, data in begun} == {"cifar10", "cifar100", "flowers102", "stanford_cars"}
    sizes = {"efficientnetv2_s": 384, "efficientnetv2_m": 480, "efficientnetv2_l": 480}
    for recipe, _ in begun:
        assert recipe.progressive.last.image_size == recipe.eval_image_size == sizes[recipe.model]
        assert recipe.eval_split == "test"
    for row in shown.rows:
        assert set(row.ours) == set(row.paper) == {"cifar10", "cifar100", "flowers102", "cars"}
        assert all(figure.values for figure in row.ours.values())


def test_table_8_at_small_trains_on_a_set_of_the_papers(begun, tmp_path):
    """Not on Imagenette, whose ten classes ImageNet's weights know, and of which the paper has no figure."""
    shown = made("8", tmp_path / "out", scale="small", seeds=1, weights="none")
    assert {data for _, data in begun} == {"cifar10"}
    assert set(shown.rows[0].ours) == {"cifar10"} < set(shown.rows[0].paper)
    begun.clear()
    made("13", tmp_path / "other", scale="small", seeds=1)
    assert {data for _, data in begun} == {"imagenette"}
    helped = _help()
    assert "imagenette, for table 8 cifar10 (small)" in helped


@pytest.mark.parametrize("data", ["stanford_cars", "cars"])
def test_cars_are_the_papers_column_by_either_name(data, begun, tmp_path):
    shown = made("8", tmp_path / "out", data=f"{data},cifar10", weights="none")
    assert set(shown.rows[0].ours) == {"cars", "cifar10"}
    assert {data for _, data in begun} == {"stanford_cars", "cifar10"}


@pytest.mark.parametrize(
    ("table", "words", "sentence"),
    [
        *((table, {"scale": "paper"}, "--data FOLDER") for table in ("5", "10", "12", "13")),
        ("8", {"scale": "paper", "weights": "efficientnetv2_s.in1k"}, "Leave --weights out"),
        ("8", {"scale": "small"}, "--weights none to see that everything runs"),
        ("13", {"weights": "trunk.safetensors"}, "only Table 8 starts from weights. Leave --weights out"),
        ("7", {"data": "here", "seeds": 2}, "--data here --seeds 2: for Table 7 nothing is trained"),
        ("figure1", {"weights": "none"}, "--weights none: for Figure 1 nothing is trained"),
    ],
)
def test_what_cannot_run_is_refused_and_leaves_nothing_behind(table, words, sentence, begun, tmp_path):
    with pytest.raises(InputError, match=sentence):
        made(table, tmp_path / "out", **words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "preset", "varies", "networks"),
    [
        ("5", "efficientnetv2_s", {"image_size", "randaugment"}, {"efficientnetv2_s"}),
        ("10", "efficientnetv2_m", set(), {"efficientnet_b7", "efficientnetv2_m"}),
        ("13", "efficientnetv2_m", set(), {"efficientnetv2_m"}),
    ],
)
def test_at_the_papers_scale_runs_are_those_of_section_5_1(table, preset, varies, networks, begun, tmp_path):
    shown = made(table, tmp_path / "out", scale="paper", data="imagenet", seeds=1)
    facts, end = published.PAPER["imagenet1k_recipe"], presets.paper_schedule(preset).last
    for recipe, _ in begun:
        last = recipe.progressive.last
        assert replace(last, **{name: getattr(end, name) for name in varies}) == end
        assert (recipe.epochs, recipe.batch_size) == (facts["epochs"], facts["batch_size"])
    assert {recipe.model for recipe, _ in begun} == networks
    assert all(name in shown.ours_note for name in (*networks, f"recipe {preset}_paper"))


def test_table_13_is_of_m_and_vanilla_is_its_end_throughout(begun, tmp_path):
    plan = presets.paper_schedule("efficientnetv2_m")
    adaptive = published.rows("13")["progressive_resize"][1][0]
    assert [name for name, row in published.rows("7").items() if row[0] == adaptive] == ["efficientnetv2_m"]
    made("13", tmp_path / "out", scale="paper", data="imagenet", seeds=1)
    first = [recipe.progressive.stage(0) for recipe, _ in begun if recipe.progressive.order == "growing"]
    assert first == [replace(plan.last, image_size=128), plan.stage(0)]


def test_the_page_gives_table_13s_cells_as_commands(begun, tmp_path):
    page = (REPOSITORY / "docs/how-to/reproduce-the-paper.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [shlex.split(line) for line in page.splitlines() if line.startswith("torchrun ")]
    shown = {}
    for words in lines:
        settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
        recipe, folder = (words[words.index(option) + 1] for option in ("--recipe", "--output"))
        if "_" in folder:
            shown[folder] = with_overrides(get_recipe(recipe), settings)
    made("13", tmp_path / "out", scale="paper", data="imagenet", seeds=1)
    assert len(shown) == len(begun) == 4
    for recipe, _ in begun:
        assert [folder for folder, one in shown.items() if one == recipe] != [], recipe.progressive


@pytest.mark.parametrize("table", ["12", "13"])
def test_the_page_counts_the_runs_of_a_table_at_the_papers_scale(table, begun, tmp_path):
    """As many cells as asked for with one seed, each with the seeds of that scale."""
    page = " ".join((REPOSITORY / "docs/how-to/reproduce-the-paper.md").read_text(encoding="utf-8").split())
    made(table, tmp_path / "out", scale="paper", data="imagenet", seeds=1)
    runs = len(begun) * SCALES["paper"].seeds
    assert f"Table {table} has {runs}" in page


def test_table_5_evaluates_at_the_size_of_training(begun, tmp_path):
    made("5", tmp_path / "out", scale="paper", data="imagenet", seeds=1)
    assert {recipe.eval_image_size for recipe, _ in begun} == {None}


def test_table_10_evaluates_each_network_at_the_size_that_it_is_counted_and_timed_at(begun, tmp_path):
    """B7 at 600 px: the centre square, 600 of 632 px. M at 480 px: the whole image."""
    shown = made("10", tmp_path / "out", scale="paper", data="imagenet", seeds=1)
    assert {recipe.model: (recipe.eval_image_size, recipe.crop_mode, recipe.crop_pct) for recipe, _ in begun} == {
        "efficientnet_b7": (600, "center", 600 / 632),
        "efficientnetv2_m": (480, "squash", 1.0),
    }
    assert {recipe.random_crop_mode for recipe, _ in begun} == {"center"}
    assert "Each evaluated at its own size." in shown.ours_note


def test_runs_of_another_scale_or_device_are_not_taken_for_these(begun, tmp_path):
    out = tmp_path / "out"
    made("13", out, data="here")
    with pytest.raises(InputError, match=r"--scale is tiny there, small here. Give another --output"):
        made("13", out, data="here", scale="small")
    with pytest.raises(InputError, match=r"has runs of another kind: table is 13 there, 12 here"):
        made("12", out, data="here")
    there = json.loads((out / "asked.json").read_text())
    (out / "asked.json").write_text(json.dumps(there | {"device": "cuda"}))
    with pytest.raises(InputError, match="--device is cuda there, cpu here"):
        made("13", out, data="here")


def test_runs_of_a_folder_that_tells_no_scale_are_gone_on_with(begun, tmp_path):
    out = tmp_path / "out"
    made("13", out, data="here")
    there = json.loads((out / "asked.json").read_text())
    (out / "asked.json").write_text(json.dumps({name: there[name] for name in ("data", "weights")}))
    made("13", out, data="here")
    assert json.loads((out / "asked.json").read_text()) == there
    assert len(begun) == 4


def test_make_reproduce_makes_every_table():
    rule = (REPOSITORY / "Makefile").read_text().partition("\nreproduce:")[2].partition("\n\n")[0]
    looped = rule.partition("for table in ")[2].partition(";")[0].split()
    alone = re.findall(r"python -m benchmarks.paper (\w+)", rule)
    assert sorted(looped + alone) == sorted(reproduce.NAMES)


@pytest.mark.parametrize(
    ("table", "scale", "batch", "told"),
    [
        ("7", "paper", 16, "the time of 16 images on cuda in bf16 at a batch of 16"),
        ("11", "paper", 128, "the time of 128 images on cuda in bf16 at a batch of 128"),
        ("7", "small", 1, "an image's time on cuda in bf16 at a batch of 1"),
        ("7", "tiny", 1, "an image's time on cuda in fp32 at a batch of 1"),
    ],
)
def test_answers_are_timed_as_in_the_papers_column_at_its_scale(table, scale, batch, told, monkeypatch):
    """Images/s are of the whole pass: 4 s for 128 images."""
    timings = []

    def latency_s(sizes, *, rounds, device, timing):
        timings.append((rounds, timing))
        return {name: [4.0] for name in sizes}

    monkeypatch.setattr(params_flops, "latency_s", latency_s)
    monkeypatch.setattr(params_flops, "lower_precision", lambda device: "bf16")
    shown = params_flops.counted(table, SCALES[scale], torch.device("cuda"), print)
    precision = "fp32" if scale == "tiny" else "bf16"
    assert timings == [(SCALES[scale].latency_rounds, params_flops.Timing(batch, precision))]
    assert told in shown.ours_note
    if table == "11":
        assert shown.rows[0].ours["images/s"].values == (32.0,)
    monkeypatch.setattr(params_flops, "lower_precision", lambda device: None)
    assert params_flops.Timing.of(SCALES["paper"], torch.device("cpu"), paper_batch=16) == (16, "fp32")


@pytest.mark.parametrize("table", ["2", "3"])
def test_steps_are_in_16_bits_where_they_are_quick_but_at_scale_tiny(table, monkeypatch):
    asked = []

    def speeds(steps, rounds, device, precision):
        asked.append((precision, {step.batch_size for step in steps.values()}))
        return dict.fromkeys(steps, Measurement((1.0,), "images/s"))

    monkeypatch.setattr(throughput, "images_per_s", speeds)
    monkeypatch.setattr(params_flops, "lower_precision", lambda device: "bf16")
    make, gpu = {"2": throughput.table_2, "3": throughput.table_3}[table], torch.device("cuda")
    whole = make(SCALES["paper"], gpu, print)
    assert asked == [("bf16", {12, 24} if table == "2" else {32})]
    assert "bf16" in whole.ours_note
    assert "bf16" in make(SCALES["small"], torch.device("cpu"), print).ours_note
    assert "fp32" in make(SCALES["tiny"], gpu, print).ours_note


def test_steps_whose_speeds_are_compared_take_turns(monkeypatch):
    """The second has no memory; of the others none is timed twice running but where the order turns round."""
    called = []

    def step(asked, device, precision):
        if asked.batch_size == 2:
            raise MemoryError
        return lambda: called.append(asked.batch_size)

    monkeypatch.setattr(throughput, "_step", step)
    steps = {name: throughput.Step(None, 32, images) for name, images in (("a", 1), ("b", 2), ("c", 3))}
    found = throughput.images_per_s(steps, 3, torch.device("cpu"), "fp32")
    assert called == [1, 3, *(1, 3), *(3, 1), *(1, 3), *(3, 1)]  # each alone, a round to warm up, three that count
    assert [len(found[name].values) for name in steps] == [3, 0, 3]
    assert found["b"].why == "out of memory"


def test_answers_that_are_compared_take_turns_and_what_is_missing_of_them_says_why(monkeypatch):
    """Of three networks one is another family's and one has no memory."""
    called, passes = [], []

    def create(name):
        if name == "efficientnetv2_l":
            raise MemoryError
        network = nn.Conv2d(3, 1, 1).requires_grad_(False)
        network.register_forward_hook(lambda *_: passes.append(name))
        return network

    monkeypatch.setattr(params_flops, "create", create)
    alternate = oom_safe_timing.interleave

    passed = {"passes": 0}

    def seen(sides, **how):
        """Half a second a round, however many passes a network makes in one."""
        called.append((list(sides), how["rounds"], how["warmup"]))
        alternate(sides, **how)
        before = len(passes)
        sides["efficientnetv2_s"]()
        passed["passes"] = len(passes) - before
        return {name: [0.5] * how["rounds"] for name in sides}

    monkeypatch.setattr(oom_safe_timing, "interleave", seen)
    first = iter([0.1, 9.0])  # of the networks alone: three passes a round, and one
    monkeypatch.setattr(params_flops, "interleave", lambda sides, **how: {name: [next(first)] for name in sides})
    names = ["efficientnetv2_s", "efficientnetv2_l", "resnet50", "efficientnetv2_b0"]
    timing = params_flops.Timing(4, "fp32")
    found = params_flops.latencies(names, "images/s", SCALES["tiny"], torch.device("cpu"), timing, print)
    assert called == [(["efficientnetv2_s", "efficientnetv2_b0"], 9, 1)]  # both that are left, in one measurement
    assert [len(found[name].values) for name in names] == [9, 0, 0, 9]
    assert found["efficientnetv2_s"].middle == pytest.approx(4 * passed["passes"] / 0.5)
    assert passed["passes"] == 3
    assert found["efficientnetv2_b0"].middle == pytest.approx(4 / 0.5)
    assert found["efficientnetv2_l"].why == "out of memory"
    assert found["resnet50"].why == "not a network of this family"


def test_answers_are_timed_on_noise_the_same_each_time(monkeypatch):
    """Of an empty image an untrained network computes zeros alone."""
    created, pictures, within = params_flops.create, [], []

    def create(name):
        network = created(name)
        network.register_forward_pre_hook(lambda network, given: pictures.append(given[0]))
        network.blocks[-1].register_forward_hook(lambda block, given, answer: within.append(given[0]))
        return network

    monkeypatch.setattr(params_flops, "create", create)
    for _ in range(2):
        timing = params_flops.Timing(1, "fp32")
        params_flops.latency_s({"efficientnetv2_b0": 32}, rounds=1, device=torch.device("cpu"), timing=timing)
    assert torch.equal(pictures[0], pictures[-1])
    assert all(one.abs().max() > 0 for one in within)


def test_a_step_is_really_made():
    figure = throughput.images_per_s(
        {"b0": throughput.Step(get_architecture("efficientnet_b0"), 32, 2)}, 1, torch.device("cpu"), "bf16"
    )
    assert figure["b0"].values[0] > 0
