"""Datasets from shards: folder, index or pattern, with damage and invalid input; and the dataset.csv of a run."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import paint
from tests.messages import each_mentions, mentioning, mentions

from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.image_checks import validate_images
from efficientnetv2.data.readers import source_reader
from efficientnetv2.data.shards.index import expand_braces, load_index, save_index
from efficientnetv2.data.shards.storage import LocalStore, Range
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.utils.errors import InputError


@pytest.fixture
def shards(class_folders: Path, tmp_path: Path) -> Path:
    """48 images in 12 shards of 4."""
    write_shards(load_dataset(class_folders), tmp_path / "shards", PackOptions(shard_bytes=10**9, shard_images=4))
    return tmp_path / "shards"


def test_braces_expand_as_in_bash():
    assert expand_braces("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert expand_braces("{train,val}-{0..1}.tar") == ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    with pytest.raises(InputError, match=mentioning("5", "3")):
        expand_braces("x-{5..3}.tar")


@pytest.mark.parametrize("data", ["", "/", "/index.parquet", "/images-{000000..000011}.tar", "/*.tar"])
def test_folder_index_and_pattern_give_the_same_dataset(data, shards, class_folders):
    dataset = load_dataset(f"{shards}{data}")
    assert dataset.labels.tolist() == load_dataset(class_folders).labels.tolist()
    assert dataset.digest() == load_dataset(shards).digest()


def test_pattern_selects_shards(shards):
    dataset = load_dataset(f"{shards}/images-{{000002..000003}}.tar", for_training=False)
    assert len(dataset) == 8
    full = load_dataset(shards)
    assert sorted(dataset.paths) == sorted(
        path for path in full.paths if path[:13] in ("images-000002", "images-000003")
    )
    row = full.paths.index(dataset.paths[3])
    assert source_reader(dataset).source(3) == source_reader(full).source(row)


def test_dataset_csv_is_read_back_equal(shards, tmp_path):
    dataset = load_dataset(shards)
    (tmp_path / "runs/one").mkdir(parents=True)
    file = tmp_path / "runs/one/dataset.csv"
    dataset.to_csv(file)
    reloaded = ImageDataset.from_csv(file, root=dataset.root, source=dataset.source)
    assert reloaded.digest() == dataset.digest()
    from_the_run = ImageDataset.from_csv(file, root=file.parent, source="run")
    assert [Path(from_the_run.file(row)).resolve() for row in range(48)] == [
        Path(dataset.file(row)).resolve() for row in range(48)
    ]


def test_complete_index_needs_no_image_checks_and_has_duplicates(class_folders, tmp_path):
    shutil.copy(class_folders / "red/red_00.jpg", class_folders / "red/red_99.jpg")
    files = load_dataset(class_folders)
    write_shards(files, tmp_path / "shards", PackOptions(10**9))
    report, of_files = (validate_images(load_dataset(tmp_path / "shards")), validate_images(files))
    assert len(report.unreadable) == 0
    assert report.contents.tolist() == of_files.contents.tolist()
    assert report.notes == of_files.notes
    assert mentions(report.notes[0], "1", "49")


def test_truncated_shard_is_named_and_its_other_images_used(shards):
    file = shards / "images-000005.tar"
    dataset = load_dataset(shards)
    rows = dataset.table[dataset.table["shard"] == 5].sort_values("shard_offset")
    intact = rows.index[:2]
    file.write_bytes(file.read_bytes()[: rows["shard_offset"].iloc[2] + 10])
    report = validate_images(dataset)
    assert list(report.unreadable) == sorted(rows.index[2:])
    assert all("is lost: the shard is cut short" in reason for reason in report.unreadable.values())
    assert mentions(report.notes[0], "images-000005.tar")
    assert mentions(report.notes[0], "2", "4")
    assert all(source_reader(dataset).source(int(row)) for row in intact)
    with pytest.raises(InputError, match=mentioning("images-000005.tar", "strict")):
        validate_images(dataset, strict=True)


def test_missing_shard_is_named_and_the_others_used(shards):
    """4 of 48 exceed the 5 % limit for unreadable images, which does not count damaged shards."""
    (shards / "images-000005.tar").unlink()
    dataset = load_dataset(shards)
    report = validate_images(dataset)
    assert len(report.unreadable) == 4
    assert mentions(report.notes[0], "images-000005.tar", "0", "4")


def test_reading_a_lost_image_names_the_shard(shards):
    from efficientnetv2.data.image_io import UnreadableImageError

    dataset = load_dataset(shards)
    row = int(dataset.table.index[dataset.table["shard"] == 5][0])
    file = shards / "images-000005.tar"
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(UnreadableImageError, match=mentioning("images-000005.tar")):
        source_reader(dataset).source(row)
    file.unlink()
    with pytest.raises(UnreadableImageError, match=mentioning("images-000005.tar", "shard")):
        source_reader(dataset).ahead([row]).source(row)


def test_broken_file_handle_is_reopened(shards):
    """As after a network share was disconnected. Here the handle is only open for writing."""
    store = LocalStore(str(shards))
    name = "images-000005.tar"
    (content,) = store.read([Range(name, 0, 600)])
    handle = store._open_files(str(shards / name))._handle
    with (shards.parent / "other").open("wb") as other:
        os.dup2(other.fileno(), handle)
    with pytest.raises(OSError, match=mentioning("Bad file descriptor")):
        os.pread(handle, 600, 0)
    assert store.read([Range(name, 0, 600)]) == [content]
    assert each_mentions(store.read([Range("nowhere.tar", 0, 600)]), ("nowhere.tar", "shard"))


def test_shard_of_another_size_than_in_the_index_is_rejected(shards):
    with (shards / "images-000001.tar").open("ab") as file:
        file.write(b"\0" * 10_240)
    with pytest.raises(InputError, match=mentioning("images-000001.tar")):
        validate_images(load_dataset(shards))


def test_another_column_can_be_the_label(tmp_path):
    rows = [
        {
            "path": paint(tmp_path / f"{n}.jpg", (50, 9 * n, 0), n).name,
            "label": "ab"[n % 2],
            "species": "xyz"[n % 3],
            "code": ["007", "12", "07"][n % 3],
        }
        for n in range(12)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    write_shards(load_dataset(tmp_path / "t.csv"), tmp_path / "shards", PackOptions(10**9))
    assert load_dataset(tmp_path / "shards", label_column="species").class_names == ("x", "y", "z")
    assert load_dataset(tmp_path / "shards", label_column="code").class_names == ("007", "07", "12")
    with pytest.raises(InputError, match=mentioning("did you mean", "species")):
        load_dataset(tmp_path / "shards", label_column="specie")


def change_header(file: Path, **changes: object) -> None:
    table = pq.read_table(file)
    header = json.loads(table.schema.metadata[b"efficientnetv2_shards"]) | changes
    metadata = table.schema.metadata | {b"efficientnetv2_shards": json.dumps(header).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), file)


def test_index_of_another_version_is_rejected(shards):
    change_header(shards / "index.parquet", version=9)
    with pytest.raises(InputError, match=mentioning("9", "1", "index")):
        load_dataset(shards)


def test_damaged_index_is_rejected(shards):
    file = shards / "index.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=mentioning("index.parquet")):
        load_dataset(shards)


def test_index_with_too_few_shards_is_rejected(shards):
    change_header(shards / "index.parquet", shards=[])
    with pytest.raises(InputError, match=mentioning("0", "shard")):
        load_dataset(shards)


def test_index_with_a_duplicate_image_is_rejected(shards):
    table = pq.read_table(shards / "index.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(3, 1)]), shards / "index.parquet")
    with pytest.raises(InputError, match="lists an image twice"):
        load_dataset(shards)


def set_first_row(**columns: object):
    """A function that changes the first row of an index."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        for name, value in columns.items():
            table.loc[0, name] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            set_first_row(shard_bytes=10**12),
            r"1,000,000,000,000 bytes .* images-0000\d\d.tar, which holds [\d,]+ bytes",
        ),
        (set_first_row(shard_bytes=2**63 - 1), r"images-0000\d\d.tar, which holds"),
        (set_first_row(shard_bytes=-1), r"images-0000\d\d.tar, which holds"),
        (set_first_row(shard_offset=10**15), r"from byte 1,000,000,000,000,000 of images-0000\d\d.tar, which holds"),
        (set_first_row(shard_offset=-5), r"images-0000\d\d.tar, which holds"),
        (lambda table: table.assign(shard="x"), r"column 'shard' must hold whole numbers"),
        (lambda table: table.assign(shard_offset=0.5), r"column 'shard_offset' must hold whole numbers"),
        (lambda table: table.assign(label=1.5), r"column 'label' must hold text"),
    ],
)
def test_damaged_index_rows_are_rejected_before_any_read(change, message, shards):
    file = shards / "index.parquet"
    arrow = pq.read_table(file)
    table = pa.Table.from_pandas(change(arrow.to_pandas()), preserve_index=False)
    pq.write_table(table.replace_schema_metadata(arrow.schema.metadata), file)
    with pytest.raises(InputError, match=f"index.parquet is damaged: .*{message}"):
        load_dataset(shards, require_labels=False, for_training=False)


