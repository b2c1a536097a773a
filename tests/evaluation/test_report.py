"""The report says what the figures say, to programs and to people, and trusts no name."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import csr_array
from tests.messages import mentions

from efficientnetv2.evaluation import report
from efficientnetv2.evaluation.html import TemplateSection
from efficientnetv2.evaluation.predictions import PairedDifference
from efficientnetv2.evaluation.reliability import reliability_section
from efficientnetv2.evaluation.report_metadata import ReportContext, ReportMetadata
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.confidence_intervals import Difference
from efficientnetv2.metrics.metric_intervals import bootstrap_intervals
from efficientnetv2.utils.random_key import Key

NAMES = ("forest", "pasture", "maize")
TRUE = [0] * 50 + [1] * 30 + [2] * 20
PREDICTED = [0] * 48 + [1] * 2 + [1] * 27 + [2] * 3 + [2] * 15 + [0] * 5


class _Page(HTMLParser):
    """What a browser would make of it: tags with attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags[-1:] != [("style", {})]:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


def _write(folder, *, true=TRUE, predicted=PREDICTED, names=NAMES, history=(), top_errors=(), beside=None, **facts):
    shown = classification_metrics(true, np.eye(len(names))[predicted], names)
    report.Report(
        metrics=shown,
        intervals=bootstrap_intervals(shown, key=Key.of(0), draws=200),
        metadata=ReportMetadata(**({"data": "examples/land", "evaluated_on": "val"} | facts)),
        history=history,
        errors=top_errors,
        context=beside or ReportContext(),
    ).write(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    return json.loads((folder / "report.json").read_text(encoding="utf-8")), _Page(html)


def _history(epochs=8):
    rows = []
    for epoch in range(epochs):
        setting = {"image_size": 128 + 16 * (epoch // 2), "dropout": 0.2, "randaugment": None, "images_per_s": 90.5}
        rows.append({"kind": "train", "epoch": epoch, "loss": 2 / (epoch + 1), "lr": 0.001, **setting})
        rows.append({"kind": "val", "epoch": epoch + 1, "top1": 0.1 * epoch, "macro_f1": 0.09 * epoch})
    return rows


def test_json_holds_the_figures_and_the_facts(tmp_path):
    """90 of 100 right, half of them forest."""
    told, page = _write(
        tmp_path, selected_on=None, wall_s=12.5, images_per_s=100.0, epochs=3, seed=7,
        versions={"torch": "2.15"}, extra={"protocol": "hold-out"}, data_wait_fraction=0.031,
    )  # fmt: skip
    assert told["top1"] == pytest.approx(0.9)
    assert told["majority_top1"] == 0.5
    assert told["per_class"]["maize"]["recall"] == pytest.approx(0.75)
    assert told["per_class"]["forest"]["support"] == 50
    assert told["confusion"] == [[48, 2, 0], [0, 27, 3], [5, 0, 15]]
    for name in ("top1", "macro_f1", "balanced_accuracy", "f1:maize"):
        low, high = told["intervals"][name]
        assert 0 <= low < high <= 1
    expected = {
        "evaluated_on": "val", "selected_on": None, "wall_s": 12.5, "images_per_s": 100.0, "epochs": 3,
        "seed": 7, "versions": {"torch": "2.15"}, "linear_probe_top1": None, "optimistic": False,
        "protocol": "hold-out",
    }  # fmt: skip
    assert {key: told[key] for key in expected} == expected
    assert told["data_wait_fraction"] == 0.031
    assert mentions(page.text, "3.1", "training")


def test_the_page_opens_with_how_good_on_what_against_what(tmp_path):
    told, page = _write(tmp_path)
    low, high = told["intervals"]["top1"]
    assert mentions(page.text[:150], "90", "100", "90.0", "val", "examples/land")
    assert mentions(page.text, f"{100 * low:.1f}", f"{100 * high:.1f}")
    assert mentions(page.text, "50.0", "class")
    assert "not clearly better" not in page.text


@pytest.mark.parametrize(
    ("facts", "optimistic"),
    [
        ({"selected_on": "val"}, True),
        ({"selected_on": "test"}, False),
        ({"selected_on": None}, False),
        ({"evaluated_on": "train"}, True),
        ({"evaluated_on": "train", "num_eval_images_seen_in_training": 100}, True),
        ({"evaluated_on": "train", "num_eval_images_seen_in_training": 0}, False),
    ],
)
def test_a_figure_of_the_pictures_that_chose_is_called_optimistic(tmp_path, facts, optimistic):
    told, page = _write(tmp_path, **facts)
    assert told["optimistic"] is optimistic
    assert ("optimistic" in page.text) is optimistic
    trained = facts.get("evaluated_on") == "train" and facts.get("num_eval_images_seen_in_training") != 0
    assert ("expected calibration error" not in page.text) is trained
    assert ("with images that trained it" in page.text) is trained


def test_a_network_no_better_than_the_majority_is_told_so(tmp_path):
    _, page = _write(tmp_path, predicted=[0] * 100)
    assert "not clearly better than that" in page.text


def test_what_the_galleries_show_is_not_shown_again(tmp_path):
    """And images that are nearly black are stretched, which is said."""
    shown = classification_metrics(TRUE, np.eye(3)[PREDICTED], NAMES)
    dark = np.zeros((8, 8, 3), np.uint8)
    dark[2:5] = 30
    mistakes = [report.Misclassification(f"{n}.jpg", "forest", "maize", 0.9, dark) for n in range(3)]
    gallery = {"galleries": [{"title": "The most surprising", "paths": ["1.jpg"]}]}
    section = TemplateSection("galleries.html.j2", {"galleries": (), "mapped": False, "stretched": None}, gallery)
    report.Report(
        metrics=shown,
        intervals=bootstrap_intervals(shown, key=Key.of(0), draws=20),
        metadata=ReportMetadata("x", "val"),
        errors=mistakes,
        sections=[section],
    ).write(tmp_path)
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Further confident errors" in page.text
    assert "contrast stretched" in page.text
    assert len(re.findall(r"\d\.jpg", page.text)) == 2
    addresses = [a["src"] for _, a in page.tags if a.get("src", "").startswith("data:image/jpeg")]
    seen = Image.open(io.BytesIO(base64.b64decode(addresses[0].partition(",")[2])))
    assert np.asarray(seen).max() > 200


def test_nothing_is_fetched_and_nothing_runs(tmp_path):
    """One file: no scripts, no handlers, every address a data address."""
    mistake = report.Misclassification("a.jpg", "forest", "maize", 0.9, np.zeros((5, 4, 3), np.uint8))
    _, page = _write(tmp_path, history=_history(), top_errors=[mistake])
    addresses = [a[k] for _, a in page.tags for k in ("src", "srcset", "data", "xlink:href") if k in a]
    assert len(addresses) == 2
    assert {a["href"][:1] for _, a in page.tags if "href" in a} == {"#"}
    assert all(address.startswith("data:image/") for address in addresses)
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "link", "form")]
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "url(" not in html
    assert "@import" not in html


def test_hostile_names_stay_text(tmp_path):
    bad = '</title></svg><script>alert("1")</script><img src=x onerror=alert(1)>{{ 7 * 7 }}$\\frac$'
    mistake = report.Misclassification(bad + ".jpg", bad, "森林", 0.9)
    _, page = _write(
        tmp_path, names=(bad, "森林", "x" * 300), top_errors=[mistake], data=bad, evaluated_on=bad,
        command=bad, auto_choices=(bad,), notes=(bad,), model=bad, versions={bad: bad}, recipe={bad: [bad]},
        history=_history(),
    )  # fmt: skip
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [a for tag, a in page.tags if tag == "img" and not a["src"].startswith("data:")]
    assert page.text.count("{{ 7 * 7 }}") > 10
    assert "森林" in page.text


def test_file_names_that_are_no_unicode_are_written_and_read_back(tmp_path):
    path = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    told, page = _write(tmp_path, top_errors=[report.Misclassification(path, "forest", "maize", 0.9)])
    assert told["top_errors"][0]["path"] == path
    assert r"caf\udce9.jpg" in page.text


def test_numbers_that_are_none_in_json(tmp_path):
    told, _ = _write(tmp_path, extra={"a": float("nan"), "b": np.float32(0.5), "c": (1, np.int64(2)), "d": tmp_path})
    assert (told["a"], told["b"], told["c"], told["d"]) == (None, 0.5, [1, 2], str(tmp_path))


def test_classes_the_weakest_first_and_those_without_pictures_named(tmp_path):
    told, page = _write(tmp_path, names=(*NAMES, "orchard"))
    table = page.text[page.text.index("the harmonic mean") :]
    assert table.index("maize") < table.index("pasture") < table.index("forest") < table.index("orchard")
    assert "because there is no image: orchard" in table
    assert told["per_class"]["orchard"] == {"precision": None, "recall": None, "f1": None, "support": 0}


@pytest.mark.parametrize(("classes", "labels", "counts"), [(3, 6, 3), (12, 24, 12), (100, 200, 0), (300, 0, 0)])
def test_the_matrix_is_labelled_as_far_as_labels_fit(tmp_path, classes, labels, counts):
    every = list(range(classes))
    _, page = _write(tmp_path, true=every, predicted=every, names=[f"class {k}" for k in every])
    inside = [tag for tag, _ in page.tags[[tag for tag, _ in page.tags].index("svg") :]]
    assert inside.count("text") == labels + counts + 2, "and the titles of both axes"
    assert inside.count("rect") == 1 + classes
    assert [a for _, a in page.tags if a.get("class") == "wrong"] == []


def _of_many_classes(folder, classes, cells):
    """A report whose confusion matrix has so many cells that are not empty, the diagonal among them."""
    rng, every = np.random.default_rng(0), np.arange(classes)
    names = [f"class {k}" for k in every]
    shown = classification_metrics(every, np.eye(classes, dtype=np.float32), names)
    confusion = np.diag(np.full(classes, 9))
    confusion.flat[rng.permutation(classes**2)[:cells]] += 1
    shown = replace(shown, confusion=csr_array(confusion).tocoo())
    intervals = bootstrap_intervals(shown, key=Key.of(0), draws=2)
    report.Report(metrics=shown, intervals=intervals, metadata=ReportMetadata("x", "val")).write(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    return shown, json.loads((folder / "report.json").read_text(encoding="utf-8")), html


def test_a_thousand_classes_and_a_mistake_in_every_cell_fit_on_the_page(tmp_path):
    """Fuller cells go before emptier ones, and it is said how many are not drawn."""
    shown, told, html = _of_many_classes(tmp_path, 1000, 60_000)
    assert len(html) < 3_000_000
    filled = shown.confusion.nnz
    assert html.count("<rect x=") == 50_000
    assert mentions(html, f"{filled - 50000:,}", "cells")
    assert html[html.index('<g class="right"') :].count('x="999" y="999"') == 1
    assert told["confusion"] == shown.confusion.toarray().tolist()


def test_of_thousands_of_classes_the_weakest_are_listed_and_the_matrix_is_kept_as_its_cells(tmp_path):
    """A matrix of 10,000 classes would be 300 MB of JSON."""
    shown, told, html = _of_many_classes(tmp_path, 2500, 5_000)
    assert "<summary>The next 1,975 classes</summary>" in html
    assert mentions(html, "500", "report.json")
    assert len(told["per_class"]) == 2500
    assert "confusion" not in told
    rows, columns, counts = np.array(told["confusion_cells"]).T
    again = np.zeros((2500, 2500), np.int64)
    again[rows, columns] = counts
    assert (again == shown.confusion.toarray()).all()


def test_most_frequent_mistakes_are_counted(tmp_path):
    true = [0] * 10 + [1] * 10 + [2] * 5 + [3] * 5
    predicted = [0] * 6 + [1] * 4 + [1] * 9 + [3] * 1 + [2] * 5 + [3] * 5
    _, page = _write(tmp_path, true=true, predicted=predicted, names=("a", "b", "c", "d"))
    table = page.text[page.text.index("Most frequent confusions") : page.text.index("the harmonic mean")]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    listed = html[html.index("Most frequent confusions") : html.index("the harmonic mean")]
    assert re.findall(r'data-of="images">(\d+)<', listed) == ["4", "1"]
    assert "40.0 %" in table
    assert table.index("40.0 %") < table.index("10.0 %")
    assert table.count("%") == 2


def test_the_surest_mistakes_come_first():
    shares = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.05, 0.95], [0.3, 0.7]])
    assert report.most_confident_errors([0, 0, 0, 1, 0], shares).tolist() == [1, 4, 2]
    assert report.most_confident_errors([0, 0, 0, 1, 0], shares, most=1).tolist() == [1]
    assert report.most_confident_errors([0], shares[:1]).tolist() == []


