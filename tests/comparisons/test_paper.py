"""Tables of the paper next to measured values: counts are exact, and runs resume where they stopped."""

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
    """For simulated runs: requirements are not checked."""
    monkeypatch.setattr(runs, "refuse_missing", lambda runs: None)


def make_table(table, folder, **options):
    request = Request(table, out=folder, **{"device": "cpu", **options})
    return reproduce.reproduce(request)


def test_table_6_equals_the_paper(tmp_path):
    for row in make_table("6", tmp_path).rows:
        for column, figure in row.paper.items():
            assert row.ours[column].mean == pytest.approx(figure.mean), (row.name, column)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "table.md").read_text()
    assert "Table 6" in page
    assert "| S, image px | 128 | 128 | 300 | 300 |" in page, "the paper's column next to the measured one"


def test_parameters_of_table_1_are_those_of_b6():
    """The paper rounds to 43 M and 19 B; exactly 43,040,704 and 19.07 B at 528 px."""
    row = params_flops.counted("1", TINY, pick_device("cpu"), print).rows[0]
    assert row.ours["parameters, M"].mean == 43.040704
    assert row.ours["multiply-adds, B"].mean == pytest.approx(row.paper["multiply-adds, B"].mean, rel=0.01)


def test_every_empty_cell_has_a_reason():
    table = params_flops.counted("1", TINY, pick_device("cpu"), print)
    assert "nfnet_f1, parameters, M: not a network of this family" in table.missing
    assert "Missing: resnet_rs_420" in table.markdown()


def test_measurement_has_mean_spread_and_all_values():
    """78 and 80: mean 79, standard deviation 1.41."""
    measurement = Measurement((78.0, 80.0), "%")
    assert str(measurement) == "79.0 ± 1.4"
    assert measurement.to_json() == {
        "mean": 79.0, "spread": pytest.approx(2**0.5), "n": 2, "values": [78.0, 80.0], "unit": "%",
    }  # fmt: skip
    assert Measurement(why="not run").to_json()["missing"] == "not run"


@pytest.mark.parametrize(
    ("cell", "mean"), [("43M", 43.0), ("19B", 19.0), ([84.3, 0.14], 84.3), (7.1, 7.1), (None, None), ("OOM", None)]
)
def test_notations_of_the_paper_are_parsed(cell, mean):
    assert published.measurement(cell, "").mean == mean


def test_two_sides_of_a_column_are_adjacent():
    table = Table(
        "x",
        "X",
        (Row("a", {"p": Measurement((1.0,))}, {"q": Measurement((2.0,)), "p": Measurement((3.0,))}),),
        "theirs.",
        "ours.",
    )
    assert table.headings() == ["", "p, paper", "p, ours", "q, ours"]
    assert table.cells() == [["a", "1.00", "3.00", "2.00"]]


def test_minutes_are_next_to_hours_and_missing_columns_are_named():
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


def test_figure_1_does_not_time_predictions(tmp_path, monkeypatch):
    monkeypatch.setattr(params_flops, "latency_s", lambda *_, **__: pytest.fail("was timed"))
    shown = make_table("figure1", tmp_path)
    assert "time on" not in shown.ours_note
    assert shown.rows[0].ours["parameters, M"].values


@pytest.mark.parametrize(
    ("name", "drawn", "not_ours"),
    [
        ("figure1", {"top-1 %", "parameters, M", "hours"}, ["top-1 %", "hours"]),
        ("figure5", {"top-1 %", "parameters, M", "multiply-adds, B", "ms"}, ["top-1 %"]),
    ],
)
def test_figure_has_its_own_table_with_the_plotted_columns(name, drawn, not_ours, tmp_path, monkeypatch):
    """Columns of Table 7 that are plotted, with those not measured here named."""
    monkeypatch.setattr(params_flops, "latency_s", lambda sizes, **_: {name: [0.001] for name in sizes})
    shown = make_table(name, tmp_path)
    assert json.loads((tmp_path / "table.json").read_text())["table"] == shown.name == name
    assert {column for column, side in shown.columns if side == "paper"} == drawn
    assert {column for column, side in shown.columns if side == "ours"} == drawn - set(not_ours)
    page = (tmp_path / "table.md").read_text()
    assert page.startswith(f"### Figure {name[-1]}: accuracy against ")
    assert f"Not ours: {'; '.join(not_ours)}." in page
    assert "are not measured here" in page if "hours" in drawn else "accuracy is not measured here" in page
    assert "ours are drawn at the paper's top-1" in page
    table_7 = params_flops.counted("7", TINY, pick_device("cpu"), print)
    for row, expected in zip(shown.rows, table_7.rows, strict=True):
        assert row.paper == {column: expected.paper[column] for column in row.paper}