@pytest.mark.parametrize(
    "listed",
    ["x", None, 3, [1], [{}], [{"name": "a.tar"}], [{"name": "a.tar", "bytes": "many", "pictures": 1}],
     [{"name": "../a.tar", "bytes": 1, "pictures": 1}], [{"name": "/etc/passwd", "bytes": 1, "pictures": 1}]],
)  # fmt: skip
def test_damaged_shard_list_is_rejected(listed, shards):
    change_header(shards / "index.parquet", shards=listed)
    with pytest.raises(InputError, match=mentioning("index.parquet", "damaged")):
        load_dataset(shards)


def test_tars_next_to_system_folders_are_shards(shards):
    (shards / "index.parquet").unlink()
    (shards / "@eaDir").mkdir()
    assert len(load_dataset(shards)) == 48


def test_table_called_index_is_a_table(class_folders, tmp_path):
    rows = [("pictures/red/red_00.jpg", "red"), ("pictures/green/green_00.jpg", "green")]
    pq.write_table(pa.Table.from_pandas(pd.DataFrame(rows, columns=["path", "label"])), tmp_path / "index.parquet")
    assert load_dataset(tmp_path / "index.parquet").shards is None


def test_class_folders_next_to_a_tar_are_class_folders(class_folders):
    (class_folders / "all.tar").write_bytes(b"the originals")
    assert load_dataset(class_folders).shards is None


