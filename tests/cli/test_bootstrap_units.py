"""Bootstrap units: intervals in reports of ``train`` and ``evaluate`` resample full groups and locations."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from tests.command_line import TINY, effnetv2, run_json, run_ok, run_refused
from tests.conftest import COLORS, paint
from tests.messages import mentions

pytestmark = pytest.mark.slow  # two runs for the fixture


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """20 films of 6 images, and two runs, one with the group column.

    All 8 held-out films are red, but every other one has the label blue, so that a film is right or wrong as a unit.
    """
    folder = tmp_path_factory.mktemp("films")
    rows = []
    for number in range(120):
        film = number // 6
        held_out, name = film >= 12, ("red", "blue")[film % 2]
        paint(folder / f"{number:03d}.png", COLORS["red"] if held_out else COLORS[name], number, px=32)
        rows.append((f"{number:03d}.png", name, "val" if held_out else "train", f"film {film}"))
    table = pd.DataFrame(rows, columns=["path", "label", "split", "film"])
    table.to_csv(folder / "all.csv", index=False)
    for run, args in (("known", ("--group-column", "film")), ("unknown", ())):
        done = run_ok("train", "all.csv", *args, *TINY, "--output", run, cwd=folder)
        (folder / f"{run}.txt").write_text(done.stdout)
    return folder


def report(folder):
    return json.loads((folder / "report.json").read_text())


def evaluate(*args, cwd):
    return run_json("evaluate", *args, "--device", "cpu", "--workers", "0", cwd=cwd)


def widths(report):
    return {name: high - low for name, (low, high) in report["intervals"].items()}


def test_train_resamples_groups(films):
    known, unknown = report(films / "known"), report(films / "unknown")
    assert known["confusion"] == unknown["confusion"]
    assert (known["bootstrap_unit"], unknown["bootstrap_unit"]) == ("group", "image")
    assert known["intervals"].keys() == unknown["intervals"].keys()
    for name, (low, high) in unknown["intervals"].items():
        assert known["intervals"][name][0] <= low <= high <= known["intervals"][name][1], name
    # 8 films of 6 images: about √6 times as wide as for 48 images, and Student's t.
    assert widths(known)["top1"] > 2 * widths(unknown)["top1"]
    for run, grouped in (("known", True), ("unknown", False)):
        output = " ".join((films / f"{run}.txt").read_text().split())
        assert ("(val), bootstrap of whole groups." in output) is grouped
        page = " ".join((films / run / "report.html").read_text().split())
        assert ("(bootstrap of whole groups). Always predicting" in page) is grouped


def test_evaluate_on_the_validation_split_equals_the_report(films):
    """Without ``--group-column``: the saved dataset of the run has the groups."""
    reported = report(films / "known")
    again = evaluate("known", "all.csv", cwd=films)
    assert again["intervals"] == reported["intervals"]
    assert again["bootstrap_unit"] == "group"
    assert evaluate("unknown", "all.csv", cwd=films)["intervals"] == report(films / "unknown")["intervals"]


def test_evaluate_resamples_groups_and_locations(films, tmp_path):
    """Copies that no run has seen: with one location per film, and with one location per image."""
    shutil.copy(films / "known/model.safetensors", tmp_path / "m.safetensors")
    for file in films.glob("*.png"):
        shutil.copy(file, tmp_path)
    table = pd.read_csv(films / "all.csv").query("split == 'val'").drop(columns="split")
    film = table["film"].str.removeprefix("film ").astype(int)
    table.assign(Latitude=film, Longitude=10).to_csv(tmp_path / "placed.csv", index=False)
    table.assign(latitude=np.arange(48), longitude=10).to_csv(tmp_path / "apart.csv", index=False)
    table.to_csv(tmp_path / "plain.csv", index=False)
    results = {
        name: evaluate("m.safetensors", f"{name}.csv", *args, cwd=tmp_path)
        for name, args in (("plain", ()), ("placed", ()), ("apart", ()))
    }
    by_film = ("m.safetensors", "plain.csv", "--group-column", "film")
    results["grouped"] = evaluate(*by_film, cwd=tmp_path)
    assert {name: one["bootstrap_unit"] for name, one in results.items()} == {
        "plain": "image", "placed": "location", "apart": "location", "grouped": "group",
    }  # fmt: skip
    assert results["apart"]["intervals"] == results["plain"]["intervals"]
    assert results["placed"]["intervals"] == results["grouped"]["intervals"]
    assert widths(results["grouped"])["top1"] > 2 * widths(results["plain"])["top1"]
    assert evaluate(*by_film, "--tta", "d4", cwd=tmp_path)["tta_comparison"]["num_clusters"] == 8
    for name, width in widths(results["grouped"]).items():
        assert width >= widths(results["plain"])[name], name


def test_compare_resamples_the_units_of_the_reports(films, tmp_path):
    """Without a group column, images are resampled."""
    note = "the same 48 images, drawn in 8 clusters"
    for args, grouped in ((("--group-column", "film"), True), ((), False)):
        for run in ("known", "unknown"):
            shutil.copy(films / run / "model.safetensors", tmp_path / f"{run}.safetensors")
            evaluate(f"{run}.safetensors", films / "all.csv", *args, "--output", run, cwd=tmp_path)
        assert ("cluster" in pd.read_csv(tmp_path / "known/predictions.csv")) is grouped
        done = effnetv2("compare", "known", "unknown", cwd=tmp_path)
        assert (note in " ".join(done.stdout.split())) is grouped, done.stdout


def test_evaluate_refuses_an_unknown_group_column(films):
    done = run_refused("evaluate", "known", "all.csv", "--group-column", "flim", cwd=films)
    assert mentions(done.stderr, "all.csv", "flim", "did you mean", "film")
    assert "--group-column" in done.stderr
