"""docs/benchmarks/paper.md says what the records say, no more; and claims are what their cells give by hand."""

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


def test_the_page_is_the_one_that_its_records_give():
    """If not: python -m benchmarks.paper.page."""
    assert PAGE.read_text(encoding="utf-8") == paper_page.text()


@pytest.mark.parametrize("file", sorted(RECORDS.glob("*.json")), ids=lambda file: file.stem)
def test_a_record_is_a_table_without_places_of_a_machine(file):
    kept = json.loads(file.read_text())
    assert {"scale", "command", "hardware", "versions", "date"} <= set(kept)
    assert file.stem == f"{Table.from_json(kept).name}_{kept['scale']}"
    assert not any(place in file.read_text() for place in ("/tmp", "/home", "/root", "/work"))


def opening():
    """The page's first paragraph, in one line."""
    return " ".join(paper_page.text().split("\n\n")[1].split())


def test_speeds_are_those_that_the_page_says_it_has():
    """By the records that it shows: device and precision in their words, the share of sizes by scale and words."""
    shares = {
        "a quarter of the paper's image sizes": 0.25,
        "half the paper's image sizes": 0.5,
        "the paper's image sizes": 1.0,
    }
    said = re.findall(r"of a (CPU|GPU) in (\w+) at ([a-z' ]+ sizes)(?: \(Tables? ([^)]*)\))?", opening())
    kinds = {(device, precision, shares[sizes]): names for device, precision, sizes, names in said}
    found = {}
    for name in RECORDED:
        files = [RECORDS / f"{name}_{scale}.json" for scale in ("paper", "small", "tiny")]
        record = json.loads(next(file for file in files if file.exists()).read_text())
        rows = Table.from_json(record).rows
        if any(figure.values and figure.unit in TIMED for row in rows for figure in row.ours.values()):
            device, precision = re.search(r"\b(cpu|cuda|mps)\S*(?: in)? (\w+\d\d)\b", record["ours"]).groups()
            share = SCALES[record["scale"]].size_factor
            assert {float(one) for one in re.findall(r"([\d.]+) of th\w+ size", record["ours"])} <= {share}
            found.setdefault(("CPU" if device == "cpu" else "GPU", precision, share), []).append(name)
    assert {*"1237", "11"} <= {name for names in found.values() for name in names}
    assert kinds.keys() == found.keys()
    if len(found) > 1:
        assert {kind: re.split(", | and ", names) for kind, names in kinds.items()} == found


def timed(name, scale, device, precision, batch):
    """A record with speeds, in the words of those that ``python -m benchmarks.paper`` makes."""
    given = SCALES[scale], torch.device(device), params_flops.Timing(batch, precision)
    words = untrained(scale) + params_flops.counted_note(*given)
    unit = "ms" if name in ("1", "7", "10") else "images/s"
    return kept(name, scale, [Row("r", {}, {unit: Measurement((3.0,), unit)})]) | {"ours": words}


def test_speeds_of_a_gpu_at_the_papers_sizes_are_told_from_those_of_a_cpu(empty):
    def put(name, scale, *on):
        (empty / f"{name}_{scale}.json").write_text(json.dumps(timed(name, scale, *on)))

    assert "Our speeds" not in opening(), "none was taken"
    for name in ("3", "7", "10", "11"):
        put(name, "tiny", "cpu", "fp32", 1)
    small = "of a CPU in fp32 at a quarter of the paper's image sizes"
    assert f"are {small}." in opening()
    put("7", "paper", "cuda", "bf16", 16)
    whole = "of a GPU in bf16 at the paper's image sizes"
    assert f"are {small} (Tables 3, 10 and 11) and {whole} (Table 7)." in opening()
    put("3", "small", "cuda:0", "fp32", 1)
    half = "of a GPU in fp32 at half the paper's image sizes (Table 3)"
    assert f"are {half} and {whole} (Table 7) and {small} (Tables 10 and 11)." in opening()
    for name in ("3", "10", "11"):
        put(name, "paper", "cuda", "bf16", 16)
    assert f"are {whole}." in opening()
    assert "No accuracy" not in opening(), "a table of runs was made at the paper's scale"