def test_confident_errors_are_called_wrong_labels_only_where_the_model_is_mostly_right(tmp_path):
    """Of 100 at 95 % each: 3 wrong are suspect labels, 42 wrong are errors of the model."""
    said = {}
    for wrong in (3, 42):
        labels = 1 * (np.arange(100) < wrong)
        shares = np.tile([0.95, 0.05], (100, 1))
        shown = classification_metrics(labels, shares, ("a", "b"))
        report.Report(
            metrics=shown,
            intervals=bootstrap_intervals(shown, key=Key.of(0), draws=20),
            metadata=ReportMetadata("x", "val"),
            errors=[report.Misclassification("1.jpg", "b", "a", 0.95)],
            sections=[reliability_section(labels, shares)],
        ).write(tmp_path)
        said[wrong] = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert mentions(said[3], "3", "label", "image")
    assert "more probable here than wrong labels" in said[42]
    assert "contradict" not in said[42]


def test_classes_that_the_probe_does_better_are_marked(tmp_path):
    even, below = Difference(0.0, -0.1, 0.1), Difference(-0.2, -0.3, -0.1)
    each = {"forest": even, "pasture": Difference(-0.1, -0.2, 0.1), "maize": below}
    facts = {"linear_probe_f1": dict.fromkeys(NAMES, 0.9)}
    _, page = _write(tmp_path, beside=ReportContext(probe=PairedDifference(100, even, even, even, each)), **facts)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("model lower") == 2
    assert html.count('class="flag">model lower') == 1, "the one beyond chance"
    assert mentions(page.text, "2 classes", "linear probe")


