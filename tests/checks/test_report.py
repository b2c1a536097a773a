"""Each added problem is found with its images, and nothing else is reported."""

from __future__ import annotations

import json
import re
import shutil
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance
from scipy.stats.contingency import association
from sklearn.metrics.pairwise import haversine_distances
from tests.checks.planted import EACH, Planted, clean_dataset, scene
from tests.evaluation.test_report_in_browser import AWKWARD, CHROMIUM, layout_faults, measure
from tests.messages import mentioning, mentions
from tests.pages import documented_keys

from efficientnetv2.checks import report
from efficientnetv2.checks.dataset_check import check_dataset
from efficientnetv2.checks.dataset_statistics import class_count_section, cramers_v
from efficientnetv2.checks.image_stats import collect_image_stats
from efficientnetv2.checks.report import legend
from efficientnetv2.checks.split_leakage import location_section
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.evaluation.distribution_shift import EARTH_KM, Places
from efficientnetv2.inference.predict import Embeddings
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

DEFORESTATION = Path(__file__).parents[3] / "shared" / "data" / "deforestation" / "train.csv"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    return folder, clean_dataset(folder)


@pytest.fixture
def planted(clean, tmp_path):
    return Planted.of(*clean, tmp_path / "planted")


def found_in(dataset, **options):
    """Return the groups of paths for each type of finding."""
    inspection = check_dataset(dataset, collect_image_stats(dataset, workers=2), key=Key.of(0), **options)
    json.dumps(inspection.to_json(), allow_nan=False)
    return {one["kind"]: one["images"] for one in inspection.to_json()["findings"]}


def recompressed(folder, source, name):
    """Save an image again: smaller, brighter, and with low quality."""
    small = Image.open(folder / source).resize((50, 50))
    ImageEnhance.Brightness(small).enhance(1.15).save(folder / name, quality=40)


def test_clean_dataset_has_no_findings(planted):
    assert found_in(planted.read()) == {}


def test_keys_of_the_json_are_documented(planted):
    shutil.copy(planted.folder / "010.jpg", planted.folder / "copy.jpg")
    planted.add("copy.jpg", like=10)
    dataset = planted.read()
    written = check_dataset(dataset, collect_image_stats(dataset, workers=2), key=Key.of(0)).to_json()
    documented = documented_keys("inspection.json")
    assert documented.keys() - written.keys() == {"network", "shards"}
    assert written["findings"][0].keys() <= documented["findings"]
    for key, value in written.items():
        if isinstance(value, dict):
            assert value.keys() <= documented[key], key
        assert key in documented


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({}, "same_image"), ({"split": "val"}, "same_across_splits"), ({"label": "b"}, "same_other_label")],
)
def test_identical_files_are_found(planted, changes, kind):
    shutil.copy(planted.folder / "010.jpg", planted.folder / "copy.jpg")
    planted.add("copy.jpg", like=10, **changes)
    assert found_in(planted.read()) == {kind: [["010.jpg", "copy.jpg"]]}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({}, "near_image"), ({"split": "val"}, "near_across_splits"), ({"label": "b"}, "near_other_label")],
)
def test_recompressed_image_is_found(planted, changes, kind):
    recompressed(planted.folder, "020.jpg", "other.jpg")
    planted.add("other.jpg", like=20, **changes)
    assert found_in(planted.read()) == {kind: [["020.jpg", "other.jpg"]]}


@pytest.mark.parametrize(
    ("first", "again", "saved_again", "kinds"),
    [
        ({}, {"split": "train"}, {}, {"same_across_splits", "near_across_splits"}),
        ({"label": None}, {"label": "a"}, {"label": "b"}, {"same_image", "near_other_label", "unlabeled"}),
        ({"label": None}, {"label": "b"}, {"label": "b"}, {"same_image", "near_image", "unlabeled"}),
    ],
)
def test_near_duplicate_of_two_identical_files_is_compared_with_both(planted, first, again, saved_again, kinds):
    """In val, with the same file in train; or without a label, with the same file labeled."""
    for name, value in first.items():
        planted.table.loc[80, name] = value
    shutil.copy(planted.folder / "080.jpg", planted.folder / "again.jpg")
    planted.add("again.jpg", like=80, **again)
    recompressed(planted.folder, "080.jpg", "other.jpg")
    planted.add("other.jpg", like=80, **saved_again)
    dataset = planted.read()
    found = found_in(dataset)
    assert set(found) == kinds
    (near,) = [kind for kind in kinds if kind.startswith("near")]
    one = "080.jpg" if near == "near_image" else "again.jpg"
    assert found[near] == [[one, "other.jpg"]]
    facts = check_dataset(dataset, collect_image_stats(dataset, workers=2), key=Key.of(0)).sections["duplicates"].facts
    (pair,) = facts["near_duplicates"]
    harms = (pair["across_splits"], pair["labels_differ"])
    assert harms == (near == "near_across_splits", near == "near_other_label")


