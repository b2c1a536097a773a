"""docs/benchmarks/paper.md is generated from the records, and claims follow from their cells."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace

import pytest
import torch
from benchmarks import record
from benchmarks.paper import __main__ as command_line
from benchmarks.paper import page as paper_page
from benchmarks.paper import params_flops, published, records, runs, throughput, transfer
from benchmarks.paper.page import DRAWN, IMAGES, PAGE, RECORDED, RECORDS, TO_BE_MEASURED
from benchmarks.paper.reproduce import Request
from benchmarks.paper.scale import SCALES
from benchmarks.paper.table import TIMED, Measurement, Row, Table, untrained
from benchmarks.regimes import STRENGTHS
from tests.conftest import paint

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.registry import get_architecture


def test_page_equals_the_generated_page():
    """If not: python -m benchmarks.paper.page."""
    assert PAGE.read_text(encoding="utf-8") == paper_page.text()


@pytest.mark.parametrize("file", sorted(RECORDS.glob("*.json")), ids=lambda file: file.stem)
def test_record_is_a_table_without_local_paths(file):
    record_ = json.loads(file.read_text())
    assert {"scale", "command", "hardware", "versions", "date"} <= set(record_)
    assert file.stem == f"{Table.from_json(record_).name}_{record_['scale']}"
    assert not any(path in file.read_text() for path in ("/tmp", "/home", "/root", "/work"))


def introduction():
    """The first paragraph of the page, in one line."""
    return " ".join(paper_page.text().split("\n\n")[1].split())


def test_introduction_names_device_precision_and_size_of_all_speeds():
    """Device and precision from the notes of the records, image sizes from their scales."""
    fractions = {
        "a quarter of the paper's image sizes": 0.25,
        "half the paper's image sizes": 0.5,
        "the paper's image sizes": 1.0,
    }
    phrases = re.findall(r"of a (CPU|GPU) in (\w+) at ([a-z' ]+ sizes)(?: \(Tables? ([^)]*)\))?", introduction())
    stated = {(device, precision, fractions[sizes]): names for device, precision, sizes, names in phrases}
    found = {}
    for name in RECORDED:
        files = [RECORDS / f"{name}_{scale}.json" for scale in ("paper", "small", "tiny")]
        record = json.loads(next(file for file in files if file.exists()).read_text())
        rows = Table.from_json(record).rows
        if any(figure.values and figure.unit in TIMED for row in rows for figure in row.ours.values()):
            device, precision = re.search(r"\b(cpu|cuda|mps)\S*(?: in)? (\w+\d\d)\b", record["ours"]).groups()
            fraction = SCALES[record["scale"]].size_factor
            assert {float(number) for number in re.findall(r"([\d.]+) of th\w+ size", record["ours"])} <= {fraction}
            found.setdefault(("CPU" if device == "cpu" else "GPU", precision, fraction), []).append(name)
    assert {*"1237", "11"} <= {name for names in found.values() for name in names}
    assert stated.keys() == found.keys()
    if len(found) > 1:
        assert {key: re.split(", | and ", names) for key, names in stated.items()} == found


def speed_record(name, scale, device, precision, batch):
    """A record with speeds and the notes of ``python -m benchmarks.paper``."""
    args = SCALES[scale], torch.device(device), params_flops.Timing(batch, precision)
    note = untrained(scale) + params_flops.counted_note(*args)
    unit = "ms" if name in ("1", "7", "10") else "images/s"
    return make_record(name, scale, [Row("r", {}, {unit: Measurement((3.0,), unit)})]) | {"ours": note}


def test_speeds_of_gpu_and_cpu_are_separate(empty):
    def save(name, scale, *setup):
        (empty / f"{name}_{scale}.json").write_text(json.dumps(speed_record(name, scale, *setup)))

    assert "Our speeds" not in introduction(), "no speeds"
    for name in ("3", "7", "10", "11"):
        save(name, "tiny", "cpu", "fp32", 1)
    small = "of a CPU in fp32 at a quarter of the paper's image sizes"
    assert f"are {small}." in introduction()
    save("7", "paper", "cuda", "bf16", 16)
    full = "of a GPU in bf16 at the paper's image sizes"
    assert f"are {small} (Tables 3, 10 and 11) and {full} (Table 7)." in introduction()
    save("3", "small", "cuda:0", "fp32", 1)
    half = "of a GPU in fp32 at half the paper's image sizes (Table 3)"
    assert f"are {half} and {full} (Table 7) and {small} (Tables 10 and 11)." in introduction()
    for name in ("3", "10", "11"):
        save(name, "paper", "cuda", "bf16", 16)
    assert f"are {full}." in introduction()
    assert "No accuracy" not in introduction(), "there are runs at paper scale"


@pytest.mark.parametrize("make", [throughput.table_2, throughput.table_3])
def test_tables_of_steps_name_device_and_precision(make, empty, monkeypatch):
    monkeypatch.setattr(
        throughput, "images_per_s", lambda steps, *_: dict.fromkeys(steps, Measurement((3.0,), "images/s"))
    )
    monkeypatch.setattr(throughput, "precision_of", lambda scale, device: "fp16")
    table = make(SCALES["paper"], torch.device("cuda"), print)
    record = make_record(table.name, "paper", []) | table.to_json()
    (empty / f"{table.name}_paper.json").write_text(json.dumps(record))
    assert "are of a GPU in fp16 at the paper's image sizes." in introduction()


def test_speeds_without_device_and_size_are_rejected(empty):
    record = speed_record("3", "tiny", "cpu", "fp32", 1) | {"ours": "ours."}
    (empty / "3_tiny.json").write_text(json.dumps(record))
    with pytest.raises(AssertionError, match="Table 3 has speeds"):
        paper_page.text()


def test_kernel_sizes_closer_to_table_3():
    """For the remark: 3x3 in stages 1-3, the kernels of the stages beyond; for parameters and multiply-adds."""
    rows = {row.name: row for row in Table.from_json(json.loads((RECORDS / "3_tiny.json").read_text())).rows}
    closer = {}
    for stages in (3, 5, 7):
        variable, all_3x3 = rows[f"fused stages 1-{stages}"], rows[f"fused stages 1-{stages}, all 3x3"]
        for column in ("parameters, M", "multiply-adds, B"):
            gaps = [abs(row.ours[column].middle - variable.paper[column].middle) for row in (variable, all_3x3)]
            closer[stages, column] = "own" if gaps[0] < gaps[1] else "3x3"
    assert [choice for (stages, _), choice in closer.items() if stages == 3] == ["3x3"] * 2
    assert [choice for (stages, _), choice in closer.items() if stages > 3] == ["own"] * 4


def test_randaugment_costs_less_with_larger_images_for_every_seed():
    table = Table.from_json(json.loads((RECORDS / "5_small.json").read_text()))
    top1 = {row.name: {px: value.values for px, value in row.ours.items()} for row in table.rows}
    costs = {
        px: [less - more for more, less in zip(top1["magnitude 15"][px], values, strict=True)]
        for px, values in top1["magnitude 5"].items()
    }
    assert table.seeds == len(costs["128 px"]) == 3
    assert all(0 < large < small for large, small in zip(costs["300 px"], costs["128 px"], strict=True))
    claim = records.claims(table)["randaugment_size_top1_gain_b0_imagenette"][0]
    assert claim.low < 0 < claim.high


def test_remark_on_fusing_has_the_measured_speedups():
    """The remark of Table 3: images/s relative to no fused blocks, in 16 and in 32 bits, and in the paper."""
    tables = {
        scale: Table.from_json(json.loads((RECORDS / f"3_{scale}.json").read_text())) for scale in ("small", "tiny")
    }

    def ratios(scale, side):
        speeds = {row.name: getattr(row, side)["images/s"].mean for row in tables[scale].rows if row.paper}
        return [speeds[f"fused stages 1-{last}"] / speeds["no fused"] for last in (3, 5, 7)]

    remark, speedups = paper_page._REMARKS["3"], ratios("small", "ours")
    assert "bf16" in tables["small"].ours_note
    assert "fp32" in tables["tiny"].ours_note
    assert (
        "1-3 gives {:.1f} times the speed, stages 1-5 {:.1f} times and all stages {:.1f} times".format(*speedups)
        in remark
    )
    assert "V100 has {:.1f}, {:.1f} and {:.1f}".format(*ratios("small", "paper")) in remark
    assert f"fusing stages 1-3 gives {ratios('tiny', 'ours')[0]:.1f} times (" in remark


def test_remark_on_randaugment_has_the_tuning_results():
    """The remark of Table 5: magnitudes, dropout and top-1 at one learning rate."""
    paper = json.loads((RECORDS.parent / "progressive_paper.json").read_text())["tuned"]
    short = json.loads((RECORDS.parent / "progressive_short/tuned.json").read_text())
    remark = paper_page._REMARKS["5"]
    for tuned, strengths, sentence in (
        (paper, ("none", "slight", "light", "middle"), "{}, {}, {} and {} % in 60 epochs of 1,000 images"),
        (short, ("none", "slight", "light"), "{}, {} and {} % in 20 epochs of 2,400 images"),
    ):
        regime, candidates = tuned["regime"], tuned["arms"]["fixed"]["tried"]
        assert f"{regime['tune_epochs']} " in sentence
        assert f" {regime['tune_pictures']:,}" in sentence
        found = {candidate["strength"]: candidate["top1"] for candidate in candidates if candidate["lr"] == 0.002}
        assert sentence.format(*(f"{100 * found[name]:.1f}" for name in strengths)) in " ".join(remark.split())
    sizes, dropouts = zip(*(STRENGTHS[name] for name in ("none", "slight", "light", "middle")), strict=True)
    assert "magnitudes {:g}, {:.2g}, {:g} and {:g}".format(*sizes) in remark
    assert "dropout {:g}, {:.2g}, {:g} and {:g}".format(*dropouts) in remark


def test_table_11_has_an_earlier_s():
    """For the remark: with more channels and features, the S of Table 4 has the parameters of Table 11."""
    released = get_architecture("efficientnetv2_s")
    *stages, last = released.stages
    assert (last.channels, released.head_channels) == (256, 1280)
    earlier = replace(released, stages=(*stages, replace(last, channels=272)), head_channels=1792)
    row = json.loads((RECORDS / "11_tiny.json").read_text())["rows"][-1]
    assert row["name"] == "efficientnetv2_s"
    assert round(count_flops(earlier, image_size=384).total.parameters / 1e6) == row["paper"]["parameters, M"]["mean"]


def make_record(name, scale, rows):
    table = Table(name, f"Table {name}", tuple(rows), "theirs.", "ours, on cpu in fp32.")
    return table.to_json() | {
        "scale": scale, "command": "do it", "date": "2026-11-20", "hardware": "2 cores", "versions": {"torch": "2"},
    }  # fmt: skip


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setattr(paper_page, "RECORDS", tmp_path)
    return tmp_path


def test_table_without_a_record_is_to_be_measured(empty):
    page = paper_page.text()
    assert page.count("No record yet, to be measured") == len(RECORDED)


def test_page_starts_with_its_scope_and_ends_with_what_is_to_be_measured(empty, monkeypatch):
    monkeypatch.setattr(paper_page, "IMAGES", empty)  # no figures there
    steps = Row("r", {}, {"a, top-1 %": Measurement((40.0,))})
    (empty / "12_tiny.json").write_text(json.dumps(make_record("12", "tiny", [steps])))
    headings = [line for line in paper_page.text().splitlines() if line.startswith("#")]
    assert (headings[0], headings[-1]) == ("# Tables of the paper", "## To be measured")
    assert "`make reproduce`" in paper_page.text().partition("\n## ")[0]
    sentence = "No accuracy of the paper has been reproduced on ImageNet"
    assert sentence in introduction()
    (empty / "12_small.json").write_text(json.dumps(make_record("12", "small", [])))
    assert sentence in introduction()
    (empty / "12_paper.json").write_text(json.dumps(make_record("12", "paper", [])))
    assert sentence not in introduction()


def test_results_of_a_few_steps_are_omitted(empty):
    row = Row(
        "r",
        {"a, top-1 %": Measurement((78.0,))},
        {"a, top-1 %": Measurement((40.0,)), "a, minutes": Measurement((7.0,))},
    )
    (empty / "12_tiny.json").write_text(json.dumps(make_record("12", "tiny", [row])))
    assert f"| r | 78.0 | {TO_BE_MEASURED} | {TO_BE_MEASURED} |" in paper_page.text()
    (empty / "12_small.json").write_text(json.dumps(make_record("12", "small", [row])))
    assert "| r | 78.0 | 40.0 | 7.00 |" in paper_page.text()


def test_counts_and_speeds_next_to_short_runs_are_shown(empty):
    measured = {
        "top-1 %": Measurement((40.0,), "%"),
        "parameters, M": Measurement((7.1,), "M"),
        "ms": Measurement((3.0,), "ms"),
    }
    (empty / "10_tiny.json").write_text(json.dumps(make_record("10", "tiny", [Row("r", {}, measured)])))
    assert f"| r | {TO_BE_MEASURED} | 7.10 | 3.00 |" in paper_page.text()


def test_reason_of_missing_cells_is_stated_once(empty):
    rows = [Row(name, {}, {"p": Measurement(why="not a network of this family")}) for name in "ab"]
    (empty / "1_tiny.json").write_text(json.dumps(make_record("1", "tiny", rows)))
    page = paper_page.text()
    assert "| a | – |" in page
    assert page.count("–: not a model of this family.") == 1


def without(record_, column, *sides, row=None):
    """A record without a column on these sides, in all rows or in one."""
    for values in record_["rows"]:
        for side in sides if row in (None, values["name"]) else ():
            values[side].pop(column, None)
    return record_


def section(page, heading):
    return next(part for part in page.split("\n## ") if part.startswith(heading))


@pytest.mark.parametrize(
    ("name", "column"),
    [("11_tiny", "multiply-adds, B"), ("7_tiny", "parameters, M"), ("3_tiny", "images/s"), ("9_tiny", "classes")],
)
def test_missing_column_of_the_paper_is_named(name, column, empty):
    complete = (RECORDS / f"{name}.json").read_text()
    number, scale = name.split("_")
    file, heading = empty / f"{name}.json", f"Table {number}"
    message = f"In the paper's table, but not in this record: {column}."
    file.write_text(complete)
    assert "not in this record" not in section(paper_page.text(), heading)
    assert f"- {heading}, not in its record" not in paper_page.text()
    file.write_text(json.dumps(without(json.loads(complete), column, "paper", "ours")))
    assert message in section(paper_page.text(), heading)
    command = f"python -m benchmarks.paper {number} --scale {scale} --record"
    assert f"- {heading}, not in its record: {column} (`{command}`)" in section(paper_page.text(), "To be")
    file.write_text(json.dumps(without(json.loads(complete), column, "ours")))
    [not_ours] = re.findall(r"^Not ours: (.*)\.$", section(paper_page.text(), heading), re.MULTILINE)
    assert column in not_ours.split("; ")


def test_missing_cell_is_named(empty):
    complete = json.loads((RECORDS / "12_tiny.json").read_text())
    for column in ("progressive, top-1 %", "progressive, minutes"):
        without(complete, column, "ours", row="resnet50_380")
    (empty / "12_tiny.json").write_text(json.dumps(complete))
    message = "not in this record: resnet50_380, progressive, top-1 %; resnet50_380, progressive, minutes."
    assert message in section(paper_page.text(), "Table 12")


def test_every_column_of_the_paper_is_in_its_section_or_named_as_missing():
    """Hours in the paper may be minutes here."""
    page = paper_page.text()
    for name in sorted(set(RECORDED) - {"figure4"}, key=int):
        text = section(page, f"Table {name}:")
        shown = next(line for line in text.splitlines() if line.startswith("|  |")).strip("| ").split(" | ")
        missing = [part for line in text.splitlines() if ":" in line for part in re.split(r"[;:] |\.$", line)]
        for heading, _ in published.headings(name).values():
            names = {f"{heading}, ours", f"{heading.replace('hours', 'minutes')}, ours"}
            assert names & set(shown) or heading in missing, (name, heading)


def test_to_be_measured_lists_everything_without_a_record():
    """Speeds of the paper at its sizes, and results of more than a few steps."""
    text = section(paper_page.text(), "To be measured")
    scales = {name: {file.stem.split("_")[1] for file in RECORDS.glob(f"{name}_*.json")} for name in RECORDED}
    for name in ("1", "2", "3", "7", "11"):
        command = f"`python -m benchmarks.paper {name} --scale paper --device cuda --record`"
        has_speeds = name != "1"  # no times in the paper
        assert (
            (f"- Table {name}, on a GPU" in text) == (command in text) == (has_speeds and "paper" not in scales[name])
        )
    for name in ("5", "8", "10", "12", "13"):
        assert (f"- Table {name}, of runs of more than a few steps: " in text) == (scales[name] == {"tiny"})


def test_speeds_at_paper_scale_are_not_to_be_measured_again(empty):
    row = Row("r", {"images/s": Measurement((2.0,), "images/s")}, {"images/s": Measurement((3.0,), "images/s")})
    for scale, expected in (("tiny", True), ("small", True), ("paper", False)):
        (empty / f"3_{scale}.json").write_text(json.dumps(make_record("3", scale, [row])))
        assert ("- Table 3, on a GPU" in paper_page.text()) == expected


def table(name, cells):
    """(row, column) -> values."""
    rows = {}
    for (row, column), values in cells.items():
        rows.setdefault(row, {})[column] = Measurement(values)
    return Table(name, "", tuple(Row(row, {}, ours) for row, ours in rows.items()), "", "")


def values(table_):
    return {name: (pytest.approx(claim.value), unit) for name, (claim, unit) in records.claims(table_).items()}


def test_claim_of_table_5_by_hand():
    cells = {
        ("magnitude 5", "128 px"): (50.0,),
        ("magnitude 15", "128 px"): (48.0,),
        ("magnitude 5", "300 px"): (60.0,),
        ("magnitude 15", "300 px"): (61.0,),
    }
    assert values(table("5", cells)) == {"randaugment_size_top1_gain_b0_imagenette": (3.0, "points")}
    assert records.claims(table("6", cells)) == {}


def test_saved_table_is_on_the_page(empty):
    table_ = table("6", {("S, image px", "first stage"): (128.0,)})
    records.write_record("6", table_, "tiny", "python -m benchmarks.paper 6", "a machine", empty / "none.png")
    assert "| S, image px | 128 |" in paper_page.text()


def test_figure_is_saved_as_an_image(empty, monkeypatch):
    monkeypatch.setattr(paper_page, "IMAGES", empty / "images")
    (empty / "images").mkdir()
    (empty / "drawn.png").write_bytes(b"image")
    records.write_record("figure1", table("figure1", {}), "tiny", "", "a machine", empty / "drawn.png")
    assert (empty / "images" / "figure1.png").read_bytes() == b"image"
    assert not list(empty.glob("*_tiny.json"))
    assert "(../images/figure1.png)" in paper_page.text()
    assert "(../images/figure4.png)" not in paper_page.text()


@pytest.mark.parametrize(
    ("name", "phrases"),
    [
        ("figure1", ("parameters", "at the paper's top-1", "accuracy and hours", "not measured")),
        ("figure4", ("All values are ours",)),
        ("figure5", ("parameters", "multiply-adds", "latency", "at the paper's top-1", "not measured")),
    ],
)
def test_figure_names_its_measured_points(name, phrases):
    title = "Figure 4, drawn" if name == "figure4" else published.TABLES[name]["title"]
    text = section(paper_page.text(), f"{title}\n").partition(".png)")[2]
    assert [phrase for phrase in phrases if phrase not in text] == []


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_in_docs(name):
    assert (IMAGES / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_a_long_table_are_saved_outside_their_folder(tmp_path):
    saved, folder, other_folder = tmp_path / "13_small", tmp_path / "here", tmp_path / "there"
    (folder / "grow_vanilla_0").mkdir(parents=True)
    report = {"top1": 0.5, "train_s": 60.0, "command": "/somewhere/on/a/machine"}
    (folder / "grow_vanilla_0/report.json").write_text(json.dumps(report))
    (folder / "grow_vanilla_0/asked.json").write_text('{"model": "b0"}')
    (folder / "grow_vanilla_1").mkdir()  # not finished
    records.sync_runs(saved, folder, "2 cores, A", "cpu")
    assert [file.name for file in saved.iterdir()] == ["grow_vanilla_0.json"]
    assert "/somewhere" not in (saved / "grow_vanilla_0.json").read_text()
    assert json.loads((saved / "grow_vanilla_0.json").read_text())["hardware"] == "2 cores, A"
    records.sync_runs(saved, other_folder, "2 cores, B", "cpu")
    restored = json.loads((other_folder / "grow_vanilla_0/report.json").read_text())
    assert (restored["top1"], restored["train_s"], restored["asked"]) == (0.5, 60.0, {"model": "b0"})
    records.sync_runs(saved, folder, "2 cores, B", "cpu")
    assert json.loads((folder / "grow_vanilla_0/report.json").read_text()) == report, "existing reports are unchanged"


def test_table_has_the_hardware_of_its_runs_and_of_its_timing(tmp_path):
    """Two of three seeds are used; the third was run on another machine."""
    for seed, machine in enumerate("BAC"):
        (tmp_path / f"row_run_{seed}.json").write_text(json.dumps({"top1": 0.5, "hardware": machine}))
    table_ = Table("10", "", (Row("row", {}, {"top-1 %": Measurement((50.0, 50.0), "%")}),), "", "", "small", 2)
    rows = records.stored_runs(table_, tmp_path)
    assert records.hardware_of(table_, rows, "here") == "A and B"
    timed_table = replace(table_, rows=(Row("row", {}, {"ms": Measurement((1.0,), "ms")}),))
    assert records.hardware_of(timed_table, rows, "here") == "A and B and here"
    assert records.hardware_of(timed_table, records.stored_runs(timed_table, tmp_path / "none"), "here") == "here"


def test_runs_of_another_device_are_not_saved(tmp_path):
    for name, device in (("a_x_0", "cuda"), ("a_x_1", "cpu")):
        folder = tmp_path / "cells" / name
        folder.mkdir(parents=True)
        (folder / "report.json").write_text('{"top1": 0.5, "train_s": 60.0, "versions": {"torch": "1"}}')
        (folder / "asked.json").write_text(json.dumps({"device": device}))
    records.sync_runs(tmp_path / "kept", tmp_path / "cells", "2 cores", "cpu")
    (file,) = (tmp_path / "kept").iterdir()
    assert file.name == "a_x_1.json"
    assert json.loads(file.read_text())["versions"] == {"torch": "1"}


def test_saved_runs_on_other_images_are_rejected(empty, monkeypatch, tmp_path, capsys):
    """The folder of the runs is not in a clone."""
    monkeypatch.setattr(runs, "refuse_missing", lambda runs: None)
    monkeypatch.setattr(paper_page, "write", lambda: None)
    for name in "AB":
        for number in range(4):
            paint(tmp_path / name / "xy"[number % 2] / f"{name}{number}.jpg", (90, 90, 90), number)

    def train(options, source, place, **_):
        place.out.mkdir(parents=True)
        (place.out / "report.json").write_text('{"top1": 0.5, "train_s": 60.0}')

    monkeypatch.setattr(runs, "train_and_report", train)
    written = []
    monkeypatch.setattr(records, "record", lambda name, **claim: written.append(claim["on"]))
    monkeypatch.setattr(records, "forget", lambda name: None)

    def run_in(clone, data):
        clone.mkdir(exist_ok=True)
        monkeypatch.chdir(clone)
        args = ["5", "--scale", "small", "--data", str(tmp_path / data), "--seeds", "2", "--device", "cpu"]
        command_line.main([*args, "--record"])

    run_in(tmp_path / "first", "A")
    assert len(list((paper_page.RECORDS / "5_small").glob("*.json"))) == 18
    monkeypatch.setattr(runs, "train_and_report", lambda *_: pytest.fail("was trained again"))
    run_in(tmp_path / "second", "A")
    assert written == [record.hardware()] * 2
    with pytest.raises(SystemExit):
        run_in(tmp_path / "third", "B")
    assert re.search(r"has a run of another kind: pictures: \w+ there, \w+ here", capsys.readouterr().err)


@pytest.mark.parametrize("file", sorted(paper_page.RECORDS.glob("*.json")), ids=lambda file: file.stem)
def test_command_of_every_record_is_valid(file, monkeypatch):
    """Capitals are placeholders of files."""
    requests = []

    def stop(request, **more):
        requests.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "reproduce", stop)
    record_ = json.loads(file.read_text())
    program, module, name, *args = shlex.split(record_["command"])
    assert (program, module) == ("python", "-m")
    if name != "benchmarks.paper":  # a comparison at small scale
        tables = {"benchmarks.adaptive": "13", "benchmarks.progressive": "12", "benchmarks.transfer": "8"}
        assert (record_["table"], record_["scale"]) == (tables[name], "small")
        return
    with pytest.raises(SystemExit) as exit_:
        command_line.main(args)
    assert exit_.value.code == 130
    assert (requests[0].table, requests[0].scale) == (record_["table"], record_["scale"])
    if record_["table"] == "8":
        transfer.refuse_weights(SCALES[record_["scale"]], requests[0].weights)


def test_command_has_all_options_that_determine_the_table():
    request = Request("8", "small", "/some/where", 2, "/a/file", "cpu")
    assert (
        records.command_of(request)
        == "python -m benchmarks.paper 8 --scale small --data DATA --seeds 2 --weights WEIGHTS"
    )
    without_data = Request("8", "tiny", weights="none", device="cpu")
    assert records.command_of(without_data) == "python -m benchmarks.paper 8 --scale tiny --weights none"
    on_a_gpu = Request("7", "paper", device="cuda")
    assert records.command_of(on_a_gpu) == "python -m benchmarks.paper 7 --scale paper --device cuda"