def test_the_matrix_has_shares_and_titles_of_both_axes(tmp_path):
    _, page = _write(tmp_path)
    assert "Predicted class" in page.text
    assert "True class" in page.text
    assert "4896\N{NO-BREAK SPACE}%" in "".join(page.texts), "48 of 50 forests"


def test_the_contents_lead_to_every_section_and_to_the_other_files(tmp_path):
    shown = classification_metrics(TRUE, np.eye(3)[PREDICTED], NAMES)
    report.Report(
        metrics=shown,
        intervals=bootstrap_intervals(shown, key=Key.of(0), draws=20),
        metadata=ReportMetadata("x", "val", auto_choices=["Network: b0."]),
        errors=[report.Misclassification("a/1.jpg", "forest", "maize", 0.9)],
        links={"Predictions (CSV)": "predictions.csv"},
        images={"a/1.jpg": "../a/1.jpg"},
    ).write(tmp_path)
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    addresses = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    inner = {address[1:] for address in addresses if address.startswith("#")}
    assert inner <= ids
    assert {"confusion-matrix", "per-class-metrics", "limitations", "inference"} <= inner
    assert {"predictions.csv", "../a/1.jpg"} <= set(addresses)


def test_how_to_use_the_model_is_told_for_the_shell_and_for_python(tmp_path):
    _, page = _write(tmp_path, extra={"run": "runs/a"})
    assert mentions(page.text, "effnetv2 predict runs/a IMAGES")
    assert 'ev2.Predictor("runs/a")' in page.text
    _, page = _write(tmp_path, extra={"run": "runs\\new"})  # as Windows writes it
    assert r'ev2.Predictor("runs\\new")' in page.text