def test_table_json_is_read_back_equal():
    rows = (
        Row(
            "a",
            {"p": Measurement((1.0,), "%", spread=0.14), "q": Measurement(unit="ms", why="OOM", word="OOM")},
            {"p": Measurement((2.0, 3.5), "%"), "q": Measurement(unit="ms", why="no")},
        ),
    )
    table = Table("x", "X", rows, "theirs.", "ours.", "small", 2)
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_paths_of_images_are_not_in_the_note(tmp_path):
    for data, note in ((tmp_path / "imagenette", "on imagenette, 2 seeds."), ("sets/mine", "on sets/mine, 2 seeds.")):
        all_runs = Runs(DataConfig(str(data)), 2, "none", "cpu", tmp_path, print)
        assert note in accuracy.table_of_runs("5", [], TINY, all_runs, [], "").ours_note


def test_published_values_are_those_of_the_tables():
    assert published.rows("7")["efficientnetv2_s"][:3] == [83.9, 22, 8.8]
    assert published.rows("13")["progressive_resize"] == [[84.3, 0.14], [85.1, 0.07]]


def test_unknown_table_is_rejected(tmp_path):
    with pytest.raises(InputError, match=mentioning("'14'", "1", "2", "13")):
        make_table("14", tmp_path)


@pytest.mark.parametrize("word", ["Table 6", "table6", "6"])
def test_table_names_have_aliases(word, tmp_path):
    assert make_table(word, tmp_path).name == "6"


def test_table_8_without_weights_names_the_option(tmp_path):
    with pytest.raises(InputError, match=mentioning("--weights none")):
        make_table("8", tmp_path)


def test_paper_scale_has_the_sizes_and_batches_of_the_paper():
    paper = SCALES["paper"]
    assert (paper.px(380), paper.batch(24)) == (380, 24)
    assert len({TINY.px(px) for px in (128, 192, 300)}) == 3
    assert len({TINY.batch(images) for images in (12, 24)}) == 2


def test_runs_give_a_value_per_seed_and_are_not_repeated(tmp_path, monkeypatch):
    trained = []

    def fake_train(options, source, place, **_):
        trained.append((options.recipe, options.seed, place.resume))
        place.out.mkdir(parents=True)
        report = {"top1": 0.5 + options.seed / 10, "train_s": 120.0}
        (place.out / "report.json").write_text(json.dumps(report))

    monkeypatch.setattr(runs, "train_and_report", fake_train)
    cells, lines = [Cell("a", "x", "quick", None, ()), Cell("a", "y", "finetune", None, ())], []
    all_runs = Runs(DataConfig("here"), 2, "none", "cpu", tmp_path, lines.append)
    found = all_runs.measurements(cells)
    assert lines[4] == "a, x, seed 1 (run 3 of 4)"
    assert lines[5] == f"  top-1 60.0%, 2 min 00 s of training: {tmp_path / 'a_x_1' / 'report.html'}"
    assert trained == [("quick", 0, False), ("finetune", 0, False), ("quick", 1, False), ("finetune", 1, False)]
    assert found["a", "x"]["top-1 %"].values == pytest.approx((50.0, 60.0))
    assert found["a", "y"]["minutes"].values == (2.0, 2.0)
    assert all_runs.measurements(cells) == found
    assert len(trained) == 4
    (tmp_path / "a_x_1" / "report.json").unlink()
    (tmp_path / "a_x_1" / "recipe.yaml").write_text("")
    with pytest.raises(FileExistsError):  # of the fake; the real function resumes there
        all_runs.measurements(cells)
    assert trained[-1] == ("quick", 1, True)