def test_compressed_shards_are_rejected(tmp_path):
    (tmp_path / "shards").mkdir()
    for number in range(3):
        (tmp_path / f"shards/train-{number}.tar.gz").write_bytes(b"x")
    (tmp_path / "shards/README.md").write_text("three shards")
    with pytest.raises(InputError, match=mentioning("train-0.tar.gz")):
        load_dataset(tmp_path / "shards")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nothing-{0..1}.tar", ("there are no such shards",)),
        ("images-000099.tar", ("did you mean", "images-000009.tar")),
        ("images-{000010..000012}.tar", ("images-000012.tar",)),
        ("images-00000?.tar.gz", ("is compressed",)),
        ("{a,b}/x.tar", ("not in its folder",)),
    ],
)
def test_missing_shards_are_reported(data, message, shards):
    with pytest.raises(InputError, match=mentioning(*message)):
        load_dataset(f"{shards}/{data}")


def test_parent_folder_may_have_braces_and_brackets(shards, tmp_path):
    folder = tmp_path / "my {set} [1]*"
    shutil.copytree(shards, folder / "sh")
    expected = load_dataset(shards)
    for data in ("sh", "sh/index.parquet", "sh/images-*.tar"):
        found = load_dataset(f"{folder}/{data}")
        assert (found.paths, found.digest()) == (expected.paths, expected.digest())
    expected = load_dataset(folder / "sh")
    expected.to_csv(folder / "list.csv")
    assert load_dataset(folder / "list.csv").labels.tolist() == expected.labels.tolist()