@pytest.mark.parametrize("make", [throughput.table_2, throughput.table_3])
def test_tables_of_steps_say_on_what_they_were_timed(make, empty, monkeypatch):
    monkeypatch.setattr(
        throughput, "images_per_s", lambda steps, *_: dict.fromkeys(steps, Measurement((3.0,), "images/s"))
    )
    monkeypatch.setattr(throughput, "precision_of", lambda scale, device: "fp16")
    made = make(SCALES["paper"], torch.device("cuda"), print)
    record = kept(made.name, "paper", []) | made.to_json()
    (empty / f"{made.name}_paper.json").write_text(json.dumps(record))
    assert "are of a GPU in fp16 at the paper's image sizes." in opening()


def test_speeds_of_which_nothing_is_said_are_refused(empty):
    record = timed("3", "tiny", "cpu", "fp32", 1) | {"ours": "ours."}
    (empty / "3_tiny.json").write_text(json.dumps(record))
    with pytest.raises(AssertionError, match="Table 3 has speeds and does not say what they are of"):
        paper_page.text()


def test_which_kernels_come_nearer_to_table_3_is_counted():
    """The remark behind it: 3x3 in stages 1-3, the stages' own beyond; for parameters and for multiply-adds."""
    rows = {row.name: row for row in Table.from_json(json.loads((RECORDS / "3_tiny.json").read_text())).rows}
    nearer = {}
    for stages in (3, 5, 7):
        own, plain = rows[f"fused stages 1-{stages}"], rows[f"fused stages 1-{stages}, all 3x3"]
        for column in ("parameters, M", "multiply-adds, B"):
            gaps = [abs(row.ours[column].middle - own.paper[column].middle) for row in (own, plain)]
            nearer[stages, column] = "own" if gaps[0] < gaps[1] else "3x3"
    assert [one for (stages, _), one in nearer.items() if stages == 3] == ["3x3"] * 2
    assert [one for (stages, _), one in nearer.items() if stages > 3] == ["own"] * 4


def test_what_randaugment_costs_in_table_5_is_less_with_larger_pictures_with_every_seed():
    made = Table.from_json(json.loads((RECORDS / "5_small.json").read_text()))
    top1 = {row.name: {px: figure.values for px, figure in row.ours.items()} for row in made.rows}
    costs = {
        px: [less - more for more, less in zip(top1["magnitude 15"][px], values, strict=True)]
        for px, values in top1["magnitude 5"].items()
    }
    assert made.seeds == len(costs["128 px"]) == 3
    assert all(0 < large < small for large, small in zip(costs["300 px"], costs["128 px"], strict=True))
    claim = records.claims(made)["randaugment_size_top1_gain_b0_imagenette"][0]
    assert claim.low < 0 < claim.high


def test_where_fusing_pays_is_what_was_timed():
    """The remark of Table 3: images/s over those without fused blocks, ours in 16 bits and in 32, and the paper's."""
    made = {
        scale: Table.from_json(json.loads((RECORDS / f"3_{scale}.json").read_text())) for scale in ("small", "tiny")
    }

    def ratios(scale, side):
        speeds = {row.name: getattr(row, side)["images/s"].mean for row in made[scale].rows if row.paper}
        return [speeds[f"fused stages 1-{last}"] / speeds["no fused"] for last in (3, 5, 7)]

    remark, ours = paper_page._REMARKS["3"], ratios("small", "ours")
    assert "bf16" in made["small"].ours_note
    assert "fp32" in made["tiny"].ours_note
    assert (
        "1-3 gives {:.1f} times the speed, stages 1-5 {:.1f} times and all stages {:.1f} times".format(*ours) in remark
    )
    assert "V100 has {:.1f}, {:.1f} and {:.1f}".format(*ratios("small", "paper")) in remark
    assert f"fusing stages 1-3 gives {ratios('tiny', 'ours')[0]:.1f} times (" in remark