def test_all_but_one_of_repeatedly_saved_images_are_redundant(planted):
    """Five images are ten pairs."""
    for quality in (50, 60, 70, 80):
        name = f"other{quality}.jpg"
        Image.open(planted.folder / "020.jpg").save(planted.folder / name, quality=quality)
        planted.add(name, like=20)
    dataset = planted.read()
    (found,) = check_dataset(dataset, collect_image_stats(dataset, workers=2), key=Key.of(0)).issues
    assert found.kind == "near_image"
    assert len(found.groups) == 10
    assert mentions(found.sentence, "4", "108")


def test_copy_across_splits_with_another_label_is_two_findings(planted):
    shutil.copy(planted.folder / "010.jpg", planted.folder / "copy.jpg")
    planted.add("copy.jpg", like=10, split="val", label="b")
    pair = [["010.jpg", "copy.jpg"]]
    assert found_in(planted.read()) == {"same_across_splits": pair, "same_other_label": pair}


def test_unreadable_files_are_found(planted):
    content = (planted.folder / "030.jpg").read_bytes()
    (planted.folder / "030.jpg").write_bytes(content[: len(content) // 2])
    (planted.folder / "031.jpg").write_text("path,label")
    assert found_in(planted.read()) == {"unreadable": [["030.jpg"], ["031.jpg"]]}
    dataset = planted.read()
    (issue,) = check_dataset(dataset, collect_image_stats(dataset, workers=2), key=Key.of(0)).issues
    assert mentions(issue.sentence, "030.jpg")


def test_images_of_one_color_are_flat_and_not_duplicates(planted):
    for name, gray in (("040.jpg", 90), ("041.jpg", 91), ("044.jpg", 200)):
        Image.new("RGB", (64, 64), (gray, gray, gray)).save(planted.folder / name)
    assert found_in(planted.read()) == {"flat": [["040.jpg"], ["041.jpg"], ["044.jpg"]]}


@pytest.mark.parametrize(("size", "kind"), [((64, 20), "long"), ((20, 20), "tiny")])
def test_long_and_tiny_images_are_found(planted, size, kind):
    scene(50).resize(size).save(planted.folder / "050.jpg")
    expected = {"tiny": [["050.jpg"]]} | ({"long": [["050.jpg"]]} if kind == "long" else {})
    assert found_in(planted.read()) == expected


@pytest.mark.parametrize("cell", ["", "  "])
def test_rows_without_a_label_are_found(planted, cell):
    planted.table.loc[60, "label"] = cell
    assert found_in(planted.read()) == {"unlabeled": [["060.jpg"]]}


def test_images_of_one_location_are_found(planted):
    """0.03 degrees of latitude are 3.3 km. The two images have different labels."""
    planted.table.loc[11, ["latitude", "longitude"]] = planted.table.loc[10, ["latitude", "longitude"]] + 0.03
    dataset = planted.read()
    assert found_in(dataset) == {"place": []}
    assert found_in(dataset, near_km=2) == {}
    section = check_dataset(dataset, collect_image_stats(dataset, workers=2), key=Key.of(0)).sections["place"]
    assert section.facts["near_another"] == 2
    assert section.facts["nearest_of_its_label"] == 0


def test_images_of_one_location_in_both_splits_are_found(planted):
    planted.table.loc[90, ["latitude", "longitude"]] = planted.table.loc[10, ["latitude", "longitude"]]
    assert set(found_in(planted.read())) == {"place", "place_across_splits"}


def test_locations_across_the_date_line_are_near():
    """179.99° east and 179.99° west are 2.2 km apart at the equator."""
    places = Places(np.radians([[0, 179.99], [0, -179.99], [50, 0]]), np.arange(3))
    everyone = np.ones(3, dtype=bool)
    assert places.nearest_km(everyone, everyone)[:2] == pytest.approx(2 * 1.11195, rel=1e-3)


@pytest.mark.skipif(not DEFORESTATION.is_file(), reason=f"there is no {DEFORESTATION}: its neighbors are not counted")
def test_neighbors_of_the_deforestation_images_are_counted():
    """446 images have a neighbor within 5 km. For 330 of them the nearest neighbor has the same label."""
    facts = location_section(load_dataset(DEFORESTATION)).facts
    assert (facts["near_another"], facts["nearest_of_its_label"]) == (446, 330)


@pytest.mark.parametrize("columns", [["latitude"], ["latitude", "longitude"]])
def test_missing_coordinates_are_found(planted, columns):
    planted.table.loc[70, columns] = np.nan
    assert found_in(planted.read()) == {"no_place": [["070.jpg"]]}


def test_latitude_without_a_longitude_is_found(planted):
    planted.table = planted.table.drop(columns="longitude")
    assert set(found_in(planted.read())) == {"half_a_place"}


@pytest.mark.parametrize(
    ("empty", "without", "found"),
    [
        (["longitude"], [], {"half_a_place"}),
        (["latitude"], ["longitude"], set()),
        (["latitude", "longitude"], [], set()),
    ],
)
def test_empty_columns_are_treated_as_in_training(planted, empty, without, found):
    planted.table = planted.table.assign(**dict.fromkeys(empty, np.nan)).drop(columns=without)
    assert set(found_in(planted.read())) == found
    if found:
        with pytest.raises(InputError, match=mentioning("latitude", "longitude")):
            load_dataset(planted.folder / "pictures.csv")
    else:
        load_dataset(planted.folder / "pictures.csv")


def test_location_is_missing_for_all_images_if_no_image_has_both_coordinates(planted):
    odd = planted.table.index % 2 == 1
    planted.table.loc[odd, "latitude"] = planted.table.loc[~odd, "longitude"] = np.nan
    assert found_in(planted.read()) == {"no_place": []}


def test_group_in_both_splits_is_found(planted):
    planted.table.loc[90, "group"] = planted.table.loc[10, "group"]
    assert found_in(planted.read()) == {"group_across_splits": [["010.jpg", "011.jpg", "090.jpg"]]}


def test_groups_of_one_label_and_rows_without_a_group_are_found(planted):
    planted.table["group"] = planted.table["label"] + (planted.table.index // 20).astype(str)
    planted.table.loc[5, "group"] = None
    assert found_in(planted.read()) == {"group_tells_label": [], "no_group": [["005.jpg"]]}


@pytest.mark.parametrize("minutes", [20, -20])
@pytest.mark.parametrize(("row", "kinds"), [(11, ["time"]), (90, ["time", "time_across_splits"])])
def test_images_of_one_hour_are_found(planted, row, kinds, minutes):
    """For example frames of a camera: no two have the same time, and row 90 is in val."""
    times = pd.to_datetime(planted.table["date"]) + pd.Timedelta(hours=9)
    times[row] = times[10] + pd.Timedelta(minutes=minutes)
    planted.table["date"] = times.dt.strftime("%Y-%m-%dT%H:%M:%S")
    dataset = planted.read()
    assert found_in(dataset) == {kind: [] for kind in kinds}
    facts = check_dataset(dataset, collect_image_stats(dataset, workers=2), key=Key.of(0)).sections["time"].facts
    assert facts["shared_with_training"] == {"val": int(row == 90)}


def test_dates_without_a_time_of_day_are_not_midnight(planted):
    """If some cells have a time of day, two images of one date may be hours apart. They are still of one date."""
    planted.table.loc[[11, 90], "date"] = planted.table.loc[10, "date"]
    planted.table.loc[20, "date"] += "T10:00:00"
    dataset = planted.read()
    assert found_in(dataset) == {"time_across_splits": []}
    facts = check_dataset(dataset, collect_image_stats(dataset, workers=2), key=Key.of(0)).sections["time"].facts
    assert (facts["shared_with_training"], facts["within_an_hour"]) == ({"val": 1}, 0)


def test_years_of_both_splits_are_compared(planted):
    dates = pd.to_datetime(planted.table["date"])
    planted.table = planted.table.assign(date=2000 + np.arange(len(dates)))
    planted.table.loc[90, "date"] = planted.table.loc[10, "date"]
    assert found_in(planted.read()) == {"time_across_splits": []}


@pytest.mark.parametrize("form", ["text", "dates"])
def test_dates_with_an_offset_are_not_times_of_day(planted, form):
    """Midnight there is eleven in the evening in UTC."""
    times = pd.to_datetime(planted.table["date"]).dt.tz_localize("Europe/Berlin")
    times[[11, 90]] = times[10]
    planted.table["date"] = times.map(str)
    dataset = planted.read()
    if form == "dates":
        dataset = replace(dataset, table=dataset.table.assign(date=times))
    assert found_in(dataset) == {"time_across_splits": []}
    planted.table["date"] = times.map(str).str.replace("00:00:00", "10:00:00")
    assert found_in(planted.read()) == {"time": [], "time_across_splits": []}


def test_times_in_both_splits_and_missing_times_are_found(planted):
    planted.table.loc[90, "date"] = planted.table.loc[10, "date"]
    planted.table.loc[3, "date"] = ""
    assert found_in(planted.read()) == {"time_across_splits": [], "no_time": [["003.jpg"]]}


@pytest.mark.parametrize("cell", ["31.05.2016", "2016:05:31 10:20:30"])
def test_time_column_in_an_unknown_form_is_reported(planted, cell):
    planted.table["date"] = cell
    assert found_in(planted.read()) == {"no_time": []}
    planted.table["date"] = ""
    assert found_in(planted.read()) == {}


def test_missing_or_invalid_time_column_is_refused(planted):
    dataset = planted.read()
    with pytest.raises(InputError, match=mentioning("dates", "did you mean")):
        found_in(dataset, time_column="dates")
    with pytest.raises(InputError, match=mentioning("`time_column`", "group")):
        found_in(dataset, time_column="group")


def test_single_class_is_found(planted):
    planted.table["label"] = "a"
    assert set(found_in(planted.read())) == {"one_class"}


def test_imbalance_and_small_classes_are_found(planted):
    planted.table = planted.table[(planted.table["label"] == "a") | (planted.table.index % 10 == 1)]
    assert set(found_in(planted.read())) == {"imbalance", "small_class"}


def test_majority_share_of_multilabel_counts_images(planted):
    planted.table["label"] = np.where(planted.table.index % 4, "animal;cat", "animal;dog")
    counted = class_count_section(planted.read(label_separator=";"))
    assert counted.facts["majority_share"] == 1
    assert counted.facts["by_split"] == {"train": 80, "val": 24}
    (imbalance,) = [one for one in counted.issues if one.kind == "imbalance"]
    assert mentions(imbalance.advice, "animal", "100.0")


def test_each_label_of_multilabel_images_is_shown(planted, tmp_path):
    """Animal is on all images, but is the rarest label of none."""
    planted.table["label"] = np.where(planted.table.index % 4, "animal;cat", "animal;dog")
    dataset = planted.read(label_separator=";")
    found = check_dataset(dataset, collect_image_stats(dataset, workers=2), key=Key.of(0))
    assert set(found.sections["image_stats"].facts["by_class"]) == {"animal", "cat", "dog"}
    assert all(report._examples(found)[name] for name in ("animal", "cat", "dog"))
    report.write_check_report(tmp_path, found, image=lambda row: None, command="effnetv2 check x", versions={})
    page = (tmp_path / report.PAGE_NAME).read_text()
    assert re.findall(r'<bdi>animal</bdi>.*data-of="share">([^<]*)<', page) == ["100.0\N{NO-BREAK SPACE}%"]


def test_multilabel_images_without_a_label_get_advice_that_training_accepts(planted):
    planted.table["label"] = np.where(planted.table.index % 4, "cat;dog", "")
    (found,) = [one for one in class_count_section(planted.read(label_separator=";")).issues if one.kind == "unlabeled"]
    assert not mentions(found.advice, "--rank")
    assert mentions(found.advice, "nothing")


def test_dark_dataset_is_found(planted):
    for path in planted.folder.glob("*.jpg"):
        image = Image.open(path).point(lambda value: value // 5)
        image.save(path, quality=92)
    assert set(found_in(planted.read())) == {"dark"}


def test_bright_dataset_is_found(planted):
    for path in planted.folder.glob("*.jpg"):
        image = Image.open(path).point(lambda value: 255 - value // 5)
        image.save(path, quality=92)
    assert set(found_in(planted.read())) == {"bright"}


def test_class_in_another_format_is_found(planted):
    for number in range(1, 2 * EACH, 2):
        scene(number).save(planted.folder / f"{number:03d}.jpg", "PNG")
    assert set(found_in(planted.read())) == {"giveaway"}


def embedded(dataset, seed=0):
    """Return embeddings that separate the classes, as those of a good model would."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(len(dataset), 24)).astype(np.float32)
    true = np.array([int(path[:3]) % 2 if path[:3].isdigit() else 0 for path in dataset.paths])
    vectors[:, :12] += 4 * true[:, None] - 2
    return Embeddings(np.arange(len(dataset)), dataset.labels, vectors)


def test_wrong_labels_are_suspected_and_no_others(planted):
    planted.table = planted.table.drop(columns="group")  # groups would affect the folds
    swapped = [12, 33, 58, 71]
    for row in swapped:
        planted.table.loc[row, "label"] = "ab"[1 - row % 2]
    dataset = planted.read()
    found = found_in(dataset, embeddings=embedded(dataset), weights="made up")
    assert {path for (path,) in found.pop("label")} == {f"{row:03d}.jpg" for row in swapped}
    assert found == {}


def test_group_with_only_wrong_labels_is_suspected(planted):
    """Images of one site look alike. A model that learns from some of them repeats the error on the others."""
    site = list(range(0, 20, 2))
    planted.table.loc[site, "group"] = "site"
    planted.table.loc[site, "label"] = "b"
    dataset = planted.read()
    given = embedded(dataset)
    vectors = given.vectors.copy()
    vectors[site, 20] += 4
    found = found_in(dataset, embeddings=replace(given, vectors=vectors), weights="made up")
    assert {path for (path,) in found["label"]} == {f"{row:03d}.jpg" for row in site}


@pytest.mark.parametrize("change", [0.1, 0.9])
def test_copies_with_the_same_wrong_label_do_not_confirm_it(planted, change):
    """Two copies of each image, as in a balanced dataset. Each copy is nearest to its original."""
    planted.table = planted.table.assign(augmented_from="")
    swapped = list(range(3, 2 * EACH, 9))
    planted.table["label"] = ["ab"[(row % 2) ^ (row in swapped)] for row in planted.table.index]
    for row in range(2 * EACH):
        for name in (f"{row:03d}-1.jpg", f"{row:03d}-2.jpg"):
            scene(1000 + len(planted.table)).save(planted.folder / name)
            planted.add(name, like=row, augmented_from=f"{row:03d}.jpg")
    planted.table = planted.table.drop(columns=["group", "latitude", "longitude"])
    dataset = planted.read()
    rng = np.random.default_rng(0)
    own = rng.normal(size=(2 * EACH, 512))
    own[:, :24] += np.where(np.arange(2 * EACH) % 2, 0.7, -0.7)[:, None]
    vectors = own[[int(path[:3]) for path in dataset.paths]] + change * rng.normal(size=(len(dataset), 512))
    given = Embeddings(np.arange(len(dataset)), dataset.labels, vectors.astype(np.float32))
    found = found_in(dataset, embeddings=given, weights="made up")
    named = {path[:3] for (path,) in found["label"]}
    assert len(named & {f"{row:03d}" for row in swapped}) >= len(swapped) / 2
    assert not {"lookalike", "lookalike_across_splits"} & set(found), "a copy is no scene taken again"


def test_multilabel_error_is_a_missing_label(planted):
    """The model predicts animal for row 13, which has this label, and cat for row 12, which has not."""
    planted.table["label"] = np.where(planted.table.index % 2, "animal", "cat;animal")
    planted.table.loc[[12, 13], "label"] = ["animal", "cat;animal"]
    dataset = planted.read(label_separator=";")
    found = found_in(dataset, embeddings=embedded(dataset), weights="made up")
    assert found["label"] == [["012.jpg"]]


def test_augmented_copies_are_no_duplicates(planted):
    """Splits keep them with their original; across splits they are leakage."""
    planted.table = planted.table.assign(augmented_from="")
    shutil.copy(planted.folder / "010.jpg", planted.folder / "copy.jpg")
    planted.add("copy.jpg", like=10, augmented_from="010.jpg")
    found = found_in(planted.read())
    assert "same_image" not in found
    planted.table.loc[planted.table["path"] == "copy.jpg", "augmented_from"] = ""
    assert "same_image" in found_in(planted.read())


def test_multilabel_copies_agree_only_if_all_labels_agree(planted):
    """The rarest label, by which an image is counted, is equal for both."""
    planted.table["label"] = np.where(planted.table.index % 2, "plant", "animal")
    for row, name, label in ((10, "other.jpg", "cat;plant"), (12, "same.jpg", "animal;cat")):
        planted.table.loc[row, "label"] = "cat;animal"
        shutil.copy(planted.folder / f"{row:03d}.jpg", planted.folder / name)
        planted.add(name, like=row, label=label)
    found = found_in(planted.read(label_separator=";"))
    assert found["same_other_label"] == [["010.jpg", "other.jpg"]]
    assert found["same_image"] == [["012.jpg", "same.jpg"]]


def test_correct_labels_are_not_suspected(planted):
    dataset = planted.read()
    assert found_in(dataset, embeddings=embedded(dataset), weights="made up") == {}


@pytest.mark.parametrize(
    ("row", "kind"), [(32, "lookalike"), (85, "lookalike_across_splits"), (31, "lookalike_other_label")]
)
@pytest.mark.parametrize("further", [{}, {"104.jpg": 0.1, "106.jpg": 0.12}])
def test_scenes_that_only_a_model_recognizes_are_found(planted, row, kind, further):
    """A scene of two images, or of four: then the second nearest image is as near as the nearest."""
    for name in further:
        scene(int(name[:3])).save(planted.folder / name)
        planted.add(name, like=10)
    dataset = planted.read()
    given = embedded(dataset)
    vectors = given.vectors.copy()
    vectors[row] = vectors[10] + 0.1
    for name, shift in further.items():
        vectors[dataset.paths.index(name)] = vectors[10] + shift
    if kind == "lookalike_across_splits":  # with one label, so that this is its only problem
        labels = planted.table["label"].to_numpy()
        planted.table.loc[row, "label"] = labels[10]
        dataset = planted.read()
        given = replace(given, labels=dataset.labels)
    found = found_in(dataset, embeddings=replace(given, vectors=vectors), weights="made up")
    found.pop("label", None)  # an embedding among those of the other class may be suspected too
    assert found == {kind: [["010.jpg", f"{row:03d}.jpg", *further]]}


def test_recompressed_image_does_not_hide_a_repeated_scene(planted):
    recompressed(planted.folder, "020.jpg", "other.jpg")
    planted.add("other.jpg", like=20)
    dataset = planted.read()
    given = embedded(dataset)
    vectors = given.vectors.copy()
    vectors[44], vectors[-1] = vectors[20] + 0.1, vectors[20] + 0.01
    assert found_in(dataset, embeddings=replace(given, vectors=vectors), weights="made up") == {
        "near_image": [["020.jpg", "other.jpg"]],
        "lookalike": [["020.jpg", "044.jpg", "other.jpg"]],
    }


def test_format_reveals_nothing_if_each_image_has_its_own_class():
    """Warnings are errors here, for example for 0 / 0."""
    assert cramers_v(pd.Series(["JPEG", "PNG"] * 15), np.arange(30)) == 0
    assert cramers_v(pd.Series(["JPEG", "PNG"] * 15), np.arange(30) % 2) > 0.9


def test_page_of_a_single_image_uses_the_singular(tmp_path):
    scene(0).save(tmp_path / "a.png")
    table = pd.DataFrame({"path": ["a.png"], "label": ["oak"], "latitude": [1.0], "longitude": [2.0], "year": [2014]})
    table.to_csv(tmp_path / "one.csv", index=False)
    dataset = load_dataset(str(tmp_path / "one.csv"), for_training=False)
    found = check_dataset(dataset, collect_image_stats(dataset, workers=1), key=Key.of(0))
    report.write_check_report(tmp_path, found, image=lambda row: None, command="effnetv2 check one.csv", versions={})
    text = (tmp_path / report.PAGE_NAME).read_text()
    for phrase in ("No problem in 1 image.", ": 1 class.", "1 image has a location", "known for 1 image."):
        assert phrase in text


def test_page_has_a_row_only_for_each_of_the_largest_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_ROWS", 3)
    labels = [*"aaabbccddde"]
    for number in range(len(labels)):
        scene(number).save(tmp_path / f"{number}.png")
    table = pd.DataFrame({"path": [f"{number}.png" for number in range(len(labels))], "label": labels})
    table.to_csv(tmp_path / "five.csv", index=False)
    dataset = load_dataset(str(tmp_path / "five.csv"), for_training=False)
    found = check_dataset(dataset, collect_image_stats(dataset, workers=1), key=Key.of(0))
    report.write_check_report(tmp_path, found, image=lambda row: None, command="effnetv2 check five.csv", versions={})
    text = (tmp_path / report.PAGE_NAME).read_text()
    rows = re.findall(r"<tr><td><bdi>(\w)</bdi></td><td data-of=\"([^\"]+)\"", text)
    assert [name for name, of in rows if of != "mean color"] == ["a", "b", "d"]
    assert [name for name, of in rows] == ["a", "b", "d"] * 2, "of their colors too"
    assert mentions(text, "3", "5", "inspection.json")
    result = json.loads((tmp_path / report.JSON_NAME).read_text())
    assert list(result["counts"]["by_class"]) == [*"abcde"]


def test_classes_without_their_own_color_are_counted():
    for classes, expected in ((4, []), (5, ["1 other class"]), (6, ["2 other classes"])):
        dataset = SimpleNamespace(labels=np.arange(classes), class_names=tuple("abcdef"))
        assert [name for name, _ in legend(dataset)][4:] == expected


def test_cramers_v_equals_scipy_without_chance_and_needs_no_full_table():
    """The table of 4,000 sizes and 5,000 classes would need 160 MB."""
    rng = np.random.default_rng(0)
    sizes, labels = rng.integers(0, 4, 100_000), rng.integers(0, 5, 100_000)
    labels = np.where(rng.random(100_000) < 0.5, sizes, labels)
    table = pd.crosstab(sizes, labels).to_numpy()
    assert cramers_v(pd.Series(sizes.astype(str)), labels) == pytest.approx(association(table), abs=1e-3)
    many = pd.Series(rng.integers(0, 4_000, 20_000).astype(str))
    tracemalloc.start()
    cramers_v(many, rng.integers(0, 5_000, 20_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_nearest_locations_equal_those_of_brute_force():
    """Some images share a location, so that their distance is 0."""
    rng = np.random.default_rng(0)
    degrees = rng.integers(0, 6, (60, 2)).astype(float)
    asking, among = rng.random(60) < 0.5, rng.random(60) < 0.3
    found = Places(np.radians(degrees), np.arange(60)).nearest_km(asking, among)
    all_with_all = haversine_distances(np.radians(degrees)) * EARTH_KM
    np.fill_diagonal(all_with_all, np.inf)
    expected = np.where(asking, all_with_all[:, among].min(axis=1), np.inf)
    assert found == pytest.approx(expected, abs=1e-9)
    assert (found == 0).any()


def test_many_images_of_two_locations_are_compared_quickly():
    """A comparison of all images would need 8 * 10^8 distances."""
    degrees = np.repeat([[0.0, 0.0], [0.0, 1.0]], 20_000, axis=0)
    everyone = np.ones(40_000, dtype=bool)
    start = time.process_time()
    assert (Places(np.radians(degrees), np.arange(40_000)).nearest_km(everyone, everyone) == 0).all()
    assert time.process_time() - start < 2


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page with pairs, larger groups, long names and many classes."""
    folder = tmp_path_factory.mktemp("page")
    planted = Planted(folder, clean_dataset(folder))
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
def test_nothing_exceeds_the_width_of_the_page(width, written, tmp_path):
    found = measure(written / report.PAGE_NAME, width, tmp_path / "profile")
    assert layout_faults(found, width) == {}
