"""What a dataset answers, writes and reads back."""

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


def test_a_table_that_is_written_again_is_whole_at_every_moment(dataset, tmp_path, monkeypatch):
    dataset.to_csv(tmp_path / "again.csv")
    before = (tmp_path / "again.csv").read_bytes()
    write = pd.DataFrame.to_csv

    def stopped(table, file, **options):
        write(table.head(2), file, **options)
        assert (tmp_path / "again.csv").read_bytes() == before, "as another process would find it"
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", stopped)
    with pytest.raises(KeyboardInterrupt):
        dataset.to_csv(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == before


def test_what_ends_a_line_elsewhere_ends_none_of_a_manifest(dataset, tmp_path):
    """Cells of several lines as old spreadsheets write them, before a column that decides; folders of CRLF scripts."""
    noted = dataset.table.assign(note="one\rtwo", group=dataset.table["group"])[
        ["path", "label", "split", "note", "group"]
    ]
    for name in ("noted.csv", "moved/noted.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        replace(dataset, table=noted).to_csv(tmp_path / name)
        again = load_dataset(tmp_path / name)
        assert again.table["note"].tolist() == ["one\rtwo"] * 6
        assert again.table["group"].tolist() == ["1", "01", "1", "2", "2", "3"]
    kept = ImageDataset.from_csv(tmp_path / "moved/noted.csv", root=tmp_path, source="noted.csv")
    assert (kept.digest(), kept.paths) == (dataset.digest(), dataset.paths)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_folder_may_be_called_with_what_ends_lines(tmp_path):
    for name in ("cat\r", "dog"):
        (tmp_path / "all" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "all" / name / f"{name[0]}{number}.png")
    found = load_dataset(tmp_path / "all")
    found.to_csv(tmp_path / "list.csv")
    kept = ImageDataset.from_csv(tmp_path / "list.csv", root=tmp_path / "all", source="all")
    assert (kept.digest(), kept.class_names) == (found.digest(), ("cat", "dog"))
    assert len(load_dataset(tmp_path / "list.csv")) == 4


def test_a_class_keeps_its_id_in_every_part(dataset):
    val = dataset.subset("val")
    assert val.class_names == ("a", "b", "c")  # though val has no c
    assert val.labels.tolist() == [0, 1]
    assert val.where(0) == "all.csv, row 5"
    picked = dataset.select([4, 0])
    assert (picked.paths, picked.labels.tolist(), picked.rows.tolist()) == (["4,é.png", "0,é.png"], [1, 1], [6, 2])


def test_there_is_no_empty_part(dataset):
    with pytest.raises(InputError, match=mentioning("test")):
        dataset.subset("test")
    with pytest.raises(InputError, match=mentioning("vall", "did you mean")):
        dataset.subset("vall")


def test_a_written_manifest_is_the_same_data_from_wherever_it_lies(dataset, tmp_path):
    out = tmp_path / "runs/1/dataset.csv"
    out.parent.mkdir(parents=True)
    dataset.to_csv(out)
    back = ImageDataset.from_csv(out, root=dataset.root, source=dataset.source)
    assert back.digest() == dataset.digest()
    pd.testing.assert_frame_equal(back.table, dataset.table)
    again = load_dataset(out)  # as data of another run
    assert [Path(again.file(i)).resolve() for i in range(6)] == [Path(dataset.file(i)) for i in range(6)]
    assert again.labels.tolist() == dataset.labels.tolist()


def test_the_digest_changes_with_any_path_label_split_or_order(dataset):
    digests = {dataset.digest(), dataset.select([1, 0, 2, 3, 4, 5]).digest(), dataset.select(range(5)).digest()}
    for column, value in (("path", "x.png"), ("label", "c"), ("split", "test")):
        table = dataset.table.copy()
        table.loc[0, column] = value
        other = ImageDataset(root=dataset.root, source="", table=table, class_names=dataset.class_names)
        digests.add(other.digest())
    assert len(digests) == 6


def test_the_digest_does_not_depend_on_the_process(dataset):
    """Counts and texts with NULs between, by hand."""
    import hashlib

    paths = "\0".join(f"{i},é.png" for i in range(6))
    text = f"6\0{paths}6\0b\0a\0c\0a\0b\0c6\0train\0train\0train\0val\0val\0"
    assert dataset.digest() == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def test_labels_cannot_be_changed_by_accident(dataset):
    with pytest.raises(ValueError, match="read-only"):
        dataset.labels[0] = 2


def test_a_run_without_its_dataset_table_is_refused(tmp_path):
    with pytest.raises(InputError, match=mentioning("dataset.csv", "run")):
        ImageDataset.from_csv(tmp_path / "dataset.csv", root=tmp_path, source="x")
    (tmp_path / "dataset.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=mentioning("dataset.csv", "run")):
        ImageDataset.from_csv(tmp_path / "dataset.csv", root=tmp_path, source="x")


def test_a_table_written_through_a_link_leads_to_its_files(dataset, tmp_path):
    """runs leads to a deeper folder elsewhere, from where the way up is another than from runs."""
    (tmp_path / "scratch/of/me/runs").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "scratch/of/me/runs", target_is_directory=True)
    for number in (1, 2):
        (tmp_path / f"runs/{number}").mkdir()
    out = tmp_path / "runs/1/dataset.csv"
    dataset.to_csv(out)
    back = ImageDataset.from_csv(out, root=dataset.root, source=dataset.source)
    assert back.digest() == dataset.digest()
    again = load_dataset(out)
    again.to_csv(tmp_path / "runs/2/dataset.csv")  # as data of another run there
    for table in (again, load_dataset(tmp_path / "runs/2/dataset.csv")):
        assert all(os.path.samefile(table.file(i), dataset.file(i)) for i in range(6))


def test_a_link_further_up_keeps_the_short_way(dataset, tmp_path):
    """Where data and runs lie behind the same link, they may move together."""
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    here = load_dataset(tmp_path / "link/all.csv")
    (tmp_path / "runs").mkdir()
    assert here.relative_to(tmp_path / "link/runs/dataset.csv")["path"].iloc[0] == "../0,é.png"


def test_what_was_derived_does_not_travel_and_opening_makes_no_list_of_paths(dataset):
    """Of millions of images, each process would get or make its own."""
    first = dataset.file(0)
    assert "paths" not in vars(dataset)
    assert len(dataset.paths) == len(dataset.labels)
    assert {"paths", "labels"} <= set(vars(dataset))
    again = pickle.loads(pickle.dumps(dataset))
    assert not {"paths", "_path_cells", "labels", "targets"} & set(vars(again))
    assert (again.file(0), again.paths, again.labels.tolist()) == (first, dataset.paths, dataset.labels.tolist())
    assert again.digest() == dataset.digest()


def test_files_are_named_without_a_look_at_the_table_for_each(dataset, monkeypatch):
    """Of a million it took half a minute, several times over before a run's first step."""
    looked, really = [], pd.DataFrame.__getitem__

    def look(table, key):
        looked.append(key)
        return really(table, key)

    monkeypatch.setattr(pd.DataFrame, "__getitem__", look)
    named = [dataset.file(row) for row in range(len(dataset))]
    assert len(set(named)) == len(dataset)
    assert looked == ["path"]
