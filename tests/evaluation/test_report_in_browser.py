"""The report in Chromium, at desktop and phone width, with 3 and with 100 classes.

Nothing overflows or overlaps, small images fill their boxes, and text is centered in lines of readable length.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageColor

from efficientnetv2.evaluation import explain, report
from efficientnetv2.evaluation.calibration_section import calibration_section
from efficientnetv2.evaluation.crossval_summary import CrossValidationSummary, FoldScore
from efficientnetv2.evaluation.distribution_shift import SplitComparison
from efficientnetv2.evaluation.html import render
from efficientnetv2.evaluation.plot_style import COLORS, INK, ON_DARK
from efficientnetv2.evaluation.predictions import compare_predictions
from efficientnetv2.evaluation.report_metadata import ReportContext, ReportMetadata
from efficientnetv2.evaluation.report_sections import (
    cost_section,
    learning_curve_section,
    subgroup_section,
    subgroup_verdict,
    worst_slice,
)
from efficientnetv2.evaluation.thumbnails import encode_thumbnail
from efficientnetv2.inference.learning_curve import LearningCurve, LearningCurvePoint
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.confidence_intervals import Difference
from efficientnetv2.metrics.cost_sensitive import ErrorCosts
from efficientnetv2.metrics.metric_intervals import bootstrap_intervals
from efficientnetv2.metrics.subgroups import slice_metrics
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.utils.random_key import Key

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# A snap sees another /tmp. Ubuntu's chromium-browser is a script that starts the snap.
if CHROMIUM and (CHROMIUM.startswith("/snap/") or b"/snap/" in Path(CHROMIUM).read_bytes()[:4096]):
    CHROMIUM = None
# A headless browser without network, display or profile.
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
# Long class names: one long word, scripts without spaces, wide letters, markup.
AWKWARD = (
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerk",
    "temporary_unproductive_industrial_plantation_regrowth",
    "热带雨林次生林与橡胶种植园以及其他土地利用类型的混合区域",
    "الغابات_المدارية_المطيرة",
    "Quercus robur × petraea ssp. huguetiana var. longissima",
    "<b>UPPER</b>_CASE_ALL_THE_WAY_TO_THE_END",
)
# Headless windows are never narrower than 500 px: the phone is a frame of 390 px.
PROBE = """<script>addEventListener('load', () => {
  const inside = document.getElementById('page').contentDocument, root = inside.documentElement;
  inside.querySelectorAll('details').forEach(one => { one.open = true; });
  const box = one => one.getBoundingClientRect();
  const report = (name, found) => document.body.dataset[name] =
    found.slice(0, 9).map(one => (one.className.baseVal ?? one.className) + ':' + one.textContent.slice(0, 40))
      .join('|');
  const all = [...inside.body.querySelectorAll('*')].filter(one => box(one).width > 0);
  const style = one => getComputedStyle(one);
  report('cut', [...inside.querySelectorAll('.wide')].filter(
    one => !one.querySelector('.matrix') && one.scrollWidth > one.clientWidth + 1));
  report('wider', all.filter(one => !one.closest('.wide, .curve') && box(one).right > root.clientWidth + 1));
  report('clipped', all.filter(
    one => ['hidden', 'clip'].includes(style(one).overflowX) && one.scrollWidth > one.clientWidth + 1));
  report('outside', [...inside.querySelectorAll('svg text')].filter(one => {
    const [a, b] = [box(one), box(one.ownerSVGElement)];
    return a.left < b.left - 1 || a.top < b.top - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1;
  }));
  report('overlapping', [...inside.querySelectorAll('td, th, figcaption, .tiles div, dd, dt, li')].filter(one => {
    const next = one.nextElementSibling;
    return next && box(next).width && box(one).width && box(one).right > box(next).left + 1
      && box(one).bottom > box(next).top + 1 && box(next).bottom > box(one).top + 1;
  }));
  report('tiny', [...inside.querySelectorAll('.thumb img')].filter(one => {
    const room = one.parentElement;
    return one.clientWidth < 0.9 * room.clientWidth && one.clientHeight < 0.9 * room.clientHeight;
  }));
  report('aside', [...inside.body.children].filter(one => box(one).width > 0
    && Math.abs(box(one).left - (root.clientWidth - box(one).right)) > 2));
  report('long', [...inside.querySelectorAll('p, li')].filter(one => box(one).width > 46 * 16 + 1));
  document.body.dataset.widths = root.scrollWidth + ' of ' + root.clientWidth;
});</script>"""


def measure(page, width, profile):
    """The width of a page in the browser, and its elements that overflow, overlap or are too small."""
    frame = f"<iframe id=page src={page.name} style='width:{width}px;height:900px;border:0'></iframe>"
    probe = page.with_name("probe.html")
    probe.write_text(f"<!doctype html><meta charset=utf-8><body>{frame}{PROBE}</body>", encoding="utf-8")
    dom = subprocess.run(
        [
            str(CHROMIUM), *QUIET, f"--user-data-dir={profile}", "--window-size=1400,1000",
            "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom", probe.as_uri(),
        ],
        capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', dom))
    assert "widths" in found, dom[-500:]
    return found


def layout_faults(found, width):
    """The faults by type; on a phone only a matrix may scroll."""
    needed, available = map(int, found["widths"].split(" of "))
    assert available in range(width - 20, width + 1)
    types = ("wider", "clipped", "outside", "overlapping", "tiny", "aside", "long", *(["cut"] if width == 390 else []))
    faults = {type_: found[type_] for type_ in types if found[type_]}
    return faults if needed <= available else faults | {"widths": found["widths"]}


def predicted_dataset(classes):
    """Class names and forty images each: labels, predictions, probabilities."""
    rng = np.random.default_rng(0)
    generated = [f"class_{k:03d}_of_a_rather_long_name" for k in range(classes)]
    names = (*AWKWARD, *generated)[:classes] if classes > len(AWKWARD) else (*AWKWARD[:2], "oak")
    true = np.arange(40 * classes) % classes
    predicted = np.where(rng.random(len(true)) < 0.7, true, rng.integers(0, classes, len(true)))
    confidence = rng.uniform(0.35, 0.99, len(true))[:, None]
    probabilities = np.full((len(true), classes), 0.0) + (1 - confidence) / (classes - 1)
    probabilities[np.arange(len(true)), predicted] = confidence[:, 0]
    return names, true, predicted, probabilities


def page(folder, classes):
    names, true, predicted, probabilities = predicted_dataset(classes)
    metrics = classification_metrics(true, probabilities, names)
    region = pd.DataFrame({"region with a long name": [f"the {k % 19}th of many regions" for k in range(len(true))]})
    parts = slice_metrics(region, true, predicted, true == predicted)
    scaled = Calibration(1.4321, 123, "minival")
    sections = [
        calibration_section(true, probabilities, scaled=scaled, before=probabilities, abstain_below=0.8),
        subgroup_section(parts),
        cost_section(true, probabilities, ErrorCosts(1.0 - np.eye(classes), 0.3), names, key=Key.of(0)),
    ]
    predictions = pd.DataFrame({"predicted_label": predicted.astype(str), "true_label": true.astype(str)})
    shuffled = np.random.default_rng(1).permutation(predicted).astype(str)
    difference = compare_predictions(predictions, predictions.assign(predicted_label=shuffled))
    error = report.Misclassification(
        "a/very/long/path/" + "x" * 80 + ".jpg", names[0], names[1], 0.9, Image.new("RGB", (40, 30))
    )
    rows = [
        {"kind": kind, "step": e, "epoch": e, "image_size": 64 + e, "loss": 1 / (e + 1), "top1": e / 9, "macro_f1": 0.1}
        for e in range(8)
        for kind in ("train", "val")
    ]
    report.Report(metrics=metrics,
        intervals=bootstrap_intervals(metrics, key=Key.of(0), draws=100),
        metadata=ReportMetadata(
            data="images", evaluated_on="val", command="effnetv2 train " + "word " * 60,
            sha256={"model.safetensors": "f00d" * 16}, num_train_images=1000, auto_choices=["a" * 80, "b " * 60],
            train_images_per_class=dict.fromkeys(names, 12345), linear_probe_f1=dict.fromkeys(names, 0.5),
            linear_probe_top1=0.5, linear_probe_macro_f1=0.5,
        ),
        history=rows,
        errors=[error] * 8,
        sections=sections,
        context=ReportContext(
            probe=difference, last=("a_run_before_this_one_with_a_long_name", difference),
            calibration=(sections[0].verdict, sections[0].calibrated),
            subgroups=(subgroup_verdict(parts), worst_slice(parts)),
            more_labels=("Probably.", "With twice as many images it would reach this and that."), tta=difference,
            unseen="On the 300 of these 900 images that did not train it: this and that.",
        ),).write(folder)  # fmt: skip


def cross_validated(folder, classes):
    """The report of a cross-validation: folds, candidates, galleries, learning curve."""
    names, true, _, probabilities = predicted_dataset(classes)
    candidates = ["progressive.image_size={start: 128, end: 332} augment.flip=d4", "class_sampling=effective"]
    difference = {name: Difference(0.1, 0.05, 0.15) for name in ("top1", "macro_f1")}
    summary = CrossValidationSummary(
        by="time",
        note="Five folds by time, " + "each predicted by the model of the folds before, " * 3,
        over_classes="macro_f1",
        folds=[
            FoldScore(
                n,
                f"2014-0{n + 1}-01 to 2019-12-31",
                12345,
                2345,
                0.876,
                0.765,
                12.5,
                3600,
                ("a",),
                (candidates[n % 2],),
            )
            for n in range(5)
        ],
        candidates={name: dict.fromkeys(range(5), 0.7654) for name in candidates},
        comparisons=[
            SplitComparison(
                "the trained models", {"top1": 0.9, "macro_f1": 0.8}, {"top1": 0.8, "macro_f1": 0.7}, difference
            )
        ],
    )
    curve = LearningCurve(
        tuple(LearningCurvePoint(1250 * 2**n, 0.5 + n / 20, 0.4 + n / 20, 0.6 + n / 20, 5) for n in range(5)),
        LearningCurvePoint(320_000, 0.8, 0.7, 0.9, 0), 0.05, 0.01, 0.09, LearningCurvePoint(160_000, 0.75, 0.7, 0.8, 0),
    )  # fmt: skip
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    heat = np.linspace(0, 1, 2400, dtype=np.float32).reshape(40, 60)
    galleries = explain.gallery_section(
        explain.select_galleries(true, probabilities, names), true, probabilities, names,
        ["a/very/long/path/" + "x" * 80 + f"{n}.jpg" for n in range(len(true))],
        dict.fromkeys(range(len(true)), (image, heat)),
    )  # fmt: skip
    metrics = classification_metrics(true, probabilities, names)
    report.Report(
        metrics=metrics,
        intervals=bootstrap_intervals(metrics, key=Key.of(0), draws=100),
        metadata=ReportMetadata(data="images", evaluated_on="out-of-fold", tta="d4"),
        sections=[summary.section(), learning_curve_section(curve), galleries],
        context=ReportContext(new_places=summary.new_places()),
    ).write(folder)


def to_label(folder, classes):
    """The page of images to label next."""
    names, *_ = predicted_dataset(classes)
    address = encode_thumbnail(Image.new("RGB", (40, 30)))
    path = "a/very/long/path/" + "x" * 80
    rows = [{"path": path, "predicted": name, "probability": 0.4, "second": names[0]} for name in names[:20]]
    html = render(
        "to_label.html.j2", shown=[(row, address) for row in rows], stretched=None, num_images=12345, diverse=500,
        command="effnetv2 predict " + "word " * 60,
    )  # fmt: skip
    (folder / "report.html").write_text(html, encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function that writes a page once, and returns its folder."""

    @cache
    def folder(write_page, classes):
        made = tmp_path_factory.mktemp(write_page.__name__)
        write_page(made, classes)
        return made

    return folder


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the report is not opened in a browser")
@pytest.mark.parametrize("write_page", [page, cross_validated, to_label])
@pytest.mark.parametrize("classes", [3, 100])
@pytest.mark.parametrize("width", [390, 1200])
def test_page_does_not_overflow_or_overlap(write_page, classes, width, written, tmp_path):
    file = written(write_page, classes) / "report.html"
    layout = measure(file, width, tmp_path / "profile")
    assert layout_faults(layout, width) == {}
    assert file.stat().st_size < 5_000_000


