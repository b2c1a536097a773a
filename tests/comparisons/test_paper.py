"""The paper's tables next to ours: what is counted is exact, what is run continues where it stopped."""

import io
import json
import logging
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.paper import __main__ as command_line
from benchmarks.paper import accuracy, params_flops, plots, published, reproduce, runs
from benchmarks.paper.reproduce import Request
from benchmarks.paper.runs import Cell, Runs
from benchmarks.paper.scale import SCALES
from benchmarks.paper.table import Measurement, Row, Table
from PIL import Image
from tests.messages import mentioning

from efficientnetv2.data.config import DataConfig
from efficientnetv2.evaluation.plot_style import png
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.errors import InputError

TINY = SCALES["tiny"]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def nothing_missing(monkeypatch):
    """For runs that are simulated: what they would need is not checked."""
    monkeypatch.setattr(runs, "refuse_missing", lambda runs: None)


def made(table, folder, **options):
    request = Request(table, out=folder, **{"device": "cpu", **options})
    return reproduce.reproduce(request)


def test_table_6_equals_the_paper_cell_by_cell(tmp_path):
    for row in made("6", tmp_path).rows:
        for column, figure in row.paper.items():
            assert row.ours[column].mean == pytest.approx(figure.mean), (row.name, column)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    told = (tmp_path / "table.md").read_text()
    assert "Table 6" in told
    assert "| S, image px | 128 | 128 | 300 | 300 |" in told, "the paper's column, and ours beside it"


def test_parameters_of_table_1_are_b6s():
    """The paper rounds to 43 M and 19 B; exactly 43,040,704 and 19.07 B at 528 px."""
    row = params_flops.counted("1", TINY, pick_device("cpu"), print).rows[0]
    assert row.ours["parameters, M"].mean == 43.040704
    assert row.ours["multiply-adds, B"].mean == pytest.approx(row.paper["multiply-adds, B"].mean, rel=0.01)


def test_every_cell_without_a_figure_says_why():
    table = params_flops.counted("1", TINY, pick_device("cpu"), print)
    assert "nfnet_f1, parameters, M: not a network of this family" in table.missing
    assert "Missing: resnet_rs_420" in table.markdown()


def test_a_mean_has_its_spread_and_every_value_is_kept():
    """78 and 80: mean 79, standard deviation 1.41."""
    figure = Measurement((78.0, 80.0), "%")
    assert str(figure) == "79.0 ± 1.4"
    assert figure.to_json() == {
        "mean": 79.0, "spread": pytest.approx(2**0.5), "n": 2, "values": [78.0, 80.0], "unit": "%",
    }  # fmt: skip
    assert Measurement(why="not run").to_json()["missing"] == "not run"


@pytest.mark.parametrize(
    ("given", "mean"), [("43M", 43.0), ("19B", 19.0), ([84.3, 0.14], 84.3), (7.1, 7.1), (None, None), ("OOM", None)]
)
def test_the_papers_ways_of_writing_figures_are_read(given, mean):
    assert published.measurement(given, "").mean == mean


def test_the_two_sides_of_a_column_stand_side_by_side():
    table = Table(
        "x",
        "X",
        (Row("a", {"p": Measurement((1.0,))}, {"q": Measurement((2.0,)), "p": Measurement((3.0,))}),),
        "theirs.",
        "ours.",
    )
    assert table.headings() == ["", "p, paper", "p, ours", "q, ours"]
    assert table.cells() == [["a", "1.00", "3.00", "2.00"]]


def test_our_minutes_stand_beside_the_papers_hours_and_what_is_not_ours_is_named():
    row = Row(
        "a",
        {name: Measurement((1.0,)) for name in ("side, hours", "top-1 %", "TPU")},
        {name: Measurement((2.0,)) for name in ("top-1 %", "side, minutes")},
    )
    table = Table("x", "X", (row,), "theirs.", "ours.")
    assert table.headings() == [
        "", "side, hours, paper", "side, minutes, ours", "top-1 %, paper", "top-1 %, ours", "TPU, paper",
    ]  # fmt: skip
    assert table.paper_only == ["TPU"]
    assert "Not ours: TPU." in table.markdown()


def test_figure_1_times_no_answers_for_it_draws_none(tmp_path, monkeypatch):
    monkeypatch.setattr(params_flops, "latency_s", lambda *given, **how: pytest.fail("was timed"))
    shown = made("figure1", tmp_path)
    assert "time on" not in shown.ours_note
    assert shown.rows[0].ours["parameters, M"].values


