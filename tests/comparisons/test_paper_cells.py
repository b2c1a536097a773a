"""Each value of a table is in its cell: measured values of its run, and values of the paper as printed."""

import json

import pytest
import torch
from benchmarks.paper import params_flops, published, runs, throughput
from benchmarks.paper.scale import SCALES
from benchmarks.paper.table import Measurement
from tests.comparisons.test_paper import make_table

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.training.overrides import requested_recipe

TINY = SCALES["tiny"]


@pytest.fixture
def cell_of(tmp_path, monkeypatch):
    """A table with a different top-1 for each run: cell -> (recipe, DATA) of the run that it shows."""
    started = []
    monkeypatch.setattr(runs, "refuse_missing", lambda runs: None)
    monkeypatch.setattr(params_flops, "latency_s", lambda sizes, **_: {name: [0.001] for name in sizes})

    def fake_train(options, source, place, **_):
        started.append((requested_recipe(options, torch.device("cpu"))[0], source.data))
        place.out.mkdir(parents=True)
        report = {"top1": len(started) / 1000, "train_s": 60.0 * len(started)}
        (place.out / "report.json").write_text(json.dumps(report))

    monkeypatch.setattr(runs, "train_and_report", fake_train)

    def cells(table, **options):
        rows = make_table(table, tmp_path / "out", **{"data": "here", **options}).rows
        found = {
            (row.name, column.removesuffix("top-1 %").removesuffix(", ")): round(value.mean * 10) - 1
            for row in rows
            for column, value in row.ours.items()
            if value.unit == "%" and value.values
        }
        assert sorted(found.values()) == list(range(len(started))), "every run is in one cell"
        minutes = {
            (row.name, column.removesuffix("minutes").removesuffix(", ")): round(value.mean) - 1
            for row in rows
            for column, value in row.ours.items()
            if column.endswith("minutes")
        }
        assert not minutes or minutes == found, "minutes of the same run"
        return {cell: started[number] for cell, number in found.items()}

    return cells


def test_table_5_has_each_size_and_magnitude_in_its_cell(cell_of):
    cells = cell_of("5")
    assert len(cells) == 9
    for (row, column), (recipe, _) in cells.items():
        setting = recipe.progressive.last
        assert setting.randaugment == float(row.removeprefix("magnitude "))
        assert setting.image_size == TINY.px(int(column.removesuffix(" px")))


def test_table_8_has_each_dataset_in_its_column(cell_of):
    cells = cell_of("8", data="cifar10, cars", weights="none")
    assert {cell: data for cell, (_, data) in cells.items()} == {
        ("efficientnetv2_s", "cifar10"): "cifar10",
        ("efficientnetv2_s", "cars"): "stanford_cars",
    }


def test_table_10_has_each_family_in_its_row(cell_of):
    assert {row: recipe.model for (row, _), (recipe, _) in cell_of("10").items()} == {
        "efficientnet_b7": "efficientnet_b1",
        "efficientnetv2_m": "efficientnetv2_b0",
    }


def test_table_12_has_fixed_sizes_under_baseline_and_growing_under_progressive(cell_of):
    cells = cell_of("12")
    assert len(cells) == 10
    for (row, column), (recipe, _) in cells.items():
        assert recipe.name == f"{row}_progressive"
        assert recipe.progressive.stages == {"baseline": 1, "progressive": 2}[column]


def test_table_13_has_each_resizing_in_its_row_and_each_regularization_in_its_column(cell_of):
    cells = cell_of("13")
    assert len(cells) == 4
    for (row, column), (recipe, _) in cells.items():
        schedule = recipe.progressive
        assert schedule.order == {"progressive_resize": "growing", "random_resize_every_8_epochs": "random"}[row]
        increases = [
            getattr(schedule.stage(0), name) < getattr(schedule.last, name) for name in ("randaugment", "dropout")
        ]
        assert increases == [column == "adaptive"] * 2


def test_table_2_has_each_size_and_batch_in_its_cell(monkeypatch):
    """512 px in batches of 12 gives 512.12."""
    monkeypatch.setattr(
        throughput,
        "images_per_s",
        lambda steps, *_: {
            name: Measurement((step.image_size + step.batch_size / 100,)) for name, step in steps.items()
        },
    )
    table = throughput.table_2(SCALES["paper"], torch.device("cpu"), print)
    assert {row.name: {name: value.mean for name, value in row.ours.items()} for row in table.rows} == {
        "512 px": {"images/s, batch 12": 512.12, "images/s, batch 24": 512.24},
        "380 px": {"images/s, batch 12": 380.12, "images/s, batch 24": 380.24},
    }


def test_table_3_has_the_speed_of_each_variant_next_to_its_counts(monkeypatch):
    def parameters_as_speed(step):
        return Measurement((count_flops(step.architecture, image_size=380).total.parameters / 1e6,))

    monkeypatch.setattr(
        throughput, "images_per_s", lambda steps, *_: {name: parameters_as_speed(step) for name, step in steps.items()}
    )
    rows = throughput.table_3(SCALES["paper"], torch.device("cpu"), print).rows
    assert len(rows) == 7
    for row in rows:
        assert row.ours["images/s"].mean == row.ours["parameters, M"].mean
    # Counted from the description in the paper, next to the value that it prints.
    assert [round(row.ours["parameters, M"].mean, 1) for row in rows[1:6:2]] == [20.9, 43.5, 132.1]
    assert [row.paper["parameters, M"].mean for row in rows[1:6:2]] == [20.0, 43.4, 132.0]


@pytest.mark.parametrize(
    ("table", "row", "values"),
    [
        # From arXiv:2104.00298, column by column.
        ("5", "magnitude_15", {"128 px": 77.7, "192 px": 81.5, "300 px": 83.2}),
        ("8", "efficientnetv2_m", {"cifar10": 99.0, "cifar100": 92.2, "flowers102": 98.5, "cars": 94.6}),
        (
            "10",
            "efficientnetv2_m",
            {"top-1 %": 85.1, "parameters, M": 55, "multiply-adds, B": 24, "hours": 13, "ms": 57},
        ),
        (
            "12",
            "resnet50_224",
            {
                "baseline, top-1 %": 78.1,
                "baseline, hours": 4.9,
                "progressive, top-1 %": 78.4,
                "progressive, hours": 3.5,
            },
        ),
        ("13", "progressive_resize", {"vanilla": 84.3, "adaptive": 85.1}),
        ("13", "random_resize_every_8_epochs", {"vanilla": 83.5, "adaptive": 84.2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_of_the_paper_are_as_printed(table, row, values):
    assert {heading: cell.mean for heading, cell in published.row(table, row).items()} == values


def test_figure_4_starts_and_ends_with_table_6_of_s(tmp_path):
    rows = make_table("figure4", tmp_path).rows
    ends = [[figure.mean for figure in rows[stage].ours.values()] for stage in (0, -1)]
    s = {name: ends for name, *ends in _table_6_of_s(tmp_path)}
    assert ends == [[low for low, _ in s.values()], [high for _, high in s.values()]]
    assert list(rows[0].ours) == list(s)


def _table_6_of_s(folder):
    for row in make_table("6", folder / "six").rows:
        if row.name.startswith("S, "):
            yield row.name.removeprefix("S, "), *(figure.mean for figure in row.paper.values())