def colors(path):
    """Colors of at least 20 pixels."""
    with Image.open(path) as image:
        return {color for count, color in image.convert("RGB").getcolors(2**24) if count >= 20}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the report is not opened in a browser")
@pytest.mark.parametrize(("dark", "paper"), [(False, "#ffffff"), (True, "#161616")])
def test_plots_follow_the_color_scheme_of_the_page(dark, paper, written, tmp_path):
    """A page of plots only, with the style sheet of the report."""
    html = (written(page, 3) / "report.html").read_text()
    style = html[html.index("<style>") : html.index("</style>")]
    images = re.findall(r'<img class="curve"[^>]*>', html)
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
    painted = colors(tmp_path / "shown.png")
    assert ImageColor.getrgb(paper) in painted
    assert ImageColor.getrgb(ON_DARK[INK] if dark else INK) in painted  # letter edges have other grays
    for light in COLORS[:2]:
        expected, other = (ON_DARK[light], light) if dark else (light, ON_DARK[light])
        assert ImageColor.getrgb(expected) in painted
        assert ImageColor.getrgb(other) not in painted


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the report is not printed")
def test_report_prints_completely(written, tmp_path):
    """Including the matrix of 100 classes, wider than paper, and the classes collapsed on screen."""
    subprocess.run(
        [
            str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--no-pdf-header-footer",
            f"--print-to-pdf={tmp_path / 'report.pdf'}", (written(page, 100) / "report.html").as_uri(),
        ],
        capture_output=True, timeout=300, check=True,
    )  # fmt: skip
    pdf = (tmp_path / "report.pdf").read_bytes()
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 10 <= pages <= 32, "75 collapsed classes take three pages"