def test_run_with_other_options_is_rejected(tmp_path, monkeypatch):
    def fake_train(words, source, place, **_):
        place.out.mkdir(parents=True)
        (place.out / "report.json").write_text('{"top1": 0.5, "train_s": 60.0}')

    monkeypatch.setattr(runs, "train_and_report", fake_train)
    all_runs = Runs(DataConfig("here"), 1, "none", "cpu", tmp_path, print)
    all_runs.measurements([Cell("a", "x", "quick", None, ("epochs=3",))])
    for other in (Cell("a", "x", "quick", None, ("epochs=1",)), Cell("a", "x", "finetune", None, ("epochs=3",))):
        with pytest.raises(InputError, match=mentioning("a_x_0", "delete")):
            all_runs.measurements([other])


@pytest.mark.usefixtures("nothing_missing")
@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
@pytest.mark.parametrize("table", ["5", "8", "10", "12", "13"])
def test_every_cell_has_a_valid_recipe(table, scale, tmp_path, monkeypatch):
    from efficientnetv2.training.overrides import requested_recipe

    recipes = []

    def fake_train(options, source, place, **_):
        recipe = requested_recipe(options, pick_device("cpu"))[0]
        recipes.append(recipe)
        place.out.mkdir(parents=True)
        (place.out / "report.json").write_text('{"top1": 0.5, "train_s": 60.0}')

    monkeypatch.setattr(runs, "train_and_report", fake_train)
    weights = "none" if table == "8" and scale != "paper" else None
    data = "imagenet" if table != "8" and scale == "paper" else None
    monkeypatch.setattr(params_flops, "latency_s", lambda sizes, **_: {name: [0.001] for name in sizes})
    table_ = make_table(table, tmp_path, scale=scale, seeds=1, weights=weights, data=data)
    assert recipes
    assert all(figure.values for row in table_.rows for figure in row.ours.values() if not figure.why)
    if table == "13":
        assert {recipe.progressive.order for recipe in recipes} == {"growing", "random"}
        assert {recipe.progressive.stage(0).randaugment for recipe in recipes} == (
            {5, 20} if scale == "paper" else {5, 15}
        )
    if table in ("10", "12"):
        durations = {name for row in table_.rows for name in row.ours if name.endswith(("hours", "minutes"))}
        assert {name.rpartition(" ")[2] for name in durations} == {"hours" if scale == "paper" else "minutes"}
        assert {table_.rows[0].ours[name].values for name in durations} == {(1 / 60 if scale == "paper" else 1.0,)}
    if table == "12":
        assert {recipe.progressive.stages for recipe in recipes} == ({1, 2} if scale == "tiny" else {1, 4})
    if table == "5":
        assert {recipe.progressive.last.randaugment for recipe in recipes} == {5, 10, 15}


def test_note_names_every_change_of_a_smaller_scale():
    """Each field that is set otherwise belongs to something the sentence names."""
    cell = accuracy._cell(TINY, "row", "run", None, 3, recipe="resnet50_224_progressive", progressive={"stages": 2})
    note = accuracy._recipes_note([cell])
    keywords = {
        "epochs": "length", "steps": "length", "progressive": "sizes", "batch_size": "batch",
        "optimizer": "optimizer",
        "schedule": "schedule", "ema_decay": "moving average", "batch_norm_momentum": "batch-norm momentum",
        "init": "init", "eval_image_size": "evaluation size", "crop_pct": "crop mode",
        "crop_mode": "crop mode", "train_crop_mode": "crop mode", "crop_scale_min": "smallest crop",
        "minival": "minival",
        # Validation during training, hold-out and expected dataset do not change the training.
        "val_max_images": "", "val_fraction": "", "expected_dataset": "",
    }  # fmt: skip
    assert all(keywords[override.partition("=")[0].partition(".")[0]] in note for override in cell.settings)
    assert "optimizer" not in accuracy._recipes_note([Cell("row", "run", "quick", None, ())])


