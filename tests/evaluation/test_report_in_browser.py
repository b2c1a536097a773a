"""The report in a real browser: nothing runs over the edge, on a desk and on a phone, with 3 and with 100 classes."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageColor

from efficientnetv2.base.keys import Key
from efficientnetv2.evaluation import report
from efficientnetv2.evaluation.answered import over
from efficientnetv2.evaluation.answers import Beside
from efficientnetv2.evaluation.drawing import COLOURS, INK, ON_DARK
from efficientnetv2.evaluation.parts import priced, sliced, worst_slice
from efficientnetv2.evaluation.trust import Scaled, trust
from efficientnetv2.metrics.classification import figures
from efficientnetv2.metrics.costs import Costs
from efficientnetv2.metrics.intervals import bootstrap
from efficientnetv2.metrics.slices import slices

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# What keeps a headless browser from looking for the network, its screen and its profile.
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
# Headless windows are never narrower than 500 px: the phone is a frame of 390 px.
PROBE = """<script>addEventListener('load', () => {
  const inside = document.getElementById('page').contentDocument.documentElement;
  const cut = [...inside.querySelectorAll('.wide')].filter(
    one => one.querySelector('.stacked') && one.scrollWidth > one.clientWidth + 1);
  document.body.dataset.cut = cut.length;
  document.body.dataset.widths = inside.scrollWidth + ' of ' + inside.clientWidth;
});</script>"""


def page(folder, classes):
    rng = np.random.default_rng(0)
    names = tuple(f"class_{k:03d}_of_a_rather_long_name" for k in range(classes))
    true = np.arange(40 * classes) % classes
    predicted = np.where(rng.random(len(true)) < 0.7, true, rng.integers(0, classes, len(true)))
    stated = rng.uniform(0.35, 0.99, len(true))[:, None]
    probabilities = np.full((len(true), classes), 0.0) + (1 - stated) / (classes - 1)
    probabilities[np.arange(len(true)), predicted] = stated[:, 0]
    shown = figures(true, probabilities, names)
    region = pd.DataFrame(
        {"region with a long name": [f"the {k % 19}th of many regions" for k in range(len(true))]}
    )
    parts = slices(region, true, predicted, true == predicted)
    scaled = Scaled(1.4321, 123, "minival", probabilities)
    sections = [
        trust(true, probabilities, scaled=scaled, abstain_below=0.8),
        sliced(parts),
        priced(true, probabilities, Costs(1.0 - np.eye(classes), 0.3), names),
    ]
    answers = pd.DataFrame({"label": predicted.astype(str), "true_label": true.astype(str)})
    other = over(answers, answers.assign(label=rng.permutation(predicted).astype(str)), key=Key.of(0))
    mistake = report.Mistake(
        "a/very/long/path/" + "x" * 80 + ".jpg", names[0], names[1], 0.9, Image.new("RGB", (40, 30))
    )
    rows = [
        {
            "kind": kind,
            "step": e,
            "epoch": e,
            "loss": 1 / (e + 1),
            "top1": e / 9,
            "macro_f1": e / 9,
            "image_px": 64 + e,
        }
        for e in range(8)
        for kind in ("train", "val")
    ]
    report.write(
        folder,
        figures=shown,
        intervals=bootstrap(shown, key=Key.of(0), draws=100),
        facts=report.Facts(
            data="pictures", evaluated_on="val", command="effnetv2 train " + "word " * 60,
            hashes={"model.safetensors": "f00d" * 16}, train_pictures=1000, chosen=["a" * 80, "b " * 60],
            train_support=dict.fromkeys(names, 12345), linear_probe_f1=dict.fromkeys(names, 0.5),
            linear_probe=0.5, linear_probe_macro_f1=0.5,
        ),
        history=rows,
        misjudged=[mistake] * 8,
        sections=sections,
        beside=Beside(
            probe=other, last=("a_run_before_this_one_with_a_long_name", other), trusted=sections[0].calibrated,
            slices=worst_slice(parts), labels=("Probably.", "With twice as many it would reach this and that."),
        ),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: the report is not opened in a browser"
)
@pytest.mark.parametrize("classes", [3, 100])
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_runs_over_the_edge(classes, width, tmp_path):
    page(tmp_path, classes)
    frame = f"<iframe id=page src=report.html style='width:{width}px;height:900px;border:0'></iframe>"
    (tmp_path / "probe.html").write_text(f"<!doctype html><body>{frame}{PROBE}</body>")
    shown = subprocess.run(
        [
            str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000",
            "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom",
            (tmp_path / "probe.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    widths = re.search(r'data-widths="(\d+) of (\d+)"', shown)
    assert widths, shown[-500:]
    needed, given = map(int, widths.groups())
    assert given in range(width - 20, width + 1)
    assert needed <= given
    if (
        width == 390
    ):  # on a phone the rows of classes and slices stand on end, and nothing is left to be scrolled to
        assert 'data-cut="0"' in shown
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


def colours(picture):
    """Those of at least 20 pixels."""
    with Image.open(picture) as image:
        return {colour for count, colour in image.convert("RGB").getcolors(2**24) if count >= 20}


@pytest.mark.slow
@pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: the report is not opened in a browser"
)
@pytest.mark.parametrize(("dark", "paper"), [(False, "#ffffff"), (True, "#161616")])
def test_drawings_are_as_light_or_dark_as_the_page(dark, paper, tmp_path):
    """A page of drawings alone, in the report's own style: everything on it has the colours for its ground."""
    page(tmp_path, 3)
    whole = (tmp_path / "report.html").read_text()
    style = whole[whole.index("<style>") : whole.index("</style>")]
    images = re.findall(r'<img class="curve"[^>]*>', whole)
    assert len(images) == 3
    (tmp_path / "drawings.html").write_text(f"<!doctype html>{style}</style>{''.join(images)}")
    subprocess.run(
        [
            str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,2400",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--hide-scrollbars",
            f"--screenshot={tmp_path / 'shown.png'}", (tmp_path / "drawings.html").as_uri(),
        ],
        capture_output=True, timeout=300, check=True,
    )  # fmt: skip
    seen = colours(tmp_path / "shown.png")
    assert ImageColor.getrgb(paper) in seen
    assert (
        ImageColor.getrgb(ON_DARK[INK] if dark else INK) in seen
    )  # the edges of letters have other greys too
    for light in COLOURS[:2]:
        there, elsewhere = (ON_DARK[light], light) if dark else (light, ON_DARK[light])
        assert ImageColor.getrgb(there) in seen
        assert ImageColor.getrgb(elsewhere) not in seen


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the report is not printed")
def test_it_is_printed_whole(tmp_path):
    """The matrix of 100 classes too, which is wider than paper, and the classes that are folded on the screen."""
    page(tmp_path, 100)
    subprocess.run(
        [
            str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--no-pdf-header-footer",
            f"--print-to-pdf={tmp_path / 'report.pdf'}", (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True, timeout=300, check=True,
    )  # fmt: skip
    pdf = (tmp_path / "report.pdf").read_bytes()
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 10 <= pages <= 30, "75 folded classes take three pages, and are there"
