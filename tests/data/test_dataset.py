"""Properties of a dataset, and writing and reading dataset.csv."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from tests.messages import mentioning

from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.utils.errors import InputError


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    for number in range(6):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number},é.png")
    pd.DataFrame(
        {
            "path": [f"{i},é.png" for i in range(6)],
            "label": ["b", "a", "c", "a", "b", "c"],
            "split": ["train", "train", "train", "val", "val", ""],
            "group": ["1", "01", "1", "2", "2", "3"],
            "year": range(2000, 2006),
        }
    ).to_csv(tmp_path / "all.csv", index=False)
    return load_dataset(tmp_path / "all.csv")


def test_dataset_csv_is_replaced_atomically(dataset, tmp_path, monkeypatch):
    dataset.to_csv(tmp_path / "again.csv")
    before = (tmp_path / "again.csv").read_bytes()
    to_csv = pd.DataFrame.to_csv

    def interrupt(table, file, **options):
        to_csv(table.head(2), file, **options)
        assert (tmp_path / "again.csv").read_bytes() == before, "as seen by another process"
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dataset.to_csv(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == before


def test_carriage_returns_in_cells_do_not_end_rows(dataset, tmp_path):
    """In a cell before the group column, and in folder names."""
    table = dataset.table.assign(note="one\rtwo", group=dataset.table["group"])[
        ["path", "label", "split", "note", "group"]
    ]
    for name in ("noted.csv", "moved/noted.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        replace(dataset, table=table).to_csv(tmp_path / name)
        loaded = load_dataset(tmp_path / name)
        assert loaded.table["note"].tolist() == ["one\rtwo"] * 6
        assert loaded.table["group"].tolist() == ["1", "01", "1", "2", "2", "3"]
    saved = ImageDataset.from_csv(tmp_path / "moved/noted.csv", root=tmp_path, source="noted.csv")
    assert (saved.digest(), saved.paths) == (dataset.digest(), dataset.paths)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_folder_name_may_end_with_a_carriage_return(tmp_path):
    for name in ("cat\r", "dog"):
        (tmp_path / "all" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "all" / name / f"{name[0]}{number}.png")
    dataset = load_dataset(tmp_path / "all")
    dataset.to_csv(tmp_path / "list.csv")
    saved = ImageDataset.from_csv(tmp_path / "list.csv", root=tmp_path / "all", source="all")
    assert (saved.digest(), saved.class_names) == (dataset.digest(), ("cat", "dog"))
    assert len(load_dataset(tmp_path / "list.csv")) == 4


def test_class_ids_are_the_same_in_every_split(dataset):
    val = dataset.subset("val")
    assert val.class_names == ("a", "b", "c")  # though val has no c
    assert val.labels.tolist() == [0, 1]
    assert val.where(0) == "all.csv, row 5"
    selected = dataset.select([4, 0])
    assert (selected.paths, selected.labels.tolist(), selected.rows.tolist()) == (
        ["4,é.png", "0,é.png"],
        [1, 1],
        [6, 2],
    )


def test_empty_or_unknown_split_is_rejected(dataset):
    with pytest.raises(InputError, match=mentioning("test")):
        dataset.subset("test")
    with pytest.raises(InputError, match=mentioning("vall", "did you mean")):
        dataset.subset("vall")


def test_dataset_csv_is_the_same_data_in_any_folder(dataset, tmp_path):
    out = tmp_path / "runs/1/dataset.csv"
    out.parent.mkdir(parents=True)
    dataset.to_csv(out)
    saved = ImageDataset.from_csv(out, root=dataset.root, source=dataset.source)
    assert saved.digest() == dataset.digest()
    pd.testing.assert_frame_equal(saved.table, dataset.table)
    loaded = load_dataset(out)  # as data of another run
    assert [Path(loaded.file(i)).resolve() for i in range(6)] == [Path(dataset.file(i)) for i in range(6)]
    assert loaded.labels.tolist() == dataset.labels.tolist()


def test_digest_changes_with_path_label_split_and_order(dataset):
    digests = {dataset.digest(), dataset.select([1, 0, 2, 3, 4, 5]).digest(), dataset.select(range(5)).digest()}
    for column, value in (("path", "x.png"), ("label", "c"), ("split", "test")):
        table = dataset.table.copy()
        table.loc[0, column] = value
        other = ImageDataset(root=dataset.root, source="", table=table, class_names=dataset.class_names)
        digests.add(other.digest())
    assert len(digests) == 6


def test_digest_does_not_depend_on_the_process(dataset):
    """Counts and NUL-separated texts, by hand."""
    import hashlib

    paths = "\0".join(f"{i},é.png" for i in range(6))
    text = f"6\0{paths}6\0b\0a\0c\0a\0b\0c6\0train\0train\0train\0val\0val\0"
    assert dataset.digest() == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def test_labels_are_read_only(dataset):
    with pytest.raises(ValueError, match="read-only"):
        dataset.labels[0] = 2


def test_run_without_dataset_csv_is_rejected(tmp_path):
    with pytest.raises(InputError, match=mentioning("dataset.csv", "run")):
        ImageDataset.from_csv(tmp_path / "dataset.csv", root=tmp_path, source="x")
    (tmp_path / "dataset.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=mentioning("dataset.csv", "run")):
        ImageDataset.from_csv(tmp_path / "dataset.csv", root=tmp_path, source="x")


def test_dataset_csv_written_through_a_link_has_valid_paths(dataset, tmp_path):
    """``runs`` links to a deeper folder, where ``..`` is another folder."""
    (tmp_path / "scratch/of/me/runs").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "scratch/of/me/runs", target_is_directory=True)
    for number in (1, 2):
        (tmp_path / f"runs/{number}").mkdir()
    out = tmp_path / "runs/1/dataset.csv"
    dataset.to_csv(out)
    saved = ImageDataset.from_csv(out, root=dataset.root, source=dataset.source)
    assert saved.digest() == dataset.digest()
    loaded = load_dataset(out)
    loaded.to_csv(tmp_path / "runs/2/dataset.csv")  # as data of another run there
    for table in (loaded, load_dataset(tmp_path / "runs/2/dataset.csv")):
        assert all(os.path.samefile(table.file(i), dataset.file(i)) for i in range(6))


def test_link_above_data_and_run_keeps_short_paths(dataset, tmp_path):
    """Data and runs behind the same link can be moved together."""
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    linked = load_dataset(tmp_path / "link/all.csv")
    (tmp_path / "runs").mkdir()
    assert linked.relative_to(tmp_path / "link/runs/dataset.csv")["path"].iloc[0] == "../0,é.png"


def test_derived_data_is_not_pickled_and_file_needs_no_list_of_paths(dataset):
    """With millions of images each process would get a copy."""
    first = dataset.file(0)
    assert "paths" not in vars(dataset)
    assert len(dataset.paths) == len(dataset.labels)
    assert {"paths", "labels"} <= set(vars(dataset))
    unpickled = pickle.loads(pickle.dumps(dataset))
    assert not {"paths", "_path_cells", "labels", "targets"} & set(vars(unpickled))
    assert (unpickled.file(0), unpickled.paths, unpickled.labels.tolist()) == (
        first,
        dataset.paths,
        dataset.labels.tolist(),
    )
    assert unpickled.digest() == dataset.digest()


def test_file_names_need_one_column_access(dataset, monkeypatch):
    """A million accesses took half a minute, several times before the first step."""
    accessed, getitem = [], pd.DataFrame.__getitem__

    def access(table, key):
        accessed.append(key)
        return getitem(table, key)

    monkeypatch.setattr(pd.DataFrame, "__getitem__", access)
    files = [dataset.file(row) for row in range(len(dataset))]
    assert len(set(files)) == len(dataset)
    assert accessed == ["path"]
