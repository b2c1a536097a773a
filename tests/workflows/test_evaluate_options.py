"""Options of ``evaluate``: comparison of image sizes, and the file of costs."""

from __future__ import annotations

import json
import re
import unicodedata

import pandas as pd
import pytest
from tests.command_line import TINY, effnetv2
from tests.conftest import COLORS, paint
from tests.messages import mentioning, mentions
from tests.pages import documented_keys

from efficientnetv2.evaluation.run_comparison import FinishedRun
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.evaluate_options import parse_sizes, read_cost_matrix


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run with some wrong predictions, and its images."""
    place = tmp_path_factory.mktemp("sized")
    for name, color in COLORS.items():
        for number in range(16):
            paint(place / "pictures" / name / f"{name}_{number:02d}.jpg", color, number)
    args = ("train", place / "pictures", *TINY, "--epochs", "3", "--weights", "none", "--output", place / "run")
    done = effnetv2(*args, cwd=place)
    assert done.returncode == 0, done.stderr
    dataset = pd.read_csv(place / "run" / "dataset.csv")
    for split, rows in dataset.groupby("split"):
        rows.assign(path=[str(place / "pictures" / path) for path in rows["path"]])[["path", "label"]].to_csv(
            place / f"{split}.csv", index=False
        )
    return place


def _json(*words, cwd):
    done = effnetv2(*words, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_size_equals_an_evaluation_at_that_size(trained, tmp_path):
    args = ("evaluate", trained / "run", trained / "val.csv")
    output = _json(*args, "--eval-sizes", "96,64,32", "--output", tmp_path / "sizes", cwd=tmp_path)
    assert [point["image_size"] for point in output["sizes"]] == [32, 64, 96]
    assert output["image_size"] == 64
    assert output["top1"] == output["sizes"][1]["top1"], "the figure is that of the model file's size"
    for point in output["sizes"]:
        alone = _json(*args, "--image-size", str(point["image_size"]), cwd=tmp_path)
        assert alone["image_size"] == point["image_size"]
        assert (alone["top1"], alone["macro_f1"]) == (point["top1"], point["macro_f1"])
        assert [point["low"], point["high"]] == alone["intervals"]["top1"]
        assert "sizes" not in alone
    page = (tmp_path / "sizes" / "report.html").read_text()
    assert mentions(page, "image size")
    assert mentions(page, "64", "training")
    assert "Choose it on training images" in page
    assert json.loads((tmp_path / "sizes" / "report.json").read_text())["sizes"] == output["sizes"]


def test_size_of_the_model_is_compared_too(trained, tmp_path):
    output = _json("evaluate", trained / "run", trained / "val.csv", "--eval-sizes", "96", cwd=tmp_path)
    assert [point["image_size"] for point in output["sizes"]] == [64, 96]


def test_training_images_may_select_the_size_and_convert_saves_it(trained, tmp_path):
    done = effnetv2("evaluate", trained / "run", trained / "train.csv", "--eval-sizes", "64,96", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "By image size" in done.stdout
    assert "Best at " in done.stdout
    on_val = effnetv2("evaluate", trained / "run", trained / "val.csv", "--eval-sizes", "64,96", cwd=tmp_path)
    assert "Best at " not in on_val.stdout
    converted = effnetv2("convert", trained / "run", "kept.safetensors", "--image-size", "96", cwd=tmp_path)
    assert converted.returncode == 0, converted.stderr
    at_96 = _json("evaluate", trained / "run", trained / "val.csv", "--image-size", "96", cwd=tmp_path)
    again = _json("evaluate", "kept.safetensors", trained / "val.csv", cwd=tmp_path)
    assert (again["image_size"], again["top1"]) == (96, at_96["top1"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("96;128", ("sizes", "96;128")),
        ("96,31", ("sizes", "31", "32")),
        ("96,4097", ("4096",)),
        (",".join(map(str, range(32, 65))), ("33", "32")),
    ],
)
def test_invalid_sizes_are_rejected(words, sentence):
    with pytest.raises(InputError, match=mentioning(*sentence)):
        parse_sizes(words)


def test_repeated_size_is_used_once():
    assert parse_sizes("128, 96,128") == (96, 128)


def test_image_size_below_the_stride_is_rejected(trained, tmp_path):
    done = effnetv2("evaluate", trained / "run", trained / "val.csv", "--image-size", "8", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "--image-size", "8", "32")


def test_comparison_of_two_runs(trained, tmp_path):
    args = ("train", trained / "pictures", *TINY, "--weights", "none", "--set", "progressive.stages=1")
    done = effnetv2(*args, "--epochs", "3", "--output", tmp_path / "fixed", "--baseline", trained / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = _json("compare", tmp_path / "fixed", trained / "run", "--output", tmp_path / "both", cwd=tmp_path)
    fixed, growing = output["runs"]
    assert (fixed["sizes"], growing["sizes"]) == ([64], [32, 64])
    reports = [json.loads((run / "report.json").read_text()) for run in (tmp_path / "fixed", trained / "run")]
    assert [fixed["top1"], growing["top1"]] == [report["top1"] for report in reports]
    for run, report in zip((tmp_path / "fixed", trained / "run"), reports, strict=True):
        predictions = FinishedRun.read(run, "run").predictions
        assert len(predictions) == report["num_images"]
        assert (predictions["predicted_label"] == predictions["true_label"]).mean() == pytest.approx(report["top1"])
    stages = reports[1]["stages"]
    assert [stage["image_size"] for stage in stages] == [32, 64]
    assert growing["train_s"] == pytest.approx(sum(stage["seconds"] for stage in stages), abs=0.01)
    (apart,) = output["gains"]
    documented = documented_keys("comparison.json")
    assert output.keys() == documented.keys()
    assert fixed.keys() == documented["runs"]
    assert apart.keys() == documented["gains"]
    assert apart["top1"]["value"] == pytest.approx(growing["top1"] - fixed["top1"])
    assert apart["top1"]["low"] <= apart["top1"]["value"] <= apart["top1"]["high"]
    written = {path.name for path in (tmp_path / "both").iterdir()}
    assert written == {"comparison.json", "accuracy_over_time.png", "settings.png", "stage_costs.png"}
    assert json.loads((tmp_path / "both" / "comparison.json").read_text()) == output
    people = effnetv2("compare", tmp_path / "fixed", trained / "run", cwd=tmp_path)
    text = " ".join(people.stdout.split())
    assert "Is run better than fixed? " in text
    assert f"macro-F1 {100 * apart['macro_f1']['value']:+.1f} points" in text
    # Every command prints the same interval of the difference.
    other_way = effnetv2("compare", trained / "run", tmp_path / "fixed", cwd=tmp_path)
    interval = re.compile(r"On the same .*? intervals\.")
    by_both = {interval.findall(" ".join(one.stdout.split()))[-1] for one in (done, other_way)}
    assert len(by_both) == 1
    assert mentions(people.stdout, "F1", "class")
    assert set(apart["f1"]) == set(COLORS)
    assert mentions(people.stdout, "training time")


def test_evaluation_does_not_replace_the_report_of_a_run(trained, tmp_path):
    before = (trained / "run/report.json").read_bytes()
    done = effnetv2("evaluate", trained / "run", trained / "val.csv", "--output", trained / "run", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "run", "report")
    assert (trained / "run/report.json").read_bytes() == before


def test_only_finished_runs_are_compared(trained, tmp_path):
    done = effnetv2("compare", trained / "run", trained / "pictures", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "report.json")
    alone = effnetv2("compare", trained / "run", cwd=tmp_path)
    assert alone.returncode == 2
    assert mentions(alone.stderr, "compare", "two runs")


NAMES = ("oak", "elm")


@pytest.mark.parametrize(
    "text",
    [
        "true,elm,oak,abstain\nelm,0,2,0.5\noak,3,0,0.5\n",
        "true;elm;oak;abstain\n\nelm;0;2;0.5\n;;;\noak;3;0;0.5\n;;;\n",
        '"true"\t"elm"\t"oak"\t"abstain"\n"elm"\t0\t2\t0.5\n"oak"\t3\t0\t0.5\n',
        "true, elm, oak, abstain\nelm, 0, 2, 0.5\noak, 3, 0, 0.5\n",
    ],
)
def test_costs_are_read_as_spreadsheets_write_them(text, tmp_path):
    (tmp_path / "costs.csv").write_text(text, encoding="utf-8-sig")
    costs = read_cost_matrix(tmp_path / "costs.csv", NAMES)
    assert costs.matrix.tolist() == [[0, 3], [2, 0]]
    assert costs.abstain == 0.5


def test_class_called_abstain_has_its_own_column(tmp_path):
    (tmp_path / "costs.csv").write_text("true,abstain,oak\nabstain,0,2\noak,3,0\n")
    costs = read_cost_matrix(tmp_path / "costs.csv", ("abstain", "oak"))
    assert costs.matrix.tolist() == [[0, 2], [3, 0]]
    assert costs.abstain is None


def test_class_names_match_in_any_unicode_form(tmp_path):
    """An umlaut as one or two characters, in the model or in the file."""
    one, two = (unicodedata.normalize(form, "Wälder") for form in ("NFC", "NFD"))
    assert one != two
    for names, written in (((one, "elm"), two), ((two, "elm"), one)):
        (tmp_path / "costs.csv").write_text(f"true,{written},elm\n{written},0,2\nelm,3,0\n", encoding="utf-8")
        assert read_cost_matrix(tmp_path / "costs.csv", names).matrix.tolist() == [[0, 2], [3, 0]]
    both = f"true,{one},{two}\n{one},0,2\n{two},3,0\n"
    (tmp_path / "costs.csv").write_text(both, encoding="utf-8")
    assert read_cost_matrix(tmp_path / "costs.csv", (one, two)).matrix.tolist() == [[0, 2], [3, 0]], (
        "two classes stay two"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("true;elm;oak\nelm;0;0,5\noak;1;0\n", ("elm", "0,5", "0")),
        ("", ("costs.csv", "CSV")),
        ("true,elm,oak\nelm,0,1,1\n", ("costs.csv", "CSV")),
        ("true;elm;oak\n;;\n", ("costs.csv", "row", "oak")),
    ],
)
def test_invalid_costs_are_rejected(text, said, tmp_path):
    (tmp_path / "costs.csv").write_text(text)
    with pytest.raises(InputError, match=mentioning(*said)):
        read_cost_matrix(tmp_path / "costs.csv", NAMES)