def test_shards_reject_a_path_column(shards):
    with pytest.raises(InputError, match=mentioning("path_column", "shard")):
        load_dataset(shards, path_column="file")


def test_threads_and_pickled_readers_read_the_same(shards):
    import pickle
    from concurrent.futures import ThreadPoolExecutor

    reader = source_reader(load_dataset(shards))
    expected = [reader.source(row) for row in range(48)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(reader.source, range(48))) == expected
    unpickled = pickle.loads(pickle.dumps(reader))
    assert [unpickled.source(row) for row in np.random.default_rng(0).permutation(48)] == [
        expected[row] for row in np.random.default_rng(0).permutation(48)
    ]


def test_groups_are_stripped_as_in_a_table(class_folders, tmp_path):
    """The index has 'P1 ' in the column ``group`` and in another column."""
    write_shards(load_dataset(class_folders), tmp_path / "shards", PackOptions(shard_bytes=10**9))
    file = tmp_path / "shards/index.parquet"
    index = load_index(file, "index")
    groups = ["P1", "P1 ", " P2", "  "] * 12
    save_index(replace(index, table=index.table.assign(group=groups, patient=groups)), file)
    for column in (None, "patient"):
        found = load_dataset(tmp_path / "shards", group_column=column).table["group"]
        assert found.iloc[:3].tolist() == ["P1", "P1", "P2"]
        assert found.iloc[3::4].isna().all()


@pytest.fixture
def packed(class_folders, tmp_path):
    """48 images in 12 shards of 4, and their dataset.csv as a run writes it."""
    write_shards(load_dataset(class_folders), tmp_path / "shards", PackOptions(shard_bytes=10**9, shard_images=4))
    dataset = load_dataset(tmp_path / "shards")
    split = np.where(np.arange(48) % 4 == 0, "val", "train").astype(object)
    dataset = dataset.with_split(split)
    (tmp_path / "runs/one").mkdir(parents=True)
    dataset.to_csv(tmp_path / "runs/one/dataset.csv")
    return dataset


def rewrite(file, change):
    table = pd.read_csv(file, keep_default_na=False)
    change(table).to_csv(file, index=False)
    return file


def test_dataset_csv_of_shards_is_a_dataset(packed, class_folders, tmp_path):
    dataset = load_dataset(tmp_path / "runs/one/dataset.csv")
    assert dataset.digest() == packed.digest()
    assert dataset.class_names == packed.class_names
    assert dataset.where(3) == "dataset.csv, row 5"
    reader, files = source_reader(dataset), load_dataset(class_folders)
    for row in (0, 17, 47):
        with open(files.file(row), "rb") as file:
            assert reader.source(row) == file.read()
    report = validate_images(dataset)
    assert len(report.unreadable) == 0
    assert report.contents.tolist() == validate_images(packed).contents.tolist()


def test_dataset_csv_works_without_the_index(packed, tmp_path):
    (tmp_path / "shards/index.parquet").unlink()
    dataset = load_dataset(tmp_path / "runs/one/dataset.csv")
    assert dataset.digest() == packed.digest()
    assert source_reader(dataset).source(5) == source_reader(packed).source(5)