def test_missing_requirements_are_reported_before_the_first_run(tmp_path, monkeypatch):
    """Table 12 needs timm for two of ten runs, Table 8 at paper scale needs four datasets."""
    monkeypatch.setattr(runs, "train_and_report", lambda *_: pytest.fail("was trained"))
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setenv("EFFNETV2_DATA", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    missing = mentioning("first run", "timm:tf_efficientnet_b5", "package 'timm'")
    with pytest.raises(InputError, match=missing):
        make_table("12", tmp_path / "made", data="here")
    with pytest.raises(InputError) as error:
        make_table("8", tmp_path / "made", scale="paper", weights="none")
    for name in ("cifar10", "cifar100", "flowers102", "stanford_cars"):
        assert f"The built-in dataset '{name}' is neither under" in str(error.value)
    assert not list(tmp_path.iterdir()), "nothing is started"


def test_missing_weights_are_reported_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "train_and_report", lambda *_: pytest.fail("was trained"))
    with pytest.raises(
        InputError, match=mentioning("Before the first run", "weights=gone.safetensors", "no such file")
    ):
        make_table("8", tmp_path / "made", weights="gone.safetensors", data="here")
    assert not list(tmp_path.iterdir())


def test_command_prints_and_writes_the_table(tmp_path, capsys):
    options = ["6", "--output", str(tmp_path / "six")]
    command_line.main([*options, "--json"])
    output = json.loads(capsys.readouterr().out)
    assert output == json.loads((tmp_path / "six" / "table.json").read_text())
    assert {row["name"].split(",")[0] for row in output["rows"]} == {"S", "M", "L"}
    command_line.main(options)
    assert capsys.readouterr().out.strip() == (tmp_path / "six" / "table.md").read_text().strip()


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["77"], "There is no table '77'. Those there are: 1, 2, 3,"),
        (["6", "--scale", "huge"], "argument --scale: invalid choice: 'huge'"),
        (["7", "--seeds", "0"], "--seeds is 0, but must be between 1 and 1,000"),
        (["6", "7", "--output", "here"], "--output is for one table that is not recorded"),
    ],
)
def test_invalid_options_are_rejected(args, error, capsys):
    with pytest.raises(SystemExit) as exit_:
        command_line.main(args)
    assert exit_.value.code == 2
    assert error in capsys.readouterr().err


def test_every_documented_command_is_valid():
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages) + command_line.__doc__
    lines = re.findall(r"^ *python -m benchmarks\.paper ([^#\n]+)", text, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        options = command_line.parse_options(shlex.split(line))[1]
        assert [request.table for request in command_line.requests(options)] == options.tables


def test_options_apply_to_the_tables_that_use_them():
    args = ["7", "13", "8", "--data", "here", "--seeds", "2", "--weights", "none"]
    requests = {request.table: request for request in command_line.requests(command_line.parse_options(args)[1])}
    assert (requests["7"].data, requests["7"].seeds, requests["7"].weights) == (None, None, None)
    assert (requests["13"].data, requests["13"].seeds, requests["13"].weights) == ("here", 2, None)
    assert (requests["8"].data, requests["8"].weights) == ("here", "none")


# Tables 3, 5 and 12 take minutes or 5 GB: ``make reproduce`` makes them.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "args", "runs", "num_values"),
    [
        ("2", (), 0, 2 * 2),
        ("8", ("--weights", "none"), 1, 1),  # rows of M and L run only at paper scale
        ("10", (), 2, 2 * 5),
        ("13", (), 4, 2 * 2),
    ],
)
def test_tiny_table_is_made_from_the_command_line(table, args, runs, num_values, tmp_path, monkeypatch, capsys):
    """Without mocks: each step is timed, each run is trained and evaluated. Table 8 in a process of its own."""
    out = tmp_path / "made"
    words = [table, *args, "--output", str(out), "--json"]
    if table == "8":
        command = [sys.executable, "-m", "benchmarks.paper", *words]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False)
        assert result.returncode == 0, result.stderr
        printed = result.stdout
    else:
        monkeypatch.chdir(REPOSITORY)
        command_line.main(words)
        printed = capsys.readouterr().out
    output = json.loads(printed)
    assert output == json.loads((out / "table.json").read_text())
    ours = {(row["name"], name): cell_ for row in output["rows"] for name, cell_ in row["ours"].items()}
    missing = {cell: cell_["missing"] for cell, cell_ in ours.items() if "missing" in cell_}
    not_run = {(f"efficientnetv2_{size}", "these pictures"): "not run at scale tiny" for size in "ml"}
    assert missing == (not_run if table == "8" else {})
    measured = [cell_ for cell, cell_ in ours.items() if cell not in missing]
    assert len(measured) == num_values
    assert all(math.isfinite(value) for cell_ in measured for value in cell_["values"])
    assert all(cell_["mean"] > 0 for cell_ in measured if cell_["unit"] != "%")
    assert all(cell_["n"] == 1 for cell_ in measured if cell_["unit"] in ("%", "minutes"))
    assert len(list(out.glob("cells/*/model.safetensors"))) == runs
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert f"Table {table}" in (out / "table.md").read_text()