@pytest.mark.parametrize(
    ("name", "drawn", "not_ours"),
    [
        ("figure1", {"top-1 %", "parameters, M", "hours"}, ["top-1 %", "hours"]),
        ("figure5", {"top-1 %", "parameters, M", "multiply-adds, B", "ms"}, ["top-1 %"]),
    ],
)
def test_a_figures_table_is_its_own_and_has_what_it_draws(name, drawn, not_ours, tmp_path, monkeypatch):
    """Of Table 7 the columns of its panels; what nobody measured here is said."""
    monkeypatch.setattr(params_flops, "latency_s", lambda sizes, **how: {name: [0.001] for name in sizes})
    shown = made(name, tmp_path)
    assert json.loads((tmp_path / "table.json").read_text())["table"] == shown.name == name
    assert {column for column, side in shown.columns if side == "paper"} == drawn
    assert {column for column, side in shown.columns if side == "ours"} == drawn - set(not_ours)
    told = (tmp_path / "table.md").read_text()
    assert told.startswith(f"### Figure {name[-1]}: accuracy against ")
    assert f"Not ours: {'; '.join(not_ours)}." in told
    assert "are not measured here" in told if "hours" in drawn else "accuracy is not measured here" in told
    assert "ours are drawn at the paper's top-1" in told
    whole = params_flops.counted("7", TINY, pick_device("cpu"), print)
    for row, seven in zip(shown.rows, whole.rows, strict=True):
        assert row.paper == {column: seven.paper[column] for column in row.paper}


def test_a_table_written_as_json_reads_back_as_the_same_table():
    rows = (
        Row(
            "a",
            {"p": Measurement((1.0,), "%", spread=0.14), "q": Measurement(unit="ms", why="OOM", word="OOM")},
            {"p": Measurement((2.0, 3.5), "%"), "q": Measurement(unit="ms", why="no")},
        ),
    )
    table = Table("x", "X", rows, "theirs.", "ours.", "small", 2)
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_where_pictures_lie_on_this_machine_stays_here(tmp_path):
    for data, told in ((tmp_path / "imagenette", "on imagenette, 2 seeds."), ("sets/mine", "on sets/mine, 2 seeds.")):
        together = Runs(DataConfig(str(data)), 2, "none", "cpu", tmp_path, print)
        assert told in accuracy.table_of_runs("5", [], TINY, together, [], "").ours_note


def test_the_papers_figures_are_the_ones_its_tables_print():
    assert published.rows("7")["efficientnetv2_s"][:3] == [83.9, 22, 8.8]
    assert published.rows("13")["progressive_resize"] == [[84.3, 0.14], [85.1, 0.07]]


def test_an_unknown_table_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"There is no table '14'\. Those there are: 1, 2, 3,"):
        made("14", tmp_path)


@pytest.mark.parametrize("word", ["Table 6", "table6", "6"])
def test_a_table_is_known_by_its_name_as_people_write_it(word, tmp_path):
    assert made(word, tmp_path).name == "6"


def test_table_8_without_weights_says_what_to_give(tmp_path):
    with pytest.raises(InputError, match="--weights none to see that everything runs"):
        made("8", tmp_path)


def test_sizes_and_batches_are_the_papers_at_the_papers_scale():
    whole = SCALES["paper"]
    assert (whole.px(380), whole.batch(24)) == (380, 24)
    assert len({TINY.px(px) for px in (128, 192, 300)}) == 3
    assert len({TINY.batch(images) for images in (12, 24)}) == 2


def test_runs_are_cells_with_a_value_per_seed_and_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    trained = []

    def fake(words, source, place, **_):
        trained.append((words.recipe, words.seed, place.resume))
        place.out.mkdir(parents=True)
        report = {"top1": 0.5 + words.seed / 10, "train_s": 120.0}
        (place.out / "report.json").write_text(json.dumps(report))

    monkeypatch.setattr(runs, "train_and_report", fake)
    asked_for, told = [Cell("a", "x", "quick", None, ()), Cell("a", "y", "finetune", None, ())], []
    both = Runs(DataConfig("here"), 2, "none", "cpu", tmp_path, told.append)
    found = both.measurements(asked_for)
    assert told[4] == "a, x, seed 1 (run 3 of 4)"
    assert told[5] == f"  top-1 60.0%, 2 min 00 s of training: {tmp_path / 'a_x_1' / 'report.html'}"
    assert trained == [("quick", 0, False), ("finetune", 0, False), ("quick", 1, False), ("finetune", 1, False)]
    assert found["a", "x"]["top-1 %"].values == pytest.approx((50.0, 60.0))
    assert found["a", "y"]["minutes"].values == (2.0, 2.0)
    assert both.measurements(asked_for) == found
    assert len(trained) == 4
    (tmp_path / "a_x_1" / "report.json").unlink()
    (tmp_path / "a_x_1" / "recipe.yaml").write_text("")
    with pytest.raises(FileExistsError):  # of the fake; the real one goes on in that folder
        both.measurements(asked_for)
    assert trained[-1] == ("quick", 1, True)