def test_changes_in_dataset_csv_apply(packed, tmp_path):
    """A corrected label, fewer rows, another order and only two columns."""

    def change(table):
        table.loc[7, "label"] = "red"
        return table.loc[[40, 7, 30, 2], ["path", "label"]]

    dataset = load_dataset(rewrite(tmp_path / "runs/one/dataset.csv", change))
    assert dataset.paths == [packed.paths[row] for row in (40, 7, 30, 2)]
    assert dataset.table["label"].tolist()[1] == "red"
    assert source_reader(dataset).source(0) == source_reader(packed).source(40)


def test_dataset_csv_may_have_absolute_paths(packed, tmp_path):
    def change(table):
        return table.assign(path=table["path"].str.replace("../..", tmp_path.as_posix(), regex=False))

    file = rewrite(tmp_path / "runs/one/dataset.csv", change)
    (tmp_path / "other").mkdir()
    moved = file.rename(tmp_path / "other/list.csv")
    assert load_dataset(moved).digest() == packed.digest()


def set_path(row, path):
    def change(table):
        table.loc[row, "path"] = path
        return table

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_path(3, "../../pictures/red/red_00.jpg"), ("row 5", "red_00.jpg", "in a shard", "data pack")),
        (set_path(0, "../../pictures/red/red_00.jpg"), ("row 2", "red_00.jpg", "in a shard", "data pack")),
        (set_path(3, "../../shards/images-000000.tar#no.jpg"), ("row 5", "no.jpg", "1 of 48 rows")),
        (set_path(3, "../../else/images-000000.tar#a.jpg"), ("2 folders", "/else", "one folder")),
        (lambda table: table.loc[[0, 1, 20, 1]], ("row 3 and row 5", "listed twice")),
        (lambda table: table.assign(path=table["path"].str.replace("/shards/", "/gone/")), ("no such shards",)),
    ],
)
def test_invalid_rows_of_dataset_csv_are_rejected_by_row(change, expected, packed, tmp_path):
    with pytest.raises(InputError) as error:
        load_dataset(rewrite(tmp_path / "runs/one/dataset.csv", change))
    assert all(text in str(error.value) for text in expected), error.value


def test_missing_shard_is_damage_for_dataset_csv_too(packed, tmp_path):
    (tmp_path / "shards/images-000005.tar").unlink()
    report = validate_images(load_dataset(tmp_path / "runs/one/dataset.csv"))
    assert len(report.unreadable) == 4
    assert mentions(report.notes[0], "images-000005.tar", "0", "4")
    (tmp_path / "shards/index.parquet").unlink()
    with pytest.raises(InputError, match=mentioning("images-000005.tar", "4", "48")):
        load_dataset(tmp_path / "runs/one/dataset.csv")


def test_images_of_the_same_path_have_the_names_of_their_members(class_folders, tmp_path):
    """Tars of other tools may have one path for two images."""
    with tarfile.open(tmp_path / "theirs.tar", "w") as tar:
        for number, name in enumerate(("red", "blue")):
            record = json.dumps({"path": "one.jpg", "label": name}).encode()
            image = (class_folders / name / f"{name}_00.jpg").read_bytes()
            for extension, content in (("jpg", image), ("json", record)):
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    load_dataset(tmp_path / "theirs.tar").select([0]).to_csv(tmp_path / "one.csv")
    assert load_dataset(tmp_path / "one.csv", for_training=False).paths == ["theirs.tar#0.jpg"]
    (tmp_path / "two.csv").write_text("path,label\ntheirs.tar#one.jpg,red\n")
    with pytest.raises(InputError, match=mentioning("two.csv", "theirs.tar#one.jpg")):
        load_dataset(tmp_path / "two.csv", for_training=False)


def test_dataset_csv_written_through_a_link_is_read(packed, tmp_path):
    """``..`` in its paths starts at the real folder."""
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "far/away", target_is_directory=True)
    packed.to_csv(tmp_path / "linked/dataset.csv")
    dataset = load_dataset(tmp_path / "linked/dataset.csv")
    assert dataset.digest() == packed.digest()
    assert source_reader(dataset).source(17) == source_reader(packed).source(17)