def test_latency_adds_a_panel_to_figure_5():
    columns = ("params_m", "flops_b")
    without_latency, with_latency = (
        Image.open(io.BytesIO(png(plots.draw_published(columns, ours))))
        for ours in (None, {"ms": {"efficientnetv2_s": 12.0, "efficientnetv2_m": 31.0}})
    )
    assert with_latency.width == pytest.approx(without_latency.width * 3 / 2, rel=0.01)


def test_figure_5_names_device_precision_and_size(tmp_path, monkeypatch):
    """Below paper scale, images are smaller than in the panel of the paper."""
    monkeypatch.setattr(params_flops, "latency_s", lambda sizes, **_: {name: [0.001] for name in sizes})
    figures = []
    monkeypatch.setattr(reproduce, "png", lambda drawing, title: figures.append(drawing) or b"")
    make_table("figure5", tmp_path)
    label = figures[0].axes[-1].xaxis.label
    assert label.get_text() == "ms here, cpu, fp32, batch 1, 0.25 of the size"
    figures[0].draw_without_rendering()
    assert label.get_window_extent().x1 <= figures[0].bbox.x1, "cut off"


def test_counted_values_are_rings_at_the_accuracy_of_the_paper(tmp_path, monkeypatch):
    """S has 21.46 million parameters. Hours are not measured here."""
    plots = []
    monkeypatch.setattr(reproduce, "png", lambda figure, title: plots.append(figure) or b"")
    make_table("figure1", tmp_path)
    hours, parameters = plots[0].axes
    (rings,) = [line for line in parameters.lines if line.get_label() == "counted here"]
    points = {tuple(point) for point in rings.get_xydata().tolist()}
    published_rows = published.rows("7")
    names = ("efficientnetv2_s", "efficientnetv2_s_21k")
    assert {(21.458488, published_rows[name][0]) for name in names} <= points
    assert {line.get_label() for line in hours.lines} == {
        "EfficientNet", "EfficientNetV2", "EfficientNetV2, ImageNet-21k",
    }  # fmt: skip


@pytest.mark.usefixtures("nothing_missing")
def test_runs_on_another_dataset_are_rejected(tmp_path, monkeypatch):
    table = Table("13", "X", (Row("a", {}, {"p": Measurement((3.0,))}),), "theirs.", "ours.")
    monkeypatch.setitem(reproduce.TRAINED, "13", lambda scale, all_runs: table)
    make_table("13", tmp_path, data="cifar10")
    (tmp_path / "cells/a_p_0").mkdir(parents=True)
    (tmp_path / "cells/a_p_0/recipe.yaml").touch()
    assert make_table("13", tmp_path, data="cifar10", seeds=2) == table
    with pytest.raises(InputError, match=mentioning("--data", "cifar10", "cifar100", "--output")):
        make_table("13", tmp_path, data="cifar100")


@pytest.mark.usefixtures("nothing_missing")
def test_failed_options_do_not_reserve_the_output_folder(tmp_path, monkeypatch):
    trained = []

    def train(options, source, place, **_):
        trained.append(source.data)
        if source.data == "nowhere":
            raise InputError("nowhere does not exist")
        place.out.mkdir(parents=True, exist_ok=True)
        (place.out / "recipe.yaml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train_and_report", train)
    with pytest.raises(InputError, match="nowhere does not exist"):
        make_table("13", tmp_path, data="nowhere")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make_table("13", tmp_path, data="cifar10")
    assert trained == ["nowhere", "cifar10", "cifar10"]
    with pytest.raises(InputError, match=mentioning("--data", "cifar10", "cifar100")):
        make_table("13", tmp_path, data="cifar100")