def test_a_run_with_other_settings_is_not_taken_for_this_cells(tmp_path, monkeypatch):
    def fake(words, source, place, **_):
        place.out.mkdir(parents=True)
        (place.out / "report.json").write_text('{"top1": 0.5, "train_s": 60.0}')

    monkeypatch.setattr(runs, "train_and_report", fake)
    runs_here = Runs(DataConfig("here"), 1, "none", "cpu", tmp_path, print)
    runs_here.measurements([Cell("a", "x", "quick", None, ("epochs=3",))])
    for other in (Cell("a", "x", "quick", None, ("epochs=1",)), Cell("a", "x", "finetune", None, ("epochs=3",))):
        with pytest.raises(InputError, match=r"a_x_0 has a run of another kind: .* Delete that folder"):
            runs_here.measurements([other])


@pytest.mark.usefixtures("nothing_missing")
@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
@pytest.mark.parametrize("table", ["5", "8", "10", "12", "13"])
def test_every_cell_asks_for_a_recipe_that_can_be_made(table, scale, tmp_path, monkeypatch):
    from efficientnetv2.training.overrides import requested_recipe

    recipes = []

    def settled(words, source, place, **_):
        recipe = requested_recipe(words, pick_device("cpu"))[0]
        recipes.append(recipe)
        place.out.mkdir(parents=True)
        (place.out / "report.json").write_text('{"top1": 0.5, "train_s": 60.0}')

    monkeypatch.setattr(runs, "train_and_report", settled)
    weights = "none" if table == "8" and scale != "paper" else None
    data = "imagenet" if table != "8" and scale == "paper" else None
    monkeypatch.setattr(params_flops, "latency_s", lambda sizes, **how: {name: [0.001] for name in sizes})
    table_made = made(table, tmp_path, scale=scale, seeds=1, weights=weights, data=data)
    assert recipes
    assert all(figure.values for row in table_made.rows for figure in row.ours.values() if not figure.why)
    if table == "13":
        assert {recipe.progressive.order for recipe in recipes} == {"growing", "random"}
        assert {recipe.progressive.stage(0).randaugment for recipe in recipes} == (
            {5, 20} if scale == "paper" else {5, 15}
        )
    if table in ("10", "12"):
        spent = {name for row in table_made.rows for name in row.ours if name.endswith(("hours", "minutes"))}
        assert {name.rpartition(" ")[2] for name in spent} == {"hours" if scale == "paper" else "minutes"}
        assert {table_made.rows[0].ours[name].values for name in spent} == {(1 / 60 if scale == "paper" else 1.0,)}
    if table == "12":
        assert {recipe.progressive.stages for recipe in recipes} == ({1, 2} if scale == "tiny" else {1, 4})
    if table == "5":
        assert {recipe.progressive.last.randaugment for recipe in recipes} == {5, 10, 15}


def test_all_that_a_smaller_scale_changes_of_a_recipe_is_said():
    """Each field that is set otherwise belongs to something the sentence names."""
    cell = accuracy._cell(TINY, "row", "run", None, 3, recipe="resnet50_224_progressive", progressive={"stages": 2})
    told = accuracy._recipes_note([cell])
    words = {
        "epochs": "length", "steps": "length", "progressive": "sizes", "batch_size": "batch",
        "optimizer": "optimizer",
        "schedule": "schedule", "ema_decay": "moving average", "batch_norm_momentum": "batch-norm momentum",
        "init": "init", "eval_image_size": "evaluation size", "crop_pct": "crop mode",
        "crop_mode": "crop mode", "train_crop_mode": "crop mode", "crop_scale_min": "smallest crop",
        "minival": "minival",
        # What is looked at meanwhile, how much of the images is held out, and what they should be: not the training.
        "val_max_images": "", "val_fraction": "", "expected_dataset": "",
    }  # fmt: skip
    assert all(words[setting.partition("=")[0].partition(".")[0]] in told for setting in cell.settings)
    assert "optimizer" not in accuracy._recipes_note([Cell("row", "run", "quick", None, ())])


