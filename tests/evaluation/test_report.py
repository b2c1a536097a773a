"""The report as JSON and HTML: complete, self-contained and safe for any names."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import csr_array
from tests.messages import mentions

from efficientnetv2.data.config import default_check_dir
from efficientnetv2.evaluation import evaluation_result, report
from efficientnetv2.evaluation.calibration_section import calibration_section
from efficientnetv2.evaluation.distribution_shift import TrainDistance, hold_out_estimate
from efficientnetv2.evaluation.html import TemplateSection
from efficientnetv2.evaluation.predictions import PairedDifference
from efficientnetv2.evaluation.report_metadata import ReportContext, ReportMetadata
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.confidence_intervals import Difference
from efficientnetv2.metrics.metric_intervals import bootstrap_intervals
from efficientnetv2.metrics.multilabel import compute_metrics
from efficientnetv2.utils.random_key import Key

NAMES = ("forest", "pasture", "maize")
TRUE = [0] * 50 + [1] * 30 + [2] * 20
PREDICTED = [0] * 48 + [1] * 2 + [1] * 27 + [2] * 3 + [2] * 15 + [0] * 5


class _Page(HTMLParser):
    """The tags with attributes and the text, as a browser parses them."""

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


PARTS = ("history", "errors", "sections", "context", "links", "images")


def _write(folder, *, true=TRUE, predicted=PREDICTED, names=NAMES, metrics=None, **fields):
    """Write a report with these parts and metadata; its JSON and its page."""
    parts = {name: fields.pop(name) for name in PARTS if name in fields}
    metrics = metrics or classification_metrics(true, np.eye(len(names))[predicted], names)
    metadata = ReportMetadata(**({"data": "examples/land", "evaluated_on": "val"} | fields))
    intervals = bootstrap_intervals(metrics, key=Key.of(0), draws=200)
    report.Report(metrics=metrics, intervals=intervals, metadata=metadata, **parts).write(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    return json.loads((folder / "report.json").read_text(encoding="utf-8")), _Page(html)


def _history(epochs=8):
    rows = []
    for epoch in range(epochs):
        values = {"image_size": 128 + 16 * (epoch // 2), "dropout": 0.2, "randaugment": None, "images_per_s": 90.5}
        rows.append({"kind": "train", "epoch": epoch, "loss": 2 / (epoch + 1), "lr": 0.001, **values})
        rows.append({"kind": "val", "epoch": epoch + 1, "top1": 0.1 * epoch, "macro_f1": 0.09 * epoch})
    return rows


def test_json_has_the_metrics_and_the_metadata(tmp_path):
    """90 of 100 are right; half of all images are forest."""
    saved, page = _write(
        tmp_path, selected_on=None, wall_s=12.5, images_per_s=100.0, epochs=3, seed=7,
        versions={"torch": "2.15"}, extra={"protocol": "hold-out"}, data_wait_fraction=0.031,
    )  # fmt: skip
    assert saved["top1"] == pytest.approx(0.9)
    assert saved["majority_top1"] == 0.5
    assert saved["per_class"]["maize"]["recall"] == pytest.approx(0.75)
    assert saved["per_class"]["forest"]["support"] == 50
    assert saved["confusion"] == [[48, 2, 0], [0, 27, 3], [5, 0, 15]]
    for name in ("top1", "macro_f1", "balanced_accuracy", "f1:maize"):
        low, high = saved["intervals"][name]
        assert 0 <= low < high <= 1
    expected = {
        "evaluated_on": "val", "selected_on": None, "wall_s": 12.5, "images_per_s": 100.0, "epochs": 3,
        "seed": 7, "versions": {"torch": "2.15"}, "linear_probe_top1": None, "optimistic": False,
        "protocol": "hold-out",
    }  # fmt: skip
    assert {key: saved[key] for key in expected} == expected
    assert saved["data_wait_fraction"] == 0.031
    assert mentions(page.text, "3.1", "training")


def test_page_starts_with_the_metrics_intervals_and_baseline(tmp_path):
    saved, page = _write(tmp_path)
    low, high = saved["intervals"]["top1"]
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
def test_metrics_of_selection_images_are_optimistic(tmp_path, facts, optimistic):
    saved, page = _write(tmp_path, **facts)
    assert saved["optimistic"] is optimistic
    assert ("optimistic" in page.text) is optimistic
    on_training_images = facts.get("evaluated_on") == "train" and facts.get("num_eval_images_seen_in_training") != 0
    assert ("expected calibration error" not in page.text) is on_training_images
    assert ("with images that trained it" in page.text) is on_training_images


def test_model_no_better_than_the_majority_is_reported(tmp_path):
    _, page = _write(tmp_path, predicted=[0] * 100)
    assert "not clearly better than that" in page.text


def test_images_of_the_galleries_are_not_repeated(tmp_path):
    """Nearly black images are stretched, with a note."""
    dark = np.zeros((8, 8, 3), np.uint8)
    dark[2:5] = 30
    errors = [report.Misclassification(f"{n}.jpg", "forest", "maize", 0.9, dark) for n in range(3)]
    gallery = {"galleries": [{"title": "The most surprising", "paths": ["1.jpg"]}]}
    section = TemplateSection("galleries.html.j2", {"galleries": (), "mapped": False, "stretched": None}, gallery)
    _, page = _write(tmp_path, errors=errors, sections=[section])
    assert "Further confident errors" in page.text
    assert "contrast stretched" in page.text
    assert len(re.findall(r"\d\.jpg", page.text)) == 2
    addresses = [a["src"] for _, a in page.tags if a.get("src", "").startswith("data:image/jpeg")]
    thumbnail = Image.open(io.BytesIO(base64.b64decode(addresses[0].partition(",")[2])))
    assert np.asarray(thumbnail).max() > 200


def test_page_has_no_scripts_and_no_external_addresses(tmp_path):
    """One file: no scripts, no handlers, every address a data address."""
    error = report.Misclassification("a.jpg", "forest", "maize", 0.9, np.zeros((5, 4, 3), np.uint8))
    _, page = _write(tmp_path, history=_history(), errors=[error])
    addresses = [a[k] for _, a in page.tags for k in ("src", "srcset", "data", "xlink:href") if k in a]
    assert len(addresses) == 2
    assert {a["href"][:1] for _, a in page.tags if "href" in a} == {"#"}
    assert all(address.startswith("data:image/") for address in addresses)
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "link", "form")]
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "url(" not in html
    assert "@import" not in html


def test_names_are_escaped(tmp_path):
    bad = '</title></svg><script>alert("1")</script><img src=x onerror=alert(1)>{{ 7 * 7 }}$\\frac$'
    error = report.Misclassification(bad + ".jpg", bad, "森林", 0.9)
    _, page = _write(
        tmp_path, names=(bad, "森林", "x" * 300), errors=[error], data=bad, evaluated_on=bad,
        command=bad, auto_choices=(bad,), notes=(bad,), model=bad, versions={bad: bad}, recipe={bad: [bad]},
        history=_history(),
    )  # fmt: skip
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [a for tag, a in page.tags if tag == "img" and not a["src"].startswith("data:")]
    assert page.text.count("{{ 7 * 7 }}") > 10
    assert "森林" in page.text


def test_non_unicode_file_names_are_written_and_read_back(tmp_path):
    path = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    saved, page = _write(tmp_path, errors=[report.Misclassification(path, "forest", "maize", 0.9)])
    assert saved["top_errors"][0]["path"] == path
    assert r"caf\udce9.jpg" in page.text


def test_nan_and_numpy_values_are_valid_json(tmp_path):
    saved, _ = _write(tmp_path, extra={"a": float("nan"), "b": np.float32(0.5), "c": (1, np.int64(2)), "d": tmp_path})
    assert (saved["a"], saved["b"], saved["c"], saved["d"]) == (None, 0.5, [1, 2], str(tmp_path))


def test_classes_are_sorted_by_f1_and_empty_classes_are_listed(tmp_path):
    saved, page = _write(tmp_path, names=(*NAMES, "orchard"))
    table = page.text[page.text.index("the harmonic mean") :]
    assert table.index("maize") < table.index("pasture") < table.index("forest") < table.index("orchard")
    assert "because there is no image: orchard" in table
    assert saved["per_class"]["orchard"] == {"precision": None, "recall": None, "f1": None, "support": 0}


@pytest.mark.parametrize(("classes", "labels", "counts"), [(3, 6, 3), (12, 24, 12), (100, 200, 0), (300, 0, 0)])
def test_matrix_labels_fit_the_number_of_classes(tmp_path, classes, labels, counts):
    ids = list(range(classes))
    _, page = _write(tmp_path, true=ids, predicted=ids, names=[f"class {k}" for k in ids])
    inside = [tag for tag, _ in page.tags[[tag for tag, _ in page.tags].index("svg") :]]
    assert inside.count("text") == labels + counts + 2, "with the titles of both axes"
    assert inside.count("rect") == 1 + classes
    assert [a for _, a in page.tags if a.get("class") == "wrong"] == []


def _of_many_classes(folder, classes, cells):
    """A report with this number of non-empty cells in its confusion matrix, in addition to the diagonal."""
    rng, ids = np.random.default_rng(0), np.arange(classes)
    names = [f"class {k}" for k in ids]
    metrics = classification_metrics(ids, np.eye(classes, dtype=np.float32), names)
    confusion = np.diag(np.full(classes, 9))
    confusion.flat[rng.permutation(classes**2)[:cells]] += 1
    metrics = replace(metrics, confusion=csr_array(confusion).tocoo())
    intervals = bootstrap_intervals(metrics, key=Key.of(0), draws=2)
    report.Report(metrics=metrics, intervals=intervals, metadata=ReportMetadata("x", "val")).write(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    return metrics, json.loads((folder / "report.json").read_text(encoding="utf-8")), html


def test_matrix_of_a_thousand_classes_fits_on_the_page(tmp_path):
    """The largest cells are drawn, and the number of the others is reported."""
    metrics, saved, html = _of_many_classes(tmp_path, 1000, 60_000)
    assert len(html) < 3_000_000
    num_cells = metrics.confusion.nnz
    assert html.count("<rect x=") == 50_000
    assert mentions(html, f"{num_cells - 50000:,}", "cells")
    assert html[html.index('<g class="right"') :].count('x="999" y="999"') == 1
    assert saved["confusion"] == metrics.confusion.toarray().tolist()


def test_thousands_of_classes_list_the_weakest_and_save_matrix_cells(tmp_path):
    """A matrix of 10,000 classes would be 300 MB of JSON."""
    metrics, saved, html = _of_many_classes(tmp_path, 2500, 5_000)
    assert "<summary>The next 1,975 classes</summary>" in html
    assert mentions(html, "500", "report.json")
    assert len(saved["per_class"]) == 2500
    assert "confusion" not in saved
    rows, columns, counts = np.array(saved["confusion_cells"]).T
    confusion = np.zeros((2500, 2500), np.int64)
    confusion[rows, columns] = counts
    assert (confusion == metrics.confusion.toarray()).all()


def test_most_frequent_confusions_are_counted(tmp_path):
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


def test_most_confident_errors_come_first():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.05, 0.95], [0.3, 0.7]])
    assert report.most_confident_errors([0, 0, 0, 1, 0], probabilities).tolist() == [1, 4, 2]
    assert report.most_confident_errors([0, 0, 0, 1, 0], probabilities, most=1).tolist() == [1]
    assert report.most_confident_errors([0], probabilities[:1]).tolist() == []


def test_confident_errors_are_label_errors_only_in_an_accurate_model(tmp_path):
    """At 95 % confidence: 3 errors of 100 are suspect labels, 42 are errors of the model."""
    text = {}
    for wrong in (3, 42):
        labels = 1 * (np.arange(100) < wrong)
        probabilities = np.tile([0.95, 0.05], (100, 1))
        metrics = classification_metrics(labels, probabilities, ("a", "b"))
        errors = [report.Misclassification("1.jpg", "b", "a", 0.95)]
        sections = [calibration_section(labels, probabilities)]
        text[wrong] = _write(tmp_path, metrics=metrics, errors=errors, sections=sections)[1].text
    assert mentions(text[3], "3", "label", "image")
    assert "more probable here than wrong labels" in text[42]
    assert "contradict" not in text[42]


def test_classes_with_a_better_probe_are_marked(tmp_path):
    equal, below = Difference(0.0, -0.1, 0.1), Difference(-0.2, -0.3, -0.1)
    per_class = {"forest": equal, "pasture": Difference(-0.1, -0.2, 0.1), "maize": below}
    facts = {"linear_probe_f1": dict.fromkeys(NAMES, 0.9)}
    _, page = _write(
        tmp_path, context=ReportContext(probe=PairedDifference(100, equal, equal, equal, per_class)), **facts
    )
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("model lower") == 2
    assert html.count('class="flag">model lower') == 1, "the significant difference"
    assert mentions(page.text, "2 classes", "linear probe")


def test_matrix_has_percentages_and_axis_titles(tmp_path):
    _, page = _write(tmp_path)
    assert "Predicted class" in page.text
    assert "True class" in page.text
    assert "4896\N{NO-BREAK SPACE}%" in "".join(page.texts), "48 of 50 forests"


@pytest.mark.parametrize(("checked", "is_linked"), [("a/images.csv", True), ("b/images.csv", False)])
def test_check_of_another_dataset_of_the_same_name_is_not_linked(checked, is_linked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = default_check_dir("a/images.csv")
    folder.mkdir(parents=True)
    (folder / "inspection.html").touch()
    (folder / "inspection.json").write_text(json.dumps({"data": checked}))
    assert ("Dataset check" in evaluation_result._links(tmp_path, "a/images.csv")) == is_linked


def test_links_lead_to_sections_and_files(tmp_path):
    _, page = _write(
        tmp_path, auto_choices=["Model: b0."], errors=[report.Misclassification("a/1.jpg", "forest", "maize", 0.9)],
        links={"Predictions (CSV)": "predictions.csv"}, images={"a/1.jpg": "../a/1.jpg"},
    )  # fmt: skip
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    inner = {address[1:] for address in links if address.startswith("#")}
    assert inner <= ids
    assert {"confusion-matrix", "per-class-metrics", "limitations", "inference"} <= inner
    assert {"predictions.csv", "../a/1.jpg"} <= set(links)


def test_page_shows_how_to_use_the_model(tmp_path):
    _, page = _write(tmp_path, extra={"run": "runs/a"})
    assert mentions(page.text, "effnetv2 predict runs/a IMAGES")
    assert 'ev2.Predictor("runs/a")' in page.text
    command = "effnetv2 evaluate runs/a test.csv --tta d4 --label-separator ';'"
    _, page = _write(tmp_path, model="runs/a", command=command, tta="d4")
    assert 'ev2.predict("runs/a", "IMAGES", tta="d4", label_separator=";")' in page.text, "as the command"
    _, page = _write(tmp_path, extra={"run": "runs\\new"})  # as Windows writes it
    assert r'ev2.Predictor("runs\\new")' in page.text


def test_suggested_cross_validation_reads_the_same_data(tmp_path):
    command = "effnetv2 train my.csv --label-column diagnosis --group-column patient --epochs 3"
    command += " --min-images-per-class 5"
    context = ReportContext(new_places=hold_out_estimate(TrainDistance("group", 40, 40)))
    _, page = _write(tmp_path, data="my.csv", command=command, num_train_images=60, context=context)
    suggested = (
        "effnetv2 crossval my.csv --label-column diagnosis --group-column patient --min-images-per-class 5 --by group"
    )
    assert suggested in page.text


def test_label_conflicts_are_reported(tmp_path):
    saved, page = _write(
        tmp_path, label_conflicts=1, check_notes=["Identical images have different labels: 'a' and 'b'."]
    )
    assert mentions(page.text, "'a'", "'b'")
    assert saved["label_conflicts"] == 1


def test_thumbnails_are_small(tmp_path):
    huge = Image.new("RGBA", (3000, 1500), "red")
    gray = np.full((50, 60), 128, np.uint8)
    errors = [report.Misclassification("a", "forest", "maize", 0.9, image) for image in (huge, gray)]
    _write(tmp_path, errors=errors)
    assert (tmp_path / "report.html").stat().st_size < 40_000
    assert huge.size == (3000, 1500)


def test_report_without_history_or_metadata_is_complete(tmp_path):
    _, page = _write(tmp_path)
    assert "Training curves" not in page.text
    assert "None" not in page.text
    assert "Automatic choices" not in page.text
    assert "probabilities reliable" not in page.text


def test_durations_and_hyperparameters_are_formatted(tmp_path):
    _, page = _write(tmp_path, history=_history(), wall_s=3725.0, num_skipped=1)
    assert "1 h 02 min" in page.text
    assert mentions(page.text, "1", "read")
    assert mentions(page.text, "0.2", "0.001", "90.5")


@pytest.mark.parametrize(
    ("probe", "macro_f1", "warning"),
    [
        (0.92, 0.95, r"has not beaten the linear probe in top-1 \(90.0 % against 92.0 %\) or macro-F1 \("),
        (0.92, 0.5, r"in top-1 \(90.0 % against 92.0 %\)\."),
        (0.5, 0.95, r"in macro-F1 \(.{4,6} against 95.0 %\)\."),
        (0.9, 0.5, r"has not beaten the linear probe in top-1 \(90.0 % against 90.0 %\)"),  # equal is not better
        (0.8, 0.8, None),
    ],
)
def test_page_starts_with_a_probe_that_is_as_good(probe, macro_f1, warning, tmp_path):
    """Top-1 is 0.90. Top-1 and macro-F1 may disagree."""
    saved, page = _write(tmp_path, linear_probe_top1=probe, linear_probe_macro_f1=macro_f1)
    assert saved["linear_probe_top1"] == probe
    if warning is None:
        assert "has not beaten" not in page.text
    else:
        assert page.text.find("Training has not beaten") in range(50)
        assert re.search(warning, page.text)


@pytest.mark.parametrize(("num_images", "fewer"), [(60, True), (100, False)])
def test_probe_of_fewer_images_is_marked(num_images, fewer, tmp_path):
    """In its tile and in its column, because the metrics of the model are of all 100 images."""
    equal = Difference(0.0, -0.1, 0.1)
    context = ReportContext(probe=PairedDifference(num_images, equal, equal, equal, {}))
    probe = {"linear_probe_top1": 0.8, "linear_probe_macro_f1": 0.8, "linear_probe_f1": {"forest": 0.7}}
    _, page = _write(tmp_path, context=context, **probe)
    cells = [tag["data-of"] for _, tag in page.tags if "probe" in tag.get("data-of", "")]
    assert (page.text.count("on 60 of these images") == 2) is fewer
    assert set(cells) == {"probe’s F1, on 60 of these images" if fewer else "probe’s F1"}


def test_costs_of_each_stage_are_shown(tmp_path):
    """Two stages of 8 s and 80 s, with a quarter of each waiting."""
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


def test_run_without_stages_shows_no_costs(tmp_path):
    _, page = _write(tmp_path, history=_history())
    assert "Training time by stage" not in page.text
    assert "Evaluation image size" not in page.text


@pytest.mark.parametrize(
    ("least", "shown"), [(0.9121, "0.913"), (0.99973, "0.9998"), (0.9999996, "0.9999996"), (1.0, "1")]
)
def test_recommended_threshold_is_reached_by_the_predictions_it_was_measured_on(least, shown):
    """Rounded up to 1, it would leave nearly every label empty."""
    metrics, facts = SimpleNamespace(top1=0.9), ReportMetadata("x", "val", model="M")
    found = report._usage(metrics, facts, [{"target": 0.99, "threshold": least}])
    assert found["abstain"]["command"].endswith(f"--abstain-below {shown}")
    facts = replace(facts, command="effnetv2 evaluate M x --image-size=96")
    found = report._usage(metrics, facts, [{"target": 0.99, "threshold": least}])
    assert found["abstain"] is None, "predict has another size, and other probabilities"


def test_threshold_is_not_recommended_for_several_labels():
    """It is of the most probable label, but the command writes all of them."""
    labels, probabilities = np.array([[0, -1], [1, -1], [2, -1]]), np.full((3, 3), 0.4)
    metrics = compute_metrics(labels, probabilities, ["a", "b", "c"], "sigmoid")
    facts = ReportMetadata("x", "val", model="M")
    assert report._usage(metrics, facts, [{"target": 0.99, "threshold": 0.9}])["abstain"] is None


def test_threshold_of_a_cross_validation_is_not_recommended_for_its_ensemble():
    """It was measured on each model alone; together they have other probabilities."""
    metrics, targets = SimpleNamespace(top1=0.9), [{"target": 0.99, "threshold": 0.9}]
    facts = ReportMetadata("x", "out-of-fold", extra={"run": "folds"})
    assert report._usage(metrics, facts, targets)["abstain"] is None
    alone = replace(facts, extra={"run": "folds", "model_for_new_images": "folds/fold_0"})
    assert "folds/fold_0" in report._usage(metrics, alone, targets)["abstain"]["command"]


def test_confusions_have_the_true_class_first(tmp_path):
    """Four oaks are predicted as elm: row 0, column 1, in the list and in the matrix."""
    true, predicted = [0] * 10 + [1] * 10 + [2, 3], [0] * 6 + [1] * 14 + [2, 3]
    _write(tmp_path, true=true, predicted=predicted, names=("oak", "elm", "ash", "fir"))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "oak, predicted as elm: 4" in html
    assert "elm, predicted as oak" not in html
    ((x, y),) = re.findall(r'<rect class="wrong" x="([\d.]+)" y="([\d.]+)"', html)
    assert float(x) > float(y) == 0
    rows = html[html.index("Most frequent confusions") :].partition("<tbody>")[2].partition("</tbody>")[0]
    assert re.findall("<bdi>(.*?)</bdi>", rows) == ["oak", "elm"]
