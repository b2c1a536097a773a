"""Each figure of a table stands where it belongs: ours in the cell of its run, the paper's where it prints it."""

import json

import pytest
import torch
from benchmarks.paper import params_flops, published, runs, throughput
from benchmarks.paper.scale import SCALES
from benchmarks.paper.table import Measurement
from tests.comparisons.test_paper import made

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.training.overrides import requested_recipe

TINY = SCALES["tiny"]


@pytest.fixture
def cell_of(tmp_path, monkeypatch):
    """A table whose runs each have a top-1 of their own: cell -> (recipe, DATA) of the run that it shows."""
    begun = []
    monkeypatch.setattr(runs, "refuse_missing", lambda runs: None)
    monkeypatch.setattr(params_flops, "latency_s", lambda sizes, **how: {name: [0.001] for name in sizes})

    def begin(words, source, place, **_):
        begun.append((requested_recipe(words, torch.device("cpu"))[0], source.data))
        place.out.mkdir(parents=True)
        report = {"top1": len(begun) / 1000, "train_s": 60.0 * len(begun)}
        (place.out / "report.json").write_text(json.dumps(report))

    monkeypatch.setattr(runs, "train_and_report", begin)

    def shown(table, **words):
        rows = made(table, tmp_path / "out", **{"data": "here", **words}).rows
        found = {
            (row.name, column.removesuffix("top-1 %").removesuffix(", ")): round(figure.mean * 10) - 1
            for row in rows
            for column, figure in row.ours.items()
            if figure.unit == "%" and figure.values
        }
        assert sorted(found.values()) == list(range(len(begun))), "every run is shown, once"
        minutes = {
            (row.name, column.removesuffix("minutes").removesuffix(", ")): round(figure.mean) - 1
            for row in rows
            for column, figure in row.ours.items()
            if column.endswith("minutes")
        }
        assert not minutes or minutes == found, "its minutes are of the same run"
        return {cell: begun[number] for cell, number in found.items()}

    return shown


def test_table_5_has_each_size_and_magnitude_in_its_cell(cell_of):
    there = cell_of("5")
    assert len(there) == 9
    for (row, column), (recipe, _) in there.items():
        setting = recipe.progressive.last
        assert setting.randaugment == float(row.removeprefix("magnitude "))
        assert setting.image_size == TINY.px(int(column.removesuffix(" px")))


def test_table_8_has_each_set_in_its_column(cell_of):
    there = cell_of("8", data="cifar10, cars", weights="none")
    assert {cell: data for cell, (_, data) in there.items()} == {
        ("efficientnetv2_s", "cifar10"): "cifar10",
        ("efficientnetv2_s", "cars"): "stanford_cars",
    }


def test_table_10_has_each_family_in_its_row(cell_of):
    assert {row: recipe.model for (row, _), (recipe, _) in cell_of("10").items()} == {
        "efficientnet_b7": "efficientnet_b1",
        "efficientnetv2_m": "efficientnetv2_b0",
    }


def test_table_12_has_the_fixed_size_under_baseline_and_the_growing_one_under_progressive(cell_of):
    there = cell_of("12")
    assert len(there) == 10
    for (row, column), (recipe, _) in there.items():
        assert recipe.name == f"{row}_progressive"
        assert recipe.progressive.stages == {"baseline": 1, "progressive": 2}[column]


def test_table_13_has_each_resizing_in_its_row_and_each_regularization_in_its_column(cell_of):
    there = cell_of("13")
    assert len(there) == 4
    for (row, column), (recipe, _) in there.items():
        plan = recipe.progressive
        assert plan.order == {"progressive_resize": "growing", "random_resize_every_8_epochs": "random"}[row]
        grows = [getattr(plan.stage(0), name) < getattr(plan.last, name) for name in ("randaugment", "dropout")]
        assert grows == [column == "adaptive"] * 2


def test_table_2_has_each_size_and_batch_in_its_cell(monkeypatch):
    """512 px in batches of 12 makes 512.12."""
    monkeypatch.setattr(
        throughput,
        "images_per_s",
        lambda steps, *given: {
            name: Measurement((step.image_size + step.batch_size / 100,)) for name, step in steps.items()
        },
    )
    shown = throughput.table_2(SCALES["paper"], torch.device("cpu"), print)
    assert {row.name: {name: figure.mean for name, figure in row.ours.items()} for row in shown.rows} == {
        "512 px": {"images/s, batch 12": 512.12, "images/s, batch 24": 512.24},
        "380 px": {"images/s, batch 12": 380.12, "images/s, batch 24": 380.24},
    }


def test_table_3_has_the_speed_of_each_variant_beside_its_own_counts(monkeypatch):
    def as_large(step):
        return Measurement((count_flops(step.architecture, image_size=380).total.parameters / 1e6,))

    monkeypatch.setattr(
        throughput, "images_per_s", lambda steps, *given: {name: as_large(step) for name, step in steps.items()}
    )
    rows = throughput.table_3(SCALES["paper"], torch.device("cpu"), print).rows
    assert len(rows) == 7
    for row in rows:
        assert row.ours["images/s"].mean == row.ours["parameters, M"].mean
    # As counted from the paper's description, next to its own figure, which is in the row of the same stages.
    assert [round(row.ours["parameters, M"].mean, 1) for row in rows[1:6:2]] == [20.9, 43.5, 132.1]
    assert [row.paper["parameters, M"].mean for row in rows[1:6:2]] == [20.0, 43.4, 132.0]


@pytest.mark.parametrize(
    ("table", "row", "values"),
    [
        # As arXiv:2104.00298 prints them, column by column.
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
def test_the_papers_values_stand_where_it_prints_them(table, row, values):
    assert {heading: one.mean for heading, one in published.row(table, row).items()} == values


def test_figure_4_begins_and_ends_where_table_6_says_of_s(tmp_path):
    rows = made("figure4", tmp_path).rows
    ends = [[figure.mean for figure in rows[stage].ours.values()] for stage in (0, -1)]
    s = {name: ends for name, *ends in _table_6_of_s(tmp_path)}
    assert ends == [[low for low, _ in s.values()], [high for _, high in s.values()]]
    assert list(rows[0].ours) == list(s)


def _table_6_of_s(folder):
    for row in made("6", folder / "six").rows:
        if row.name.startswith("S, "):
            yield row.name.removeprefix("S, "), *(figure.mean for figure in row.paper.values())
