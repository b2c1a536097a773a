"""The inspection's page in a real browser: nothing runs over the edge, on a desk and on a phone."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from tests.evaluation.inspect.planted import Planted, scene, sound
from tests.evaluation.test_report_in_browser import CHROMIUM, PROBE, QUIET

from efficientnetv2.base.keys import Key
from efficientnetv2.data.portraits import portraits
from efficientnetv2.evaluation.inspect import page
from efficientnetv2.evaluation.inspect.inspection import inspected


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page with pairs, groups of more, long names and many classes."""
    folder = tmp_path_factory.mktemp("page")
    planted = Planted(folder, sound(folder))
    for number in range(6):
        name = f"a_copy_with_a_rather_long_name_{number}.jpg"
        shutil.copy(folder / "010.jpg", folder / name)
        planted.add(name, like=10, split="val" if number else "train")
    planted.table["label"] = [f"class_{row % 30}_of_a_rather_long_name" for row in range(len(planted.table))]
    manifest = planted.read()
    inspection = inspected(manifest, portraits(manifest, workers=2), key=Key.of(0))
    page.write(
        folder,
        inspection,
        picture=lambda row: scene(row),
        command="effnetv2 inspect " + "word " * 60,
        versions={},
    )
    return folder


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the page is not opened in a browser")
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_runs_over_the_edge(width, written, tmp_path):
    frame = f"<iframe id=page src={page.PAGE_NAME} style='width:{width}px;height:900px;border:0'></iframe>"
    (written / "probe.html").write_text(f"<!doctype html><body>{frame}{PROBE}</body>")
    shown = subprocess.run(
        [
            str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000",
            "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom",
            (written / "probe.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    widths = re.search(r'data-widths="(\d+) of (\d+)"', shown)
    assert widths, shown[-500:]
    needed, given = map(int, widths.groups())
    assert given in range(width - 20, width + 1)
    assert needed <= given