def test_where_randaugment_pays_is_what_tuning_found():
    """The remark of Table 5: magnitudes, dropout and figures, of one rate."""
    paper = json.loads((RECORDS.parent / "progressive_paper.json").read_text())["tuned"]
    short = json.loads((RECORDS.parent / "progressive_short/tuned.json").read_text())
    remark = paper_page._REMARKS["5"]
    for tuned, strengths, told in (
        (paper, ("none", "slight", "light", "middle"), "{}, {}, {} and {} % in 60 epochs of 1,000 images"),
        (short, ("none", "slight", "light"), "{}, {} and {} % in 20 epochs of 2,400 images"),
    ):
        regime, tried = tuned["regime"], tuned["arms"]["fixed"]["tried"]
        assert f"{regime['tune_epochs']} " in told
        assert f" {regime['tune_pictures']:,}" in told
        found = {one["strength"]: one["top1"] for one in tried if one["lr"] == 0.002}
        assert told.format(*(f"{100 * found[name]:.1f}" for name in strengths)) in " ".join(remark.split())
    sizes, dropouts = zip(*(STRENGTHS[name] for name in ("none", "slight", "light", "middle")), strict=True)
    assert "magnitudes {:g}, {:.2g}, {:g} and {:g}".format(*sizes) in remark
    assert "dropout {:g}, {:.2g}, {:g} and {:g}".format(*dropouts) in remark


def test_the_s_of_table_11_is_an_earlier_one():
    """The remark behind it: with more channels and features Table 4's S has Table 11's parameters."""
    released = get_architecture("efficientnetv2_s")
    *stages, last = released.stages
    assert (last.channels, released.head_channels) == (256, 1280)
    earlier = replace(released, stages=(*stages, replace(last, channels=272)), head_channels=1792)
    figures = json.loads((RECORDS / "11_tiny.json").read_text())["rows"][-1]
    assert figures["name"] == "efficientnetv2_s"
    assert (
        round(count_flops(earlier, image_size=384).total.parameters / 1e6) == figures["paper"]["parameters, M"]["mean"]
    )