def test_what_later_runs_would_miss_is_told_before_the_first(tmp_path, monkeypatch):
    """Table 12 needs timm for two of its ten runs, Table 8 at the paper's scale four sets."""
    monkeypatch.setattr(runs, "train_and_report", lambda *_: pytest.fail("was trained"))
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setenv("EFFNETV2_DATA", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    missing = "Before the first run: the network 'timm:tf_efficientnet_b5' needs the package 'timm'"
    with pytest.raises(InputError, match=missing):
        made("12", tmp_path / "made", data="here")
    with pytest.raises(InputError) as refused:
        made("8", tmp_path / "made", scale="paper", weights="none")
    for name in ("cifar10", "cifar100", "flowers102", "stanford_cars"):
        assert f"The built-in dataset '{name}' is neither under" in str(refused.value)
    assert not list(tmp_path.iterdir()), "nothing is begun"


def test_weights_that_are_not_there_are_told_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "train_and_report", lambda *_: pytest.fail("was trained"))
    with pytest.raises(
        InputError, match=mentioning("Before the first run", "weights=gone.safetensors", "no such file")
    ):
        made("8", tmp_path / "made", weights="gone.safetensors", data="here")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_and_writes(tmp_path, capsys):
    options = ["6", "--output", str(tmp_path / "six")]
    command_line.main([*options, "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "six" / "table.json").read_text())
    assert {row["name"].split(",")[0] for row in printed["rows"]} == {"S", "M", "L"}
    command_line.main(options)
    assert capsys.readouterr().out.strip() == (tmp_path / "six" / "table.md").read_text().strip()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["77"], "There is no table '77'. Those there are: 1, 2, 3,"),
        (["6", "--scale", "huge"], "argument --scale: invalid choice: 'huge'"),
        (["7", "--seeds", "0"], "--seeds is 0, but must be between 1 and 1,000"),
        (["6", "7", "--output", "here"], "--output is for one table that is not recorded"),
    ],
)
def test_wrong_options_are_refused(words, error, capsys):
    with pytest.raises(SystemExit) as end:
        command_line.main(words)
    assert end.value.code == 2
    assert error in capsys.readouterr().err


