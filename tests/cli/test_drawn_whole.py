"""Places and groups are drawn whole by all intervals of a report: of ``train`` as of ``evaluate``."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from tests.command_line import TINY, effnetv2
from tests.conftest import COLORS, paint
from tests.messages import mentions

pytestmark = pytest.mark.slow  # two runs come before the first


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """20 films of 6 images; the 8 held out all look red, but every other one is called blue: right or wrong as one.

    On them two runs, of which one knows the films.
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
    for run, words in (("known", ("--group-column", "film")), ("unknown", ())):
        done = effnetv2("train", "all.csv", *words, *TINY, "--output", run, cwd=folder)
        assert done.returncode == 0, done.stderr
        (folder / f"{run}.txt").write_text(done.stdout)
    return folder


def report(folder):
    return json.loads((folder / "report.json").read_text())


def evaluated(*words, cwd):
    done = effnetv2("evaluate", *words, "--json", "--device", "cpu", "--workers", "0", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def widths(told):
    return {name: high - low for name, (low, high) in told["intervals"].items()}


def test_a_run_that_knows_groups_draws_them_whole(place):
    known, unknown = report(place / "known"), report(place / "unknown")
    assert known["confusion"] == unknown["confusion"]
    assert (known["bootstrap_unit"], unknown["bootstrap_unit"]) == ("group", "image")
    assert known["intervals"].keys() == unknown["intervals"].keys()
    for name, (low, high) in unknown["intervals"].items():
        assert known["intervals"][name][0] <= low <= high <= known["intervals"][name][1], name
    # 8 films of 6: about √6 times as wide as of 48 images, and Student's t.
    assert widths(known)["top1"] > 2 * widths(unknown)["top1"]
    for run, drawn in (("known", True), ("unknown", False)):
        said = " ".join((place / f"{run}.txt").read_text().split())
        assert ("(val), bootstrap of whole groups." in said) is drawn
        page = " ".join((place / run / "report.html").read_text().split())
        assert ("(bootstrap of whole groups). Always predicting" in page) is drawn


def test_an_evaluation_of_what_the_run_held_out_agrees_with_its_report(place):
    """Without a word on groups: the run's own table knows them."""
    own = report(place / "known")
    again = evaluated("known", "all.csv", cwd=place)
    assert again["intervals"] == own["intervals"]
    assert again["bootstrap_unit"] == "group"
    assert evaluated("unknown", "all.csv", cwd=place)["intervals"] == report(place / "unknown")["intervals"]


def test_groups_and_places_of_any_table_are_drawn_whole_in_an_evaluation(place, tmp_path):
    """Copies in a folder of their own, which no run has seen; with places 100 km apart, and with places all about."""
    shutil.copy(place / "known/model.safetensors", tmp_path / "m.safetensors")
    for file in place.glob("*.png"):
        shutil.copy(file, tmp_path)
    table = pd.read_csv(place / "all.csv").query("split == 'val'").drop(columns="split")
    film = table["film"].str.removeprefix("film ").astype(int)
    table.assign(Latitude=film, Longitude=10).to_csv(tmp_path / "placed.csv", index=False)
    table.assign(latitude=np.arange(48), longitude=10).to_csv(tmp_path / "apart.csv", index=False)
    table.to_csv(tmp_path / "plain.csv", index=False)
    told = {
        name: evaluated("m.safetensors", f"{name}.csv", *words, cwd=tmp_path)
        for name, words in (("plain", ()), ("placed", ()), ("apart", ()))
    }
    by_film = ("m.safetensors", "plain.csv", "--group-column", "film")
    told["grouped"] = evaluated(*by_film, cwd=tmp_path)
    assert {name: one["bootstrap_unit"] for name, one in told.items()} == {
        "plain": "image", "placed": "location", "apart": "location", "grouped": "group",
    }  # fmt: skip
    assert told["apart"]["intervals"] == told["plain"]["intervals"]
    assert told["placed"]["intervals"] == told["grouped"]["intervals"]
    assert widths(told["grouped"])["top1"] > 2 * widths(told["plain"])["top1"]
    assert evaluated(*by_film, "--tta", "d4", cwd=tmp_path)["tta_comparison"]["num_clusters"] == 8
    for name, width in widths(told["grouped"]).items():
        assert width >= widths(told["plain"])[name], name


def test_a_comparison_of_evaluations_draws_whole_what_their_reports_do(place, tmp_path):
    """The two models on the same films; where no word said what films are, images are drawn."""
    whole = "the same 48 images, drawn in 8 clusters"
    for words, drawn in ((("--group-column", "film"), True), ((), False)):
        for run in ("known", "unknown"):
            shutil.copy(place / run / "model.safetensors", tmp_path / f"{run}.safetensors")
            evaluated(f"{run}.safetensors", place / "all.csv", *words, "--output", run, cwd=tmp_path)
        assert ("cluster" in pd.read_csv(tmp_path / "known/predictions.csv")) is drawn
        done = effnetv2("compare", "known", "unknown", cwd=tmp_path)
        assert (whole in " ".join(done.stdout.split())) is drawn, done.stdout


def test_a_column_that_is_not_there_is_refused_by_evaluate_as_by_train(place):
    done = effnetv2("evaluate", "known", "all.csv", "--group-column", "flim", cwd=place)
    assert done.returncode == 2
    assert mentions(done.stderr, "all.csv", "flim", "did you mean", "film")
    assert "--group-column" in done.stderr