def kept(name, scale, rows):
    made = Table(name, f"Table {name}", tuple(rows), "theirs.", "ours, on cpu in fp32.")
    return made.to_json() | {
        "scale": scale, "command": "do it", "date": "2026-11-20", "hardware": "2 cores", "versions": {"torch": "2"},
    }  # fmt: skip


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setattr(paper_page, "RECORDS", tmp_path)
    monkeypatch.setattr(paper_page, "SUMMARY", tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text("{}")
    return tmp_path


def test_a_table_without_a_record_is_named_as_to_be_measured(empty):
    page = paper_page.text()
    assert page.count("No record yet, to be measured") == len(RECORDED)
    assert "- Table 13, growing sizes: top-1, adaptive" in page


def test_the_page_opens_with_how_far_it_reaches_and_ends_with_what_is_to_be_measured(empty, monkeypatch):
    monkeypatch.setattr(paper_page, "IMAGES", empty)  # no drawings there
    headings = [line for line in paper_page.text().splitlines() if line.startswith("#")]
    assert (headings[0], headings[-1]) == ("# Tables of the paper", "## To be measured")
    assert "`make reproduce`" in paper_page.text().partition("\n## ")[0]
    assert "## Small-scale results" not in paper_page.text(), "nothing was measured"
    said = "No accuracy of the paper has been reproduced on ImageNet"
    assert said in opening()
    (empty / "12_small.json").write_text(json.dumps(kept("12", "small", [])))
    assert said in opening()
    (empty / "12_paper.json").write_text(json.dumps(kept("12", "paper", [])))
    assert said not in opening()


def claimed(value, low, high, unit="ratio", date="2026-11-23"):
    about = {"command": "run it", "date": date, "versions": {"efficientnetv2": "0.1.0"}}
    return {"value": value, "unit": unit, "low": low, "high": high, "n": 5} | about


def test_a_page_with_every_claim_measured_asks_for_none(empty):
    claim = claimed(1.0, 0.5, 1.5)
    (empty / "summary.json").write_text(json.dumps(dict.fromkeys(paper_page._CLAIMS, claim)))
    page = paper_page.text()
    assert "## To be measured" not in page
    assert page.index("## Small-scale results") < page.index("## Table 1")


def test_what_a_few_steps_came_to_is_left_out(empty):
    row = Row(
        "r",
        {"a, top-1 %": Measurement((78.0,))},
        {"a, top-1 %": Measurement((40.0,)), "a, minutes": Measurement((7.0,))},
    )
    (empty / "12_tiny.json").write_text(json.dumps(kept("12", "tiny", [row])))
    assert f"| r | 78.0 | {TO_BE_MEASURED} | {TO_BE_MEASURED} |" in paper_page.text()
    (empty / "12_small.json").write_text(json.dumps(kept("12", "small", [row])))
    assert "| r | 78.0 | 40.0 | 7.00 |" in paper_page.text()


def test_what_is_counted_and_timed_beside_runs_of_a_few_steps_stays(empty):
    ours = {
        "top-1 %": Measurement((40.0,), "%"),
        "parameters, M": Measurement((7.1,), "M"),
        "ms": Measurement((3.0,), "ms"),
    }
    (empty / "10_tiny.json").write_text(json.dumps(kept("10", "tiny", [Row("r", {}, ours)])))
    assert f"| r | {TO_BE_MEASURED} | 7.10 | 3.00 |" in paper_page.text()


def test_what_is_missing_for_good_says_why_once(empty):
    rows = [Row(name, {}, {"p": Measurement(why="not a network of this family")}) for name in "ab"]
    (empty / "1_tiny.json").write_text(json.dumps(kept("1", "tiny", rows)))
    page = paper_page.text()
    assert "| a | – |" in page
    assert page.count("–: not a model of this family.") == 1


def test_a_claim_stands_with_its_interval_and_command(empty):
    claims = {
        "progressive_speedup_b0_imagenette": claimed(1.618, 1.5, 1.7),
        "progressive_top1_gain_b0_imagenette": claimed(0.5, -0.2, 1.2, "points", date="2026-11-25"),
    }
    (empty / "summary.json").write_text(json.dumps(claims))
    page = paper_page.text()
    assert "(`progressive_speedup_b0_imagenette`) | 1.62 | 1.50 to 1.70 | 5 | `run it` |" in page
    assert "(`progressive_top1_gain_b0_imagenette`) | +0.5 | -0.2 to +1.2, includes 0 | 5 | `run it` |" in page
    assert "Recorded from 2026-11-23 to 2026-11-25 with version 0.1.0." in page


def without(kept, column, *sides, row=None):
    """A record without a column, on those of its sides; with ``row`` without that row's cell."""
    for one in kept["rows"]:
        for side in sides if row in (None, one["name"]) else ():
            one[side].pop(column, None)
    return kept


def section(page, heading):
    return next(part for part in page.split("\n## ") if part.startswith(heading))


@pytest.mark.parametrize(
    ("name", "column"),
    [("11_tiny", "multiply-adds, B"), ("7_tiny", "parameters, M"), ("3_tiny", "images/s"), ("9_tiny", "classes")],
)
def test_a_column_of_the_papers_that_a_record_lacks_is_named(name, column, empty):
    whole = (RECORDS / f"{name}.json").read_text()
    number, scale = name.split("_")
    file, heading = empty / f"{name}.json", f"Table {number}"
    lacks = f"In the paper's table, but not in this record: {column}."
    file.write_text(whole)
    assert "not in this record" not in section(paper_page.text(), heading)
    assert f"- {heading}, not in its record" not in paper_page.text()
    file.write_text(json.dumps(without(json.loads(whole), column, "paper", "ours")))
    assert lacks in section(paper_page.text(), heading)
    again = f"python -m benchmarks.paper {number} --scale {scale} --record"
    assert f"- {heading}, not in its record: {column} (`{again}`)" in section(paper_page.text(), "To be")
    file.write_text(json.dumps(without(json.loads(whole), column, "ours")))
    [not_ours] = re.findall(r"^Not ours: (.*)\.$", section(paper_page.text(), heading), re.MULTILINE)
    assert column in not_ours.split("; ")


def test_a_single_cell_that_a_record_lacks_is_named_too(empty):
    whole = json.loads((RECORDS / "12_tiny.json").read_text())
    for column in ("progressive, top-1 %", "progressive, minutes"):
        without(whole, column, "ours", row="resnet50_380")
    (empty / "12_tiny.json").write_text(json.dumps(whole))
    lacks = "not in this record: resnet50_380, progressive, top-1 %; resnet50_380, progressive, minutes."
    assert lacks in section(paper_page.text(), "Table 12")


def test_every_column_of_the_papers_tables_stands_in_its_section_or_is_named_there():
    """Hours of the paper's may be minutes of ours."""
    page = paper_page.text()
    for name in sorted(set(RECORDED) - {"figure4"}, key=int):
        said = section(page, f"Table {name}:")
        heads = next(line for line in said.splitlines() if line.startswith("|  |")).strip("| ").split(" | ")
        named_ = [part for line in said.splitlines() if ":" in line for part in re.split(r"[;:] |\.$", line)]
        for heading, _ in published.headings(name).values():
            ours = {f"{heading}, ours", f"{heading.replace('hours', 'minutes')}, ours"}
            assert ours & set(heads) or heading in named_, (name, heading)


def test_what_is_to_be_measured_is_all_that_no_record_says():
    """Speeds that the paper has, at its sizes; figures of runs of which there is none but of a few steps."""
    wanted = section(paper_page.text(), "To be measured")
    scales = {name: {file.stem.split("_")[1] for file in RECORDS.glob(f"{name}_*.json")} for name in RECORDED}
    for name in ("1", "2", "3", "7", "11"):
        again = f"`python -m benchmarks.paper {name} --scale paper --device cuda --record`"
        theirs = name != "1"  # the paper gives no times there
        assert (f"- Table {name}, on a GPU" in wanted) == (again in wanted) == (theirs and "paper" not in scales[name])
    for name in ("5", "8", "10", "12", "13"):
        assert (f"- Table {name}, of runs of more than a few steps: " in wanted) == (scales[name] == {"tiny"})


def test_speeds_at_the_papers_scale_are_not_asked_for_again(empty):
    row = Row("r", {"images/s": Measurement((2.0,), "images/s")}, {"images/s": Measurement((3.0,), "images/s")})
    for scale, wanted in (("tiny", True), ("small", True), ("paper", False)):
        (empty / f"3_{scale}.json").write_text(json.dumps(kept("3", scale, [row])))
        assert ("- Table 3, on a GPU" in paper_page.text()) == wanted


def table(name, cells):
    """(row, column) -> values."""
    rows = {}
    for (row, column), values in cells.items():
        rows.setdefault(row, {})[column] = Measurement(values)
    return Table(name, "", tuple(Row(row, {}, ours) for row, ours in rows.items()), "", "")


def values(made):
    return {name: (pytest.approx(figure.value), unit) for name, (figure, unit) in records.claims(made).items()}


def test_the_claim_of_table_5_by_hand():
    five = {
        ("magnitude 5", "128 px"): (50.0,),
        ("magnitude 15", "128 px"): (48.0,),
        ("magnitude 5", "300 px"): (60.0,),
        ("magnitude 15", "300 px"): (61.0,),
    }
    assert values(table("5", five)) == {"randaugment_size_top1_gain_b0_imagenette": (3.0, "points")}
    assert records.claims(table("6", five)) == {}


def test_a_kept_table_is_found_by_the_page(empty):
    made = table("6", {("S, image px", "first stage"): (128.0,)})
    records.write_record("6", made, "tiny", "python -m benchmarks.paper 6", "a machine", empty / "none.png")
    assert "| S, image px | 128 |" in paper_page.text()


def test_a_figure_is_kept_as_its_drawing(empty, monkeypatch):
    monkeypatch.setattr(paper_page, "IMAGES", empty / "images")
    (empty / "images").mkdir()
    (empty / "drawn.png").write_bytes(b"drawn")
    records.write_record("figure1", table("figure1", {}), "tiny", "", "a machine", empty / "drawn.png")
    assert (empty / "images" / "figure1.png").read_bytes() == b"drawn"
    assert not list(empty.glob("*_tiny.json"))
    assert "(../images/figure1.png)" in paper_page.text()
    assert "(../images/figure4.png)" not in paper_page.text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("figure1", ("parameters", "at the paper's top-1", "accuracy and hours", "not measured")),
        ("figure4", ("All values are ours",)),
        ("figure5", ("parameters", "multiply-adds", "latency", "at the paper's top-1", "not measured")),
    ],
)
def test_a_figure_says_which_of_its_points_are_ours(name, said):
    title = "Figure 4, drawn" if name == "figure4" else published.TABLES[name]["title"]
    told = section(paper_page.text(), f"{title}\n").partition(".png)")[2]
    assert [one for one in said if one not in told] == []


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_drawn_in_docs(name):
    assert (IMAGES / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_a_long_table_are_kept_beyond_the_folder_that_they_lie_in(tmp_path):
    kept, here, there = tmp_path / "13_small", tmp_path / "here", tmp_path / "there"
    (here / "grow_vanilla_0").mkdir(parents=True)
    told = {"top1": 0.5, "train_s": 60.0, "command": "/somewhere/on/a/machine"}
    (here / "grow_vanilla_0/report.json").write_text(json.dumps(told))
    (here / "grow_vanilla_0/asked.json").write_text('{"model": "b0"}')
    (here / "grow_vanilla_1").mkdir()  # not at its end
    records.sync_runs(kept, here, "2 cores, A", "cpu")
    assert [file.name for file in kept.iterdir()] == ["grow_vanilla_0.json"]
    assert "/somewhere" not in (kept / "grow_vanilla_0.json").read_text()
    assert json.loads((kept / "grow_vanilla_0.json").read_text())["hardware"] == "2 cores, A"
    records.sync_runs(kept, there, "2 cores, B", "cpu")
    given = json.loads((there / "grow_vanilla_0/report.json").read_text())
    assert (given["top1"], given["train_s"], given["asked"]) == (0.5, 60.0, {"model": "b0"})
    records.sync_runs(kept, here, "2 cores, B", "cpu")
    assert json.loads((here / "grow_vanilla_0/report.json").read_text()) == told, "what is there stays"


def test_a_table_of_runs_is_of_the_machines_that_made_them_and_its_times_are_of_this_one(tmp_path):
    """Of three seeds two are asked for; the third was made elsewhere."""
    for seed, machine in enumerate("BAC"):
        (tmp_path / f"row_run_{seed}.json").write_text(json.dumps({"top1": 0.5, "hardware": machine}))
    made = Table("10", "", (Row("row", {}, {"top-1 %": Measurement((50.0, 50.0), "%")}),), "", "", "small", 2)
    rows = records.stored_runs(made, tmp_path)
    assert records.hardware_of(made, rows, "here") == "A and B"
    timed = replace(made, rows=(Row("row", {}, {"ms": Measurement((1.0,), "ms")}),))
    assert records.hardware_of(timed, rows, "here") == "A and B and here"
    assert records.hardware_of(timed, records.stored_runs(timed, tmp_path / "none"), "here") == "here"


def test_runs_of_another_device_are_not_kept_as_this_machines(tmp_path):
    for name, device in (("a_x_0", "cuda"), ("a_x_1", "cpu")):
        folder = tmp_path / "cells" / name
        folder.mkdir(parents=True)
        (folder / "report.json").write_text('{"top1": 0.5, "train_s": 60.0, "versions": {"torch": "1"}}')
        (folder / "asked.json").write_text(json.dumps({"device": device}))
    records.sync_runs(tmp_path / "kept", tmp_path / "cells", "2 cores", "cpu")
    (file,) = (tmp_path / "kept").iterdir()
    assert file.name == "a_x_1.json"
    assert json.loads(file.read_text())["versions"] == {"torch": "1"}


def test_runs_kept_in_a_clone_are_not_taken_for_those_on_other_pictures(empty, monkeypatch, tmp_path, capsys):
    """The folder of runs does not travel with the clone, and neither does what lies in it."""
    monkeypatch.setattr(runs, "refuse_missing", lambda runs: None)
    monkeypatch.setattr(paper_page, "write", lambda: None)
    for name in "AB":
        for number in range(4):
            paint(tmp_path / name / "xy"[number % 2] / f"{name}{number}.jpg", (90, 90, 90), number)

    def train(words, source, place, **_):
        place.out.mkdir(parents=True)
        (place.out / "report.json").write_text('{"top1": 0.5, "train_s": 60.0}')

    monkeypatch.setattr(runs, "train_and_report", train)
    written = []
    monkeypatch.setattr(records, "record", lambda name, **claim: written.append(claim["on"]))
    monkeypatch.setattr(records, "forget", lambda name: None)

    def asked_in(clone, data):
        clone.mkdir(exist_ok=True)
        monkeypatch.chdir(clone)
        words = ["5", "--scale", "small", "--data", str(tmp_path / data), "--seeds", "2", "--device", "cpu"]
        command_line.main([*words, "--record"])

    asked_in(tmp_path / "first", "A")
    assert len(list((paper_page.RECORDS / "5_small").glob("*.json"))) == 18
    monkeypatch.setattr(runs, "train_and_report", lambda *words: pytest.fail("was made again"))
    asked_in(tmp_path / "second", "A")
    assert written == [record.hardware()] * 2
    with pytest.raises(SystemExit):
        asked_in(tmp_path / "third", "B")
    assert re.search(r"has a run of another kind: pictures: \w+ there, \w+ here", capsys.readouterr().err)


@pytest.mark.parametrize("file", sorted(paper_page.RECORDS.glob("*.json")), ids=lambda file: file.stem)
def test_the_command_of_every_record_is_taken(file, monkeypatch):
    """What is in capitals stands for files."""
    requests = []

    def stop(request, **more):
        requests.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "reproduce", stop)
    kept = json.loads(file.read_text())
    program, module, name, *words = shlex.split(kept["command"])
    assert (program, module) == ("python", "-m")
    if name != "benchmarks.paper":  # a comparison that is made in small
        tables = {"benchmarks.adaptive": "13", "benchmarks.progressive": "12", "benchmarks.transfer": "8"}
        assert (kept["table"], kept["scale"]) == (tables[name], "small")
        return
    with pytest.raises(SystemExit) as end:
        command_line.main(words)
    assert end.value.code == 130
    assert (requests[0].table, requests[0].scale) == (kept["table"], kept["scale"])
    if kept["table"] == "8":
        transfer.refuse_weights(SCALES[kept["scale"]], requests[0].weights)


def test_a_command_says_all_that_decided_the_table():
    given = Request("8", "small", "/some/where", 2, "/a/file", "cpu")
    assert (
        records.command_of(given)
        == "python -m benchmarks.paper 8 --scale small --data DATA --seeds 2 --weights WEIGHTS"
    )
    plain = Request("8", "tiny", weights="none", device="cpu")
    assert records.command_of(plain) == "python -m benchmarks.paper 8 --scale tiny --weights none"
    of_a_gpu = Request("7", "paper", device="cuda")
    assert records.command_of(of_a_gpu) == "python -m benchmarks.paper 7 --scale paper --device cuda"