def test_identical_images_with_different_labels_are_in_the_report(tmp_path):
    told, page = _write(
        tmp_path, label_conflicts=1, check_notes=["Identical pictures carry different labels: 'a' and 'b'."]
    )
    assert mentions(page.text, "'a'", "'b'")
    assert told["label_conflicts"] == 1


def test_thumbnails_are_small_whatever_is_given(tmp_path):
    huge = Image.new("RGBA", (3000, 1500), "red")
    gray = np.full((50, 60), 128, np.uint8)
    mistakes = [report.Misclassification("a", "forest", "maize", 0.9, picture) for picture in (huge, gray)]
    _write(tmp_path, top_errors=mistakes)
    assert (tmp_path / "report.html").stat().st_size < 40_000
    assert huge.size == (3000, 1500)


def test_a_report_without_history_or_facts_is_whole(tmp_path):
    _, page = _write(tmp_path)
    assert "Training curves" not in page.text
    assert "None" not in page.text
    assert "Automatic choices" not in page.text
    assert "probabilities reliable" not in page.text


def test_times_and_settings_in_words(tmp_path):
    _, page = _write(tmp_path, history=_history(), wall_s=3725.0, num_skipped=1)
    assert "1 h 02 min" in page.text
    assert mentions(page.text, "1", "read")
    assert mentions(page.text, "0.2", "0.001", "90.5")


