"""The inspection's page in a real browser: nothing runs over the edge, on a desk and on a phone."""

from __future__ import annotations

import shutil

import pytest
from tests.checks.planted import Planted, scene, sound
from tests.evaluation.test_report_in_browser import AWKWARD, CHROMIUM, measured, stands_out

from efficientnetv2.checks import report
from efficientnetv2.checks.dataset_check import check_dataset
from efficientnetv2.checks.image_stats import collect_image_stats
from efficientnetv2.utils.rng import Key


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page with pairs, groups of more, long names and many classes."""
    folder = tmp_path_factory.mktemp("page")
    planted = Planted(folder, sound(folder))
    for number in range(6):
        name = f"a_copy_with_a_rather_long_name_{number}.jpg"
        shutil.copy(folder / "010.jpg", folder / name)
        planted.add(name, like=10, split="val" if number else "train")
    names = [*AWKWARD, *(f"class_{number}_of_a_rather_long_name" for number in range(24))]
    planted.table["label"] = [names[row % 30] for row in range(len(planted.table))]
    dataset = planted.read()
    inspection = check_dataset(dataset, collect_image_stats(dataset, workers=2), key=Key.of(0))
    report.write_check_report(
        folder, inspection, image=lambda row: scene(row), command="effnetv2 check " + "word " * 60, versions={}
    )
    return folder


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the page is not opened in a browser")
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_runs_over_the_edge(width, written, tmp_path):
    found = measured(written / report.PAGE_NAME, width, tmp_path / "profile")
    assert stands_out(found, width) == {}
