"""Images, labels and splits of a CSV or Parquet file."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.messages import each_mentions, mentioning, mentions

from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.image_checks import validate_images
from efficientnetv2.utils.errors import InputError

# One word in two Unicode normal forms; macOS uses the second in file names.
NFC, NFD = "Hêtre", "He\u0302tre"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def write(folder: Path, text: str, name: str = "train.csv", encoding: str = "utf-8") -> Path:
    (folder / name).write_text(text, encoding=encoding)
    return folder / name


def test_rows_preserve_order_columns_and_numbers(folder):
    file = write(folder, "path,label,latitude,longitude,year\n3.png,b,1.5,100,2001\n\n0.png,a,-2,101,2013\n")
    dataset = load_dataset(file)
    assert dataset.paths == ["3.png", "0.png"]
    assert dataset.class_names == ("a", "b")
    assert dataset.labels.tolist() == [1, 0]
    assert dataset.rows.tolist() == [2, 4]  # with a blank line between
    assert dataset.table["latitude"].tolist() == [1.5, -2.0]
    assert dataset.table["year"].tolist() == [2001, 2013]
    assert dataset.file(0) == str(folder / "3.png")


@pytest.mark.parametrize(
    ("text", "name", "encoding"),
    [
        ("path;label\n0.png;a\n1.png;b\n", "t.csv", "utf-8"),
        ("path\tlabel\n0.png\ta\n1.png\tb\n", "t.tsv", "utf-8"),
        ('"path","label"\r\n"0.png","a"\r\n"1.png","b"\r\n', "t.csv", "utf-8-sig"),
    ],
)
def test_csv_dialects_of_spreadsheets_are_read(folder, text, name, encoding):
    dataset = load_dataset(write(folder, text, name, encoding))
    assert dataset.table[["path", "label"]].to_numpy().tolist() == [["0.png", "a"], ["1.png", "b"]]


def test_parquet_equals_the_csv_of_the_same_table(folder):
    table = pd.DataFrame({"path": ["0.png", "1.png"], "label": [10, 2], "split": ["train", None], "year": [1, 2]})
    table.to_csv(folder / "t.csv", index=False)
    table.to_parquet(folder / "t.parquet")
    csv, parquet = load_dataset(folder / "t.csv"), load_dataset(folder / "t.parquet")
    assert csv.digest() == parquet.digest()
    assert csv.class_names == parquet.class_names == ("10", "2")
    assert parquet.split.tolist() == ["train", ""]


def test_parquet_with_string_views_is_read(folder):
    """As Polars writes them."""
    table = pa.table({"path": pa.array(["0.png", "1.png"], pa.string_view()), "label": pa.array(["a", "b"])})
    pq.write_table(table, folder / "t.parquet")
    assert load_dataset(folder / "t.parquet").paths == ["0.png", "1.png"]


def test_parquet_index_is_a_column(folder):
    table = pd.DataFrame({"path": ["0.png", "1.png"], "label": ["a", "b"], "year": [1, 2]})
    expected = load_dataset(write(folder, table.to_csv(index=False)))
    for index in (["path"], ["path", "year"], ["label"]):
        table.set_index(index).to_parquet(folder / "t.parquet")
        assert load_dataset(folder / "t.parquet").digest() == expected.digest()


def test_parquet_index_without_a_name_can_be_the_paths(folder):
    table = pd.DataFrame({"label": ["a", "b"]}, index=["0.png", "1.png"])
    table.to_parquet(folder / "t.parquet")
    found = load_dataset(folder / "t.parquet", path_column="__index_level_0__")
    assert found.paths == ["0.png", "1.png"]


def test_parquet_images_as_of_hugging_face_are_not_read_beside_paths(folder):
    """Their bytes would become text in the table of a run."""
    image = pa.array([{"bytes": b"\xff\xd8", "path": "x"}] * 2)
    table = pa.table({"path": ["0.png", "1.png"], "label": ["a", "b"], "image": image, "views": pa.array([[b"1"]] * 2)})
    pq.write_table(table, folder / "t.parquet")
    assert not {"image", "views"} & set(load_dataset(folder / "t.parquet").table)


@pytest.mark.parametrize("name", ["set", "partition"])
def test_column_that_looks_like_splits_is_named(name, folder):
    dataset = load_dataset(write(folder, f"path,label,{name}\n0.png,a,train\n1.png,b,train\n2.png,a,test\n"))
    assert each_mentions(dataset.notes, (name, "split"))
    named = load_dataset(write(folder, f"path,label,split,{name}\n0.png,a,train,train\n1.png,b,train,test\n"))
    assert named.notes == ()


def test_columns_that_look_like_locations_are_named(folder):
    dataset = load_dataset(write(folder, "path,label,Lat,lng\n0.png,a,1,2\n1.png,b,3,4\n"))
    assert each_mentions(dataset.notes, ("Lat", "lng", "latitude"))


def test_table_in_memory_is_rejected_with_the_call_that_writes_it():
    with pytest.raises(InputError, match=mentioning("DataFrame", "to_csv")):
        load_dataset(pd.DataFrame({"path": [f"{number}.png" for number in range(99)], "label": "a"}))


def test_mask_selects_rows(folder):
    dataset = load_dataset(write(folder, "path,label\n0.png,a\n1.png,b\n2.png,b\n"))
    assert dataset.select(dataset.labels == 1).paths == dataset.select([1, 2]).paths == ["1.png", "2.png"]


def test_parquet_columns_of_bytes_are_ignored(folder):
    table = pd.DataFrame({"path": ["0.png", "1.png"], "label": ["a", "b"], "year": [1, 2]})
    expected = load_dataset(write(folder, table.to_csv(index=False)))
    for index in ("path", "label"):
        table.assign(thumbnail=[b"\xff\xd8", b"\x89P"]).set_index(index).to_parquet(folder / "t.parquet")
        found = load_dataset(folder / "t.parquet")
        assert found.digest() == expected.digest()
        assert set(found.table) == set(expected.table)


def test_missing_value_names_can_be_classes(folder):
    assert load_dataset(write(folder, "path,label\n0.png,None\n1.png,NA\n")).class_names == ("NA", "None")


def test_paths_may_be_absolute_unnormalized_or_from_windows(folder):
    (folder / "sub").mkdir()
    (folder / "sub/x.png").write_bytes((folder / "0.png").read_bytes())
    file = write(folder, f"path,label\n{folder}/1.png,a\n./2.png,b\nsub\\x.png,a\nsub/../3.png,b\n")
    assert load_dataset(file).paths == ["1.png", "2.png", "sub/x.png", "3.png"]


@pytest.mark.skipif(os.sep != "/", reason="Windows has no such names")
def test_backslash_in_a_file_name_is_preserved(folder):
    (folder / "a\\b.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "sub").mkdir()
    (folder / "sub/x.png").write_bytes((folder / "0.png").read_bytes())
    file = write(folder, "path,label\na\\b.png,a\nsub\\x.png,b\n")
    assert load_dataset(file).paths == ["a\\b.png", "sub/x.png"]


@pytest.mark.skipif(os.sep != "/", reason="Windows has no such names")
def test_path_from_windows_may_be_longer_than_a_file_name(folder):
    """A path of 360 bytes; a name has at most 255."""
    long = Path("ä" * 60, "ö" * 60, "ü" * 60)
    (folder / long).mkdir(parents=True)
    (folder / "0.png").rename(folder / long / "0.png")
    cell = str(long / "0.png").replace("/", "\\")
    assert load_dataset(write(folder, f"path,label\n{cell},a\n1.png,b\n")).paths[0] == (long / "0.png").as_posix()


@pytest.mark.skipif(os.sep != "/", reason="Windows has no such names")
def test_files_with_a_backslash_are_checked_in_threads(folder, monkeypatch):
    """In a table from Windows each path has a backslash, and each check over a network takes time."""
    threads, path_is_file = set(), os.path.isfile

    def is_file(path):
        if "\\" in os.path.basename(path):
            threads.add(threading.get_ident())
        return path_is_file(path)

    monkeypatch.setattr(os.path, "isfile", is_file)
    file = write(folder, "path,label\n" + "".join(f"sub\\{number}.png,a\n" for number in range(300)))
    with pytest.raises(InputError, match="does not exist"):
        load_dataset(file)
    assert threads
    assert threading.get_ident() not in threads


def test_columns_are_selected_by_name(folder):
    file = write(folder, "file,class,patient,path\n0.png,a,7,zzz\n1.png,b,007,zzz\n")
    dataset = load_dataset(file, path_column="file", label_column="class", group_column="patient")
    assert dataset.paths == ["0.png", "1.png"]
    assert dataset.table["group"].tolist() == ["7", "007"]
    assert dataset.table["path_given"].tolist() == ["zzz", "zzz"]


def test_names_of_columns_lose_spaces_around_them(folder):
    file = write(folder, "path, label, site,site\n0.png,a,north,1\n1.png,b,south,2\n")
    table = load_dataset(file).table
    assert table["site"].tolist() == ["north", "south"]
    assert table["site_given"].tolist() == [1, 2]


@pytest.mark.parametrize("options", [{}, {"require_labels": False, "for_training": False}])
def test_url_of_an_image_is_refused_as_it_is_written(folder, options):
    file = write(folder, "path,label\n0.png,a\n1.png,b\nhttps://host/x//a.jpg,a\n")
    with pytest.raises(InputError, match=mentioning("row 4", "'https://host/x//a.jpg'", "Download")):
        load_dataset(file, **options)


def test_codes_are_text_and_numbers_are_numbers(folder):
    """As numbers, codes lose their zeros and, beside an empty cell, the last digits of long ones."""
    header = "path,label,code,long,level,year,empty\n"
    rows = "0.png,a,007,20231105123456789,1.5,2014,\n1.png,b,12,,-2,,\n2.png,b,0,1,0.5,2016,\n"
    dataset = load_dataset(write(folder, header + rows))
    dataset.to_csv(folder / "again.csv")
    for table in (dataset.table, ImageDataset.from_csv(folder / "again.csv", root=folder, source="again").table):
        assert table["code"].tolist() == ["007", "12", "0"]
        assert table["long"].dropna().tolist() == ["20231105123456789", "1"]
        assert table["level"].tolist() == [1.5, -2, 0.5]
        assert table["year"].dropna().tolist() == [2014, 2016]
        assert table["empty"].isna().all()


def test_splits_have_aliases(folder):
    rows = ["train", "Validation", "valid", "test", "", "VAL"]
    labels = "ababba"  # both classes to train on
    text = "path,label,Split\n" + "".join(f"{i}.png,{labels[i]},{split}\n" for i, split in enumerate(rows))
    assert load_dataset(write(folder, text)).split.tolist() == ["train", "val", "val", "test", "", "val"]


def test_labels_that_differ_by_case_or_space_can_be_merged(folder):
    file = write(folder, "path,label\n0.png,oak\n1.png,Oak\n2.png,oak \n3.png,elm\n4.png,Elm\n")
    dataset = load_dataset(file, labels="casefold")
    assert dataset.class_names == ("Elm", "oak")  # the most frequent spelling, then alphabetical order
    assert dataset.labels.tolist() == [1, 1, 1, 0, 0]
    assert mentions(dataset.notes[0], "Oak", "oak")


def test_labels_in_other_unicode_forms_can_be_merged(folder):
    file = write(folder, f"path,label\n0.png,{NFC}\n1.png,{NFD}\n2.png,elm\n3.png,{NFC.upper()}\n4.png,{NFC}\n")
    dataset = load_dataset(file, labels="casefold")
    assert dataset.class_names == (NFC, "elm")
    assert dataset.labels.tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize(("form_in_table", "form_on_disk"), [(NFC, NFD), (NFD, NFC)])
def test_file_is_found_in_any_unicode_form(form_in_table, form_on_disk, folder):
    """The table of a spreadsheet with images from macOS; augmented copies keep their source."""
    (folder / form_on_disk).mkdir()
    for old, new in (("0.png", f"{form_on_disk}/{form_on_disk}.png"), ("1.png", f"{form_on_disk}/copy.png")):
        (folder / old).rename(folder / new)
    text = f"path,label,augmented_from\n{form_in_table}/{form_in_table}.png,a,\n2.png,b,\n"
    dataset = load_dataset(write(folder, f"{text}{form_in_table}/copy.png,a,{form_in_table}/{form_in_table}.png\n"))
    assert dataset.paths == [f"{form_on_disk}/{form_on_disk}.png", "2.png", f"{form_on_disk}/copy.png"]
    assert all(Path(dataset.file(row)).is_file() for row in range(3))
    assert dataset.table["augmented_from"].fillna("").tolist() == ["", "", f"{form_on_disk}/{form_on_disk}.png"]
    assert each_mentions(dataset.notes, ("2", "train.csv", "NFC", "NFD"))
    with pytest.raises(InputError, match=mentioning("2", "3")):
        load_dataset(write(folder, f"path,label\n{form_in_table}/copy.png,a\n{form_on_disk}/copy.png,b\n"))


@pytest.mark.parametrize(
    "header", ["filename,class", "file,target", "image_path,category", "Image,Species", "File Name,Label"]
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_usual_column_names_are_recognized_and_named(folder, header, suffix):
    file = write(folder, f"{header}\n0.png,01\n1.png,2\n")
    if suffix == "parquet":
        pd.read_csv(file, dtype=str).to_parquet(folder / "train.parquet")
    for options in ({}, {"require_labels": False, "for_training": False}):
        dataset = load_dataset(folder / f"train.{suffix}", **options)
        assert dataset.paths == ["0.png", "1.png"]
        assert dataset.class_names == ("01", "2")
        assert all(f"'{name}'" in dataset.notes[0] for name in header.split(",") if name != "label")


def test_exact_column_names_have_priority_over_usual_names(folder):
    dataset = load_dataset(write(folder, "image,path,label,class\nx,0.png,a,1\ny,1.png,b,2\n"))
    assert (dataset.paths, dataset.class_names, dataset.notes) == (["0.png", "1.png"], ("a", "b"), ())
    assert dataset.table["class"].tolist() == [1, 2]


def test_labels_like_missing_values_or_numbers_are_unchanged(folder):
    labels = ["nan", "NaN", "NA", "None", "true", "01"]
    file = write(folder, "path,label\n" + "".join(f"{n}.png,{label}\n" for n, label in enumerate(labels)))
    with pytest.raises(InputError, match=mentioning("nan", "NaN")):
        load_dataset(file)
    labels[1] = "null"
    file = write(folder, "path,label\n" + "".join(f"{n}.png,{label}\n" for n, label in enumerate(labels)))
    dataset = load_dataset(file)
    assert dataset.table["label"].tolist() == labels
    assert all(f"'{label}' (1 row)" in dataset.notes[0] for label in ("nan", "null", "NA", "None"))
    assert "'true'" not in dataset.notes[0]
    dataset.to_csv(folder / "again.csv")
    reloaded = ImageDataset.from_csv(folder / "again.csv", root=folder, source="again")
    assert (reloaded.digest(), reloaded.class_names) == (dataset.digest(), dataset.class_names)
    assert load_dataset(folder / "again.csv").digest() == dataset.digest()
    pd.DataFrame({"path": ["0.png", "1.png", "2.png"], "label": ["nan", "b", np.nan]}).to_parquet(folder / "t.parquet")
    found = load_dataset(folder / "t.parquet", require_labels=False, for_training=False)
    assert found.table["label"].fillna("missing").tolist() == ["nan", "b", "missing"]


def test_few_rows_without_a_file_are_listed_as_unreadable(folder):
    rows = "".join(f"{folder}/{n % 6}.png,{'ab'[n % 2]}\n" for n in range(6))
    for number in range(6, 40):
        Image.new("RGB", (8, 8), (number, 9, 0)).save(folder / f"{number}.png")
        rows += f"{number}.png,{'ab'[number % 2]}\n"
    report = validate_images(load_dataset(write(folder, f"path,label\n{rows}gone.png,a\nlost.png,b\n")))
    assert report.unreadable == {40: "does not exist", 41: "does not exist"}
    with pytest.raises(InputError, match=mentioning("gone.png", "42")):
        validate_images(load_dataset(write(folder, f"path,label\n{rows}gone.png,a\n")), strict=True)
    with pytest.raises(InputError, match=mentioning("42", "gone.png", "3", "43", "lost.png", "'x'")):
        load_dataset(write(folder, f"path,label\n{rows}gone.png,a\nlost.png,b\nx,b\n"))


@pytest.mark.parametrize("path", ["0", "sub/0", "0.png"])
def test_path_without_folder_or_suffix_suggests_the_file(path, folder):
    (folder / "train/sub").mkdir(parents=True)
    for copy in ("train/0.png", "train/sub/0.png"):
        shutil.copy(folder / "0.png", folder / copy)
    (folder / "0.png").unlink()
    suggestion = "train/sub/0.png" if path == "sub/0" else "train/0.png"
    with pytest.raises(InputError, match=mentioning(path, suggestion)):
        load_dataset(write(folder, f"path,label\n{path},a\n1,b\n"))


@pytest.mark.parametrize("content", ["struct", "bytes", "numbers"])
def test_parquet_with_embedded_images_is_rejected(folder, content):
    data = (folder / "0.png").read_bytes()
    cell = {"struct": {"bytes": data, "path": "0.png"}, "bytes": data, "numbers": [1, 2]}[content]
    pq.write_table(pa.table({"image": [cell] * 2, "label": ["a", "b"]}), folder / "t.parquet")
    for options in ({}, {"path_column": "image"}, {"require_labels": False}):
        with pytest.raises(InputError, match=mentioning("t.parquet", "'image'", "not paths")):
            load_dataset(folder / "t.parquet", **options)


def test_prediction_needs_no_labels(folder):
    dataset = load_dataset(write(folder, "path,latitude,longitude\n0.png,,\n1.png,3,4\n"), require_labels=False)
    assert dataset.labels.tolist() == [-1, -1]
    assert np.isnan(dataset.table["latitude"][0])


def test_prediction_ignores_invalid_degrees(folder):
    file = write(folder, 'path,latitude,longitude\n0.png,NA,1\n1.png,"48,1",2\n2.png,3,181\n')
    table = load_dataset(file, require_labels=False).table
    assert table["latitude"].fillna(-1).tolist() == [-1, -1, 3]
    assert table["longitude"].fillna(-1).tolist() == [1, 2, -1]


def test_prediction_ignores_unknown_splits(folder):
    file = write(folder, "path,split\n0.png,dev\n1.png,test\n")
    assert load_dataset(file, require_labels=False).split.tolist() == ["", "test"]


REJECTED = {
    "no path column": (
        "where,label\n0.png,a\n",
        r"train.csv has no column 'path'. Its columns are 'where', 'label'.*`path_column`",
    ),
    "no label column": ("path,labels\n0.png,a\n", r"no column 'label'; did you mean 'labels'\?.*`label_column`"),
    "missing file": (
        "path,label\n0.png,a\n9.png,b\n8.png,b\n",
        r"train.csv, row 3: '9.png' does not exist.*2 of 3 rows",
    ),
    "case": (
        "path,label\n0.png,oak\n1.png,Oak\n2.png,oak\n",
        r"train.csv, row 3: label 'Oak' .*differs from 'oak' \(2 rows\) only by case.*`labels=casefold`",
    ),
    "space": (
        "path,label\n0.png,oak\n1.png,oak \n2.png,oak\n",
        r"row 3: label 'oak ' .*differs from 'oak' .* surrounding space",
    ),
    "encoding": (
        f"path,label\n0.png,{NFC}\n1.png,{NFD}\n2.png,{NFC}\n",
        rf"row 3: label '{NFD}' .*differs from '{NFC}' \(2 rows\) .*Unicode.*`labels=casefold`",
    ),
    "all three": (
        f"path,label\n0.png,{NFC}\n1.png,{NFD.upper()} \n2.png,{NFC}\n",
        f"label '{NFD.upper()} ' .*differs from '{NFC}'",
    ),
    "encoding of a file that is not there": (f"path,label\n{NFD}.png,a\n1.png,b\n", f"row 2: '{NFD}.png' does not"),
    "empty label": ("path,label\n0.png,a\n1.png,\n2.png,b\n", r"row 3: the label is empty \(1 of 3 rows"),
    "neither column": ("place,kind\n0.png,a\n", r"no column 'path'\. .*'place', 'kind'.*`path_column`"),
    "two columns called label": ("path,label,label\n0.png,a,x\n1.png,b,y\n", r"columns 2 and 3 are all called 'label'"),
    "two columns called group": ("path,label,group,group\n0.png,a,x,y\n", r"columns 3 and 4 .* 'group'"),
    "two columns called split": ("path,label,split,split\n0.png,a,x,y\n", r"columns 3 and 4 .* 'split'"),
    "two columns like split": ("path,label,Split,SPLIT\n0.png,a,x,y\n", r"'Split', 'SPLIT' may all be the split"),
    "two columns that may be the label": (
        "path,class,species\n0.png,a,x\n",
        r"several columns may hold the label: 'class', 'species'.*`label_column`",
    ),
    "no header": ("0.png,a\n1.png,b\n", r"train.csv, row 1: '0.png' is an image.*no header.*path,label"),
    "no header, label first": ("a,0.png\nb,1.png\n", r"row 1: '0.png'"),
    "empty path": ("path,label\n,a\n1.png,b\n", "row 2: the path is empty"),
    "twice": ("path,label\n0.png,a\n1.png,b\n0.png,a\n", r"train.csv, row 2 and row 4: '0.png' is listed twice "),
    "twice, unlike": (
        "path,label\n0.png,a\n1.png,b\n./0.png,b\n",
        "row 4: .* listed twice with different labels, 'a' and 'b'",
    ),
    "latitude": ("path,label,latitude,longitude\n0.png,a,91,0\n1.png,b,1,0\n", r"row 2: latitude is 91.* -90 to 90"),
    "longitude": ("path,label,latitude,longitude\n0.png,a,9,0\n1.png,b,1,x\n", r"row 3: longitude is x.* -180 to 180"),
    "no place": (
        "path,label,latitude,longitude\n0.png,a,9,0\n1.png,b,NaN,7\n",
        "row 3: the latitude is empty, but 1 of 2",
    ),
    "decimals behind a comma": (
        "path;label;latitude;longitude\n0.png;a;48,1;11,5\n1.png;b;1;2\n",
        r"row 2: latitude is 48,1.*decimal point",
    ),
    "half a place": ("path,label,latitude\n0.png,a,9\n1.png,b,3\n", "a latitude but no longitude"),
    "unknown split": ("path,label,split\n0.png,a,train\n1.png,b,dev\n", "row 3: 'dev' is not a split.*train"),
    "unknown splits": (
        "path,label,split\n0.png,a,train\n1.png,b,dev\n2.png,b,eval\n3.png,b,dev\n",
        "row 3: 'dev', 'eval' .* in 2 more rows.*train",
    ),
    "several labels that differ by case": (
        "path,label\n0.png,oak\n1.png,Oak\n2.png,oak\n3.png,elm\n4.png,ELM\n5.png,elm\n",
        r"row 3: label 'Oak' .*differs from 'oak' \(2 rows\).* 1 more label.*'ELM'",
    ),
    "val alone": ("path,label,split\n0.png,a,val\n1.png,b,val\n", "val without train.*Mark rows as train"),
    "unseen": (
        "path,label,split\n0.png,a,train\n1.png,b,\n2.png,c,test\n",
        r"label unseen in training: 'c' occurs only in test \(train.csv, row 4\)",
    ),
    "one class": ("path,label\n0.png,a\n1.png,a\n", r"one class only, 'a' \(2 rows\)"),
    "several faults": (
        "path,label\n,a\n0.png,\n1.png,b\n1.png,b\n",
        "row 2: the path is empty.*also has 1 row with no label and 1 row with an image of another row",
    ),
    "an empty label and a repeated image": (
        "path,label\n0.png,\n1.png,b\n1.png,b\n2.png,a\n",
        "row 2: the label is empty.*also has 1 row with an image of another row",
    ),
    "no rows": ("path,label\n", "has a header but no rows"),
    "nothing": ("", "train.csv is empty"),
    "Excel's first line": ("sep=;\npath;label\n0.png;a\n", "begins with 'sep=;'"),
    "a title": ("My images\npath,label\n0.png,a\n1.png,b\n", r"more cells than the first line names \('My images'\)"),
    "ragged": ("path,label\n0.png,a\n1.png,b,c\n", "train.csv is not a valid table"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_invalid_tables_are_rejected(folder, case):
    text, message = REJECTED[case]
    with pytest.raises(InputError, match=f"(?s){message}"):
        load_dataset(write(folder, text))


def test_files_that_are_not_tables_are_rejected(folder):
    with pytest.raises(InputError, match=mentioning("UTF-8")):
        load_dataset(write(folder, "path,label\n0.png,é\n", encoding="latin-1"))
    (folder / "t.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=mentioning("t.parquet")):
        load_dataset(folder / "t.parquet")
    with pytest.raises(InputError, match=mentioning("CSV")):
        load_dataset(write(folder, "x", "notes.txt"))


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("photos.zip", ("Unpack it first, and give the folder",)),
        ("labels.XLSX", ("CSV", "UTF-8")),
        ("photo.cr2", ("JPEG",)),
    ],
)
def test_other_file_types_are_rejected_with_a_fix(folder, name, fix):
    with pytest.raises(InputError, match=mentioning(*fix)):
        load_dataset(write(folder, "x", name))


def test_group_may_be_called_nan(folder):
    """Nan is a province of Thailand. The text of a missing number is still missing."""
    dataset = load_dataset(write(folder, "path,label,group\n0.png,a,Nan\n1.png,b,NAN\n2.png,a,nan\n3.png,b,NaN\n"))
    assert dataset.table["group"].fillna("missing").tolist() == ["Nan", "NAN", "missing", "missing"]
    dataset = load_dataset(write(folder, "path,label\n0.png,Nan\n1.png,b\n2.png,Nan\n3.png,b\n"))
    assert dataset.class_names == ("Nan", "b")


def test_groups_that_may_be_missing_are_reported(folder):
    dataset = load_dataset(write(folder, "path,label,group\n0.png,a,NA\n1.png,b,NA\n2.png,a,P1\n3.png,b,P2\n"))
    assert dataset.table["group"].tolist() == ["NA", "NA", "P1", "P2"]
    assert each_mentions(dataset.notes, ("group", "'NA'", "2"))


@pytest.mark.parametrize("header", ["Path,Label,Group", "path, label, group"])
def test_group_is_recognized_in_any_case(header, folder):
    dataset = load_dataset(write(folder, f"{header}\n0.png,a,P17\n1.png,b,P17\n2.png,a,18\n3.png,b,18\n"))
    assert dataset.table["group"].tolist() == ["P17", "P17", "18", "18"]


def test_groups_are_stripped(folder):
    """Otherwise P17 would be in two splits."""
    dataset = load_dataset(write(folder, "path,label,group\n0.png,a,P17\n1.png,b,P17 \n2.png,a, P17\n3.png,b, \n"))
    assert dataset.table["group"].iloc[:3].tolist() == ["P17"] * 3
    assert dataset.table["group"].isna().tolist() == [False] * 3 + [True]
    pd.DataFrame({"path": ["0.png", "1.png"], "label": ["a", "b"], "site": ["x ", "x"]}).to_parquet(
        folder / "t.parquet"
    )
    assert load_dataset(folder / "t.parquet", group_column="site").table["group"].tolist() == ["x", "x"]


def test_exact_spelling_of_a_column_has_priority(folder):
    file = write(
        folder,
        "path,label,Latitude,Longitude,latitude,longitude,Split,split,SPLIT\n"
        "0.png,a,north,east,1.5,2.5,first,train,x\n1.png,b,south,west,3.5,4.5,second,,y\n",
    )
    table = load_dataset(file).table
    assert table["latitude"].tolist() == [1.5, 3.5]
    assert table["Latitude"].tolist() == ["north", "south"]
    assert table["split"].tolist() == ["train", ""]
    assert (table["Split"].tolist(), table["SPLIT"].tolist()) == (["first", "second"], ["x", "y"])
    assert table.columns.is_unique


def test_other_column_is_renamed_if_its_name_is_taken(folder):
    file = write(folder, "file,label,path,path_given\n0.png,a,1,2\n1.png,b,3,4\n")
    table = load_dataset(file, path_column="file").table
    assert table["path_given"].tolist() == [1, 3]
    assert table["path_given_given"].tolist() == [2, 4]


@pytest.mark.parametrize(
    ("columns", "facts"),
    [
        ({"group_column": "path"}, ("path_column", "group_column")),
        ({"group_column": "label"}, ("label_column", "group_column")),
        ({"label_column": "path"}, ("path_column", "label_column")),
        ({"label_column": "x", "group_column": "x"}, ("group_column",)),
    ],
)
def test_one_column_cannot_have_two_roles(folder, columns, facts):
    with pytest.raises(InputError, match=mentioning(*facts)):
        load_dataset(write(folder, "path,label,x\n0.png,a,1\n1.png,b,2\n"), **columns)


def test_path_through_a_link_is_not_normalized(folder):
    """sub/.. is the parent of the target of the link."""
    (folder / "far/deep").mkdir(parents=True)
    (folder / "sub").symlink_to(folder / "far/deep", target_is_directory=True)
    (folder / "far/x.png").write_bytes((folder / "0.png").read_bytes())
    assert load_dataset(write(folder, "path,label\nsub/../x.png,a\n1.png,b\n")).file(0).endswith("sub/../x.png")