@pytest.mark.parametrize(
    ("probe", "macro_f1", "said"),
    [
        (0.92, 0.95, r"has not beaten the linear probe in top-1 \(90.0 % against 92.0 %\) or macro-F1 \("),
        (0.92, 0.5, r"in top-1 \(90.0 % against 92.0 %\)\."),
        (0.5, 0.95, r"in macro-F1 \(.{4,6} against 95.0 %\)\."),
        (0.9, 0.5, r"has not beaten the linear probe in top-1 \(90.0 % against 90.0 %\)"),  # as good is not beaten
        (0.8, 0.8, None),
    ],
)
def test_the_page_opens_with_a_probe_that_training_has_not_beaten(probe, macro_f1, said, tmp_path):
    """Top-1 is 0.90. The two figures may disagree: the sentence is true of each."""
    told, page = _write(tmp_path, linear_probe_top1=probe, linear_probe_macro_f1=macro_f1)
    assert told["linear_probe_top1"] == probe
    if said is None:
        assert "has not beaten" not in page.text
    else:
        assert page.text.find("Training has not beaten") in range(50)
        assert re.search(said, page.text)


@pytest.mark.parametrize(("pictures", "fewer"), [(60, True), (100, False)])
def test_of_a_probe_that_answered_fewer_pictures_its_figures_say_so(pictures, fewer, tmp_path):
    """Next to the network's, which are of all 100: its tile, and the head and the cells of its column."""
    even = Difference(0.0, -0.1, 0.1)
    beside = ReportContext(probe=PairedDifference(pictures, even, even, even, {}))
    probe = {"linear_probe_top1": 0.8, "linear_probe_macro_f1": 0.8, "linear_probe_f1": {"forest": 0.7}}
    _, page = _write(tmp_path, beside=beside, **probe)
    cells = [tag["data-of"] for _, tag in page.tags if "probe" in tag.get("data-of", "")]
    assert (page.text.count("on 60 of these images") == 2) is fewer
    assert set(cells) == {"probe’s F1, on 60 of these images" if fewer else "probe’s F1"}


def test_what_each_stage_cost_is_shown(tmp_path):
    """Two stages of 8 s and 80 s, a quarter of each spent waiting."""
    rows = []
    for step, (px, seconds) in enumerate([(64, 8.0), (128, 80.0)], start=1):
        row = {"step": step, "epoch": step}
        rows.append(row | {"kind": "train", "image_size": px, "loss": 1.0, "images_per_s": 64 / seconds}
                    | {"train_s": seconds, "data_wait_s": seconds / 4})  # fmt: skip
        rows.append(row | {"kind": "val", "top1": 0.3 * step, "macro_f1": 0.3})
    _, page = _write(tmp_path, history=rows)
    assert mentions(page.text, "training time", "stage")
    assert "1: 64 px18 s825.0\N{NO-BREAK SPACE}%30.0\N{NO-BREAK SPACE}%" in "".join(page.texts).replace("\n", "")
    assert "2: 128 px11 min 20 s125.0\N{NO-BREAK SPACE}%60.0\N{NO-BREAK SPACE}%" in "".join(page.texts).replace(
        "\n", ""
    )
    drawn = [a.get("alt", "") for tag, a in page.tags if tag == "img"]
    assert [text for text in drawn if "Seconds of each stage" in text or "against the time" in text] == [
        "Seconds of each stage, with the time spent waiting for images",
        "Validation top-1 against the time spent on training",
    ]
    assert all(a["src"].startswith("data:image/") for tag, a in page.tags if tag == "img")


def test_a_run_without_stages_shows_none(tmp_path):
    _, page = _write(tmp_path, history=_history())
    assert "Training time by stage" not in page.text
    assert "Evaluation image size" not in page.text
