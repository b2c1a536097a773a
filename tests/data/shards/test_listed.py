"""A table whose paths point into shards, as a run's dataset.csv does."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pandas as pd
import pytest
from tests.messages import mentioning, mentions

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.readers import source_reader
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.data.validate import val_max_images
from efficientnetv2.utils.errors import InputError


@pytest.fixture
def packed(class_folders, tmp_path):
    """48 images in 12 shards of 4; their dataset, as a run writes it beside itself."""
    write_shards(
        load_dataset(class_folders), tmp_path / "shards", PackOptions(shard_bytes=10**9, shard_images=4)
    )
    dataset = load_dataset(tmp_path / "shards")
    split = np.where(np.arange(48) % 4 == 0, "val", "train").astype(object)
    dataset = dataset.with_split(split)
    (tmp_path / "runs/one").mkdir(parents=True)
    dataset.to_csv(tmp_path / "runs/one/dataset.csv")
    return dataset


def rewritten(file, change):
    table = pd.read_csv(file, keep_default_na=False)
    change(table).to_csv(file, index=False)
    return file


def test_what_a_run_on_shards_wrote_is_data_again(packed, class_folders, tmp_path):
    again = load_dataset(tmp_path / "runs/one/dataset.csv")
    assert again.digest() == packed.digest()
    assert again.class_names == packed.class_names
    assert again.where(3) == "dataset.csv, row 5"
    reader, files = source_reader(again), load_dataset(class_folders)
    for row in (0, 17, 47):
        with open(files.file(row), "rb") as file:
            assert reader.source(row) == file.read()
    report = val_max_images(again)
    assert len(report.unreadable) == 0
    assert report.contents.tolist() == val_max_images(packed).contents.tolist()


def test_without_an_index_the_headers_tell_the_places(packed, tmp_path):
    (tmp_path / "shards/index.parquet").unlink()
    again = load_dataset(tmp_path / "runs/one/dataset.csv")
    assert again.digest() == packed.digest()
    assert source_reader(again).source(5) == source_reader(packed).source(5)


def test_the_tables_own_words_hold_and_its_rows_alone(packed, tmp_path):
    """A label corrected, rows left out, another order, and no column but two: what people do with a table."""

    def change(table):
        table.loc[7, "label"] = "red"
        return table.loc[[40, 7, 30, 2], ["path", "label"]]

    again = load_dataset(rewritten(tmp_path / "runs/one/dataset.csv", change))
    assert again.paths == [packed.paths[row] for row in (40, 7, 30, 2)]
    assert again.table["label"].tolist()[1] == "red"
    assert source_reader(again).source(0) == source_reader(packed).source(40)


def test_a_manifest_from_elsewhere_names_its_shards_absolutely(packed, tmp_path):
    def change(table):
        return table.assign(path=table["path"].str.replace("../..", tmp_path.as_posix(), regex=False))

    file = rewritten(tmp_path / "runs/one/dataset.csv", change)
    (tmp_path / "other").mkdir()
    moved = file.rename(tmp_path / "other/list.csv")
    assert load_dataset(moved).digest() == packed.digest()


def path_of(row, path):
    def change(table):
        table.loc[row, "path"] = path
        return table

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (path_of(3, "../../pictures/red/red_00.jpg"), ("row 5", "red_00.jpg", "tables of their own")),
        (path_of(3, "../../shards/pictures-000000.tar#no.jpg"), ("row 5", "no.jpg", "1 of 48 rows")),
        (path_of(3, "../../else/pictures-000000.tar#a.jpg"), ("2 folders", "/else", "one folder")),
        (lambda table: table.loc[[0, 1, 20, 1]], ("row 3 and row 5", "listed twice")),
        (
            lambda table: table.assign(path=table["path"].str.replace("/shards/", "/gone/")),
            ("no such shards",),
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_its_row(change, words, packed, tmp_path):
    with pytest.raises(InputError) as refused:
        load_dataset(rewritten(tmp_path / "runs/one/dataset.csv", change))
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_missing_shard_is_damage_as_it_is_for_the_shards_themselves(packed, tmp_path):
    (tmp_path / "shards/pictures-000005.tar").unlink()
    report = val_max_images(load_dataset(tmp_path / "runs/one/dataset.csv"))
    assert len(report.unreadable) == 4
    assert mentions(report.notes[0], "pictures-000005.tar", "0", "4")
    (tmp_path / "shards/index.parquet").unlink()
    with pytest.raises(InputError, match=mentioning("pictures-000005.tar", "4", "48")):
        load_dataset(tmp_path / "runs/one/dataset.csv")


def test_images_of_one_name_cannot_be_told_apart_by_a_table(class_folders, tmp_path):
    """Tars of others may say the same path of two images; a table of them would point to either."""
    with tarfile.open(tmp_path / "theirs.tar", "w") as tar:
        for number, name in enumerate(("red", "blue")):
            facts = json.dumps({"path": "one.jpg", "label": name}).encode()
            picture = (class_folders / name / f"{name}_00.jpg").read_bytes()
            for extension, content in (("jpg", picture), ("json", facts)):
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    load_dataset(tmp_path / "theirs.tar").select([0]).to_csv(tmp_path / "one.csv")
    with pytest.raises(InputError, match=mentioning("one.csv", "theirs.tar#one.jpg")):
        load_dataset(tmp_path / "one.csv", for_training=False)


def test_a_table_written_through_a_link_leads_to_its_shards(packed, tmp_path):
    """The way up from a folder that a link leads to begins where the folder really lies."""
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "far/away", target_is_directory=True)
    packed.to_csv(tmp_path / "linked/dataset.csv")
    again = load_dataset(tmp_path / "linked/dataset.csv")
    assert again.digest() == packed.digest()
    assert source_reader(again).source(17) == source_reader(packed).source(17)