WRITTEN = ("table.json", "table.md", "figure.png")


def test_table_is_replaced_with_a_message(tmp_path, capsys):
    message = f"{tmp_path / 'table.json'} is there already: it will be replaced."
    before = []
    for exists in (False, True):
        command_line.main(["6", "--device", "cpu", "--output", str(tmp_path)])
        assert (message in " ".join(capsys.readouterr().err.split())) == exists
        before.append([(tmp_path / name).read_bytes() for name in WRITTEN])
    assert before[0] == before[1]


@pytest.mark.parametrize("name", [*WRITTEN, "log.txt"])
def test_files_of_the_user_are_not_overwritten(name, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / name, format="PNG")
    before = (tmp_path / name).read_bytes()
    with pytest.raises(InputError, match=mentioning(name, "Table 6", "--output")):
        make_table("6", tmp_path)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, before)]


def test_log_is_continued(tmp_path):
    for count in (1, 2):
        make_table("6", tmp_path)
        assert (tmp_path / "log.txt").read_text().count("efficientnetv2 ") == count


@pytest.mark.parametrize("other", ["figure4", "1"])
def test_table_does_not_overwrite_another(other, tmp_path):
    make_table("6", tmp_path)
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=mentioning("table.json", reproduce.title_of(other), "--output")):
        make_table(other, tmp_path)
    assert sorted((one.name, one.read_bytes()) for one in tmp_path.iterdir()) == before


def test_figures_of_one_table_do_not_overwrite_each_other(tmp_path, monkeypatch):
    """Figures 1 and 5 are plotted from Table 7."""
    for name in ("7", "figure1", "figure5"):
        monkeypatch.setitem(reproduce.MEASURED, name, lambda *_, name=name: one_row(name))
    make_table("figure1", tmp_path)
    for other in ("7", "figure5"):
        with pytest.raises(InputError, match=mentioning("table.json", reproduce.title_of(other))):
            make_table(other, tmp_path)
    make_table("figure1", tmp_path)


def test_folder_of_an_earlier_version_is_continued(tmp_path):
    """It has no asked.json, only the table."""
    make_table("6", tmp_path)
    (tmp_path / "asked.json").unlink()
    make_table("6", tmp_path)
    (tmp_path / "asked.json").unlink()
    with pytest.raises(InputError, match=mentioning("Figure 4", "--output")):
        make_table("figure4", tmp_path)


def one_row(name):
    return Table(name, "X", (Row("a", {}, {"p": Measurement((3.0,))}),), "theirs.", "ours.")


def test_stderr_has_a_line_per_run_and_stdout_only_the_table(tmp_path, monkeypatch, capsys):
    """Full logs are in the folders of the runs."""

    def fake_train(options, source, place, **_):
        logging.getLogger("efficientnetv2").info("Training")
        place.out.mkdir(parents=True)
        (place.out / "report.json").write_text('{"top1": 0.5, "train_s": 60.0}')

    monkeypatch.setattr(runs, "train_and_report", fake_train)
    command_line.main(["13", "--data", "here", "--output", str(tmp_path / "made"), "--json"])
    output = capsys.readouterr()
    assert output.err.count("  top-1 50.0%, 1 min 00 s of training: ") == 4
    assert "Training" not in output.err
    assert json.loads(output.out)["table"] == "13"


def test_stopped_table_names_the_command_to_continue(tmp_path, monkeypatch, capsys):
    """The command of the table, not of the run."""

    def interrupt(options, source, place, **_):
        raise KeyboardInterrupt("Go on with: effnetv2 train ...")

    monkeypatch.setattr(runs, "train_and_report", interrupt)
    args = ["13", "--scale", "tiny", "--data", "my images", "--seeds", "2", "--device", "cpu"]
    args += ["--output", str(tmp_path / "made"), "--json"]
    with pytest.raises(SystemExit) as exit_:
        command_line.main(args)
    assert exit_.value.code == 130
    command = shlex.join(["python", "-m", "benchmarks.paper", *args])
    assert capsys.readouterr().err.strip().endswith(f"stopped. Continue with: {command}")