def test_every_command_of_the_docs_is_understood():
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages) + command_line.__doc__
    lines = re.findall(r"^ *python -m benchmarks\.paper ([^#\n]+)", text, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        options = command_line.parse_options(shlex.split(line))[1]
        assert [request.table for request in command_line.requests(options)] == options.tables


def test_of_several_tables_options_are_for_those_that_use_them():
    words = ["7", "13", "8", "--data", "here", "--seeds", "2", "--weights", "none"]
    made_of = {one.table: one for one in command_line.requests(command_line.parse_options(words)[1])}
    assert (made_of["7"].data, made_of["7"].seeds, made_of["7"].weights) == (None, None, None)
    assert (made_of["13"].data, made_of["13"].seeds, made_of["13"].weights) == ("here", 2, None)
    assert (made_of["8"].data, made_of["8"].weights) == ("here", "none")


# Three minutes of a core in all, of which Table 12, whose networks are the paper's own, takes one. Table 3 holds seven
# networks at once, in 5 GB.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "words", "runs", "figures"),
    [
        ("2", (), 0, 2 * 2),
        ("3", (), 0, 7 * 3),
        ("5", (), 9, 3 * 3),
        ("8", ("--weights", "none"), 1, 1),  # and M's and L's rows, which only the paper's scale runs
        ("10", (), 2, 2 * 5),
        ("12", (), 10, 5 * 4),
        ("13", (), 4, 2 * 2),
    ],
)
def test_a_table_at_tiny_scale_is_really_made_from_the_command_line(table, words, runs, figures, tmp_path):
    """Nothing is put in the place of anything: each step is timed, each run trained and answered."""
    if table == "12":
        pytest.importorskip("timm")
    out = tmp_path / "made"
    command = [sys.executable, "-m", "benchmarks.paper", table, *words, "--output", str(out), "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer == json.loads((out / "table.json").read_text())
    ours = {(row["name"], name): one for row in answer["rows"] for name, one in row["ours"].items()}
    missing = {cell: one["missing"] for cell, one in ours.items() if "missing" in one}
    others = {(f"efficientnetv2_{size}", "these pictures"): "not run at scale tiny" for size in "ml"}
    assert missing == (others if table == "8" else {})
    there = [one for cell, one in ours.items() if cell not in missing]
    assert len(there) == figures
    assert all(math.isfinite(value) for one in there for value in one["values"])
    assert all(one["mean"] > 0 for one in there if one["unit"] != "%")
    assert all(one["n"] == 1 for one in there if one["unit"] in ("%", "minutes"))
    assert len(list(out.glob("cells/*/model.safetensors"))) == runs
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert f"Table {table}" in (out / "table.md").read_text()


def test_answers_timed_here_are_a_further_panel_of_figure_5():
    columns = ("params_m", "flops_b")
    alone, with_ours = (
        Image.open(io.BytesIO(png(plots.draw_published(columns, ours))))
        for ours in (None, {"ms": {"efficientnetv2_s": 12.0, "efficientnetv2_m": 31.0}})
    )
    assert with_ours.width == pytest.approx(alone.width * 3 / 2, rel=0.01)


def test_figure_5_says_on_what_and_at_which_size_its_times_were_measured(tmp_path, monkeypatch):
    """Below the paper's scale images are smaller than those of the panel next to it."""
    monkeypatch.setattr(params_flops, "latency_s", lambda sizes, **how: {name: [0.001] for name in sizes})
    drawn = []
    monkeypatch.setattr(reproduce, "png", lambda drawing, title: drawn.append(drawing) or b"")
    made("figure5", tmp_path)
    label = drawn[0].axes[-1].xaxis.label
    assert label.get_text() == "ms here, cpu, fp32, batch 1, 0.25 of the size"
    drawn[0].draw_without_rendering()
    assert label.get_window_extent().x1 <= drawn[0].bbox.x1, "it is cut off"


def test_what_was_counted_here_is_a_ring_at_the_papers_accuracy(tmp_path, monkeypatch):
    """Of S 21.46 million parameters; the paper's hours have nothing of ours next to them."""
    drawn = []
    monkeypatch.setattr(reproduce, "png", lambda figure, title: drawn.append(figure) or b"")
    made("figure1", tmp_path)
    hours, parameters = drawn[0].axes
    (rings,) = [line for line in parameters.lines if line.get_label() == "counted here"]
    points = {tuple(point) for point in rings.get_xydata().tolist()}
    figures = published.rows("7")
    names = ("efficientnetv2_s", "efficientnetv2_s_21k")
    assert {(21.458488, figures[name][0]) for name in names} <= points
    assert {line.get_label() for line in hours.lines} == {
        "EfficientNet", "EfficientNetV2", "EfficientNetV2, ImageNet-21k",
    }  # fmt: skip


@pytest.mark.usefixtures("nothing_missing")
def test_runs_on_other_pictures_are_not_taken_for_these(tmp_path, monkeypatch):
    table = Table("13", "X", (Row("a", {}, {"p": Measurement((3.0,))}),), "theirs.", "ours.")
    monkeypatch.setitem(reproduce.TRAINED, "13", lambda scale, together: table)
    made("13", tmp_path, data="cifar10")
    (tmp_path / "cells/a_p_0").mkdir(parents=True)
    (tmp_path / "cells/a_p_0/recipe.yaml").touch()
    assert made("13", tmp_path, data="cifar10", seeds=2) == table
    with pytest.raises(InputError, match=r"--data is cifar10 there, cifar100 here. Give another --output"):
        made("13", tmp_path, data="cifar100")


@pytest.mark.usefixtures("nothing_missing")
def test_words_that_no_run_began_with_do_not_bind_the_folder(tmp_path, monkeypatch):
    trained = []

    def train(words, source, place, **_):
        trained.append(source.data)
        if source.data == "nowhere":
            raise InputError("nowhere does not exist")
        place.out.mkdir(parents=True, exist_ok=True)
        (place.out / "recipe.yaml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train_and_report", train)
    with pytest.raises(InputError, match="nowhere does not exist"):
        made("13", tmp_path, data="nowhere")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            made("13", tmp_path, data="cifar10")
    assert trained == ["nowhere", "cifar10", "cifar10"]
    with pytest.raises(InputError, match="--data is cifar10 there, cifar100 here"):
        made("13", tmp_path, data="cifar100")


WRITTEN = ("table.json", "table.md", "figure.png")


def test_a_table_replaces_itself_and_says_so(tmp_path, capsys):
    place = f"{tmp_path / 'table.json'} is there already: it will be replaced."
    before = []
    for there in (False, True):
        command_line.main(["6", "--device", "cpu", "--output", str(tmp_path)])
        assert (place in " ".join(capsys.readouterr().err.split())) == there
        before.append([(tmp_path / name).read_bytes() for name in WRITTEN])
    assert before[0] == before[1]


@pytest.mark.parametrize("name", [*WRITTEN, "log.txt"])
def test_a_table_leaves_files_of_the_users_alone(name, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / name, format="PNG")
    before = (tmp_path / name).read_bytes()
    with pytest.raises(InputError, match=f"{name} is there already, and is not of Table 6. Give another --output"):
        made("6", tmp_path)
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [(name, before)]


def test_a_log_is_continued(tmp_path):
    for times in (1, 2):
        made("6", tmp_path)
        assert (tmp_path / "log.txt").read_text().count("efficientnetv2 ") == times


@pytest.mark.parametrize("other", ["figure4", "1"])
def test_a_table_is_not_written_over_by_another(other, tmp_path):
    made("6", tmp_path)
    before = sorted((one.name, one.read_bytes()) for one in tmp_path.iterdir())
    with pytest.raises(
        InputError, match=f"table.json is there already, and is not of {reproduce.title_of(other)}. Give"
    ):
        made(other, tmp_path)
    assert sorted((one.name, one.read_bytes()) for one in tmp_path.iterdir()) == before


def test_figures_of_one_table_are_not_written_over_by_each_other(tmp_path, monkeypatch):
    """Figures 1 and 5 are drawn from Table 7."""
    for name in ("7", "figure1", "figure5"):
        monkeypatch.setitem(reproduce.MEASURED, name, lambda *given, name=name: one_row(name))
    made("figure1", tmp_path)
    for other in ("7", "figure5"):
        with pytest.raises(InputError, match=f"table.json is there already, and is not of {reproduce.title_of(other)}"):
            made(other, tmp_path)
    made("figure1", tmp_path)


def test_a_folder_of_an_earlier_version_is_continued(tmp_path):
    """It has no file that names its table, but the table."""
    made("6", tmp_path)
    (tmp_path / "asked.json").unlink()
    made("6", tmp_path)
    (tmp_path / "asked.json").unlink()
    with pytest.raises(InputError, match="is there already, and is not of Figure 4"):
        made("figure4", tmp_path)


def one_row(name):
    return Table(name, "X", (Row("a", {}, {"p": Measurement((3.0,))}),), "theirs.", "ours.")


def test_what_runs_come_to_is_a_line_each_and_stdout_has_the_table_alone(tmp_path, monkeypatch, capsys):
    """The rest is in their folders."""

    def fake(words, source, place, **_):
        logging.getLogger("efficientnetv2").info("Training")
        place.out.mkdir(parents=True)
        (place.out / "report.json").write_text('{"top1": 0.5, "train_s": 60.0}')

    monkeypatch.setattr(runs, "train_and_report", fake)
    command_line.main(["13", "--data", "here", "--output", str(tmp_path / "made"), "--json"])
    printed = capsys.readouterr()
    assert printed.err.count("  top-1 50.0%, 1 min 00 s of training: ") == 4
    assert "Training" not in printed.err
    assert json.loads(printed.out)["table"] == "13"


def test_a_table_of_runs_that_is_stopped_says_how_it_continues(tmp_path, monkeypatch, capsys):
    """Not how its run alone would."""

    def stopped(words, source, place, **_):
        raise KeyboardInterrupt("Go on with: effnetv2 train ...")

    monkeypatch.setattr(runs, "train_and_report", stopped)
    words = ["13", "--scale", "tiny", "--data", "my pictures", "--seeds", "2", "--device", "cpu"]
    words += ["--output", str(tmp_path / "made"), "--json"]
    with pytest.raises(SystemExit) as end:
        command_line.main(words)
    assert end.value.code == 130
    again = shlex.join(["python", "-m", "benchmarks.paper", *words])
    assert capsys.readouterr().err.strip().endswith(f"stopped. Continue with: {again}")
