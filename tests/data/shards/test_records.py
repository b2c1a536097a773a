"""DATA as a folder, an index or a pattern of shards; with damage; and what is refused."""

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


def test_braces_stand_for_what_bash_makes_of_them():
    assert expand_braces("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert expand_braces("{train,val}-{0..1}.tar") == ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    with pytest.raises(InputError, match=mentioning("5", "3")):
        expand_braces("x-{5..3}.tar")


@pytest.mark.parametrize("data", ["", "/", "/index.parquet", "/images-{000000..000011}.tar", "/*.tar"])
def test_a_folder_an_index_and_a_pattern_of_all_are_the_same(data, shards, class_folders):
    dataset = load_dataset(f"{shards}{data}")
    assert dataset.labels.tolist() == load_dataset(class_folders).labels.tolist()
    assert dataset.digest() == load_dataset(shards).digest()


def test_a_pattern_takes_its_shards_alone(shards):
    dataset = load_dataset(f"{shards}/images-{{000002..000003}}.tar", for_training=False)
    assert len(dataset) == 8
    whole = load_dataset(shards)
    assert sorted(dataset.paths) == sorted(
        path for path in whole.paths if path[:13] in ("images-000002", "images-000003")
    )
    row = whole.paths.index(dataset.paths[3])
    assert source_reader(dataset).source(3) == source_reader(whole).source(row)


def test_a_manifest_written_beside_a_run_is_read_back_equal(shards, tmp_path):
    dataset = load_dataset(shards)
    (tmp_path / "runs/one").mkdir(parents=True)
    file = tmp_path / "runs/one/dataset.csv"
    dataset.to_csv(file)
    again = ImageDataset.from_csv(file, root=dataset.root, source=dataset.source)
    assert again.digest() == dataset.digest()
    from_the_run = ImageDataset.from_csv(file, root=file.parent, source="run")
    assert [Path(from_the_run.file(row)).resolve() for row in range(48)] == [
        Path(dataset.file(row)).resolve() for row in range(48)
    ]


def test_a_whole_set_needs_no_look_at_its_images_and_knows_its_copies(class_folders, tmp_path):
    shutil.copy(class_folders / "red/red_00.jpg", class_folders / "red/red_99.jpg")
    files = load_dataset(class_folders)
    write_shards(files, tmp_path / "shards", PackOptions(10**9))
    report, of_files = (validate_images(load_dataset(tmp_path / "shards")), validate_images(files))
    assert len(report.unreadable) == 0
    assert report.contents.tolist() == of_files.contents.tolist()
    assert report.notes == of_files.notes
    assert mentions(report.notes[0], "1", "49")


def test_a_shard_cut_short_is_named_and_the_rest_of_it_used(shards):
    file = shards / "images-000005.tar"
    dataset = load_dataset(shards)
    rows = dataset.table[dataset.table["shard"] == 5].sort_values("shard_offset")
    whole = rows.index[:2]
    file.write_bytes(file.read_bytes()[: rows["shard_offset"].iloc[2] + 10])
    report = validate_images(dataset)
    assert report.unreadable.tolist() == sorted(rows.index[2:])
    assert "is lost: the shard is cut short" in report.reasons[0]
    assert mentions(report.notes[0], "images-000005.tar")
    assert mentions(report.notes[0], "2", "4")
    assert all(source_reader(dataset).source(int(row)) for row in whole)
    with pytest.raises(InputError, match=mentioning("images-000005.tar", "strict")):
        validate_images(dataset, strict=True)


def test_a_missing_shard_is_named_and_the_others_used(shards):
    """4 of 48 are more than the 5 % that may be unreadable one by one; a damaged shard does not count there."""
    (shards / "images-000005.tar").unlink()
    dataset = load_dataset(shards)
    report = validate_images(dataset)
    assert len(report.unreadable) == 4
    assert mentions(report.notes[0], "images-000005.tar", "0", "4")


def test_reading_what_is_lost_says_which_shard_and_why(shards):
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


def test_a_handle_that_broke_is_opened_anew(shards):
    """As after a share was away: what was opened before is of no use, the file is. Here the handle may only write."""
    store = LocalStore(str(shards))
    name = "images-000005.tar"
    (whole,) = store.read([Range(name, 0, 600)])
    handle = store._open_files(str(shards / name))._handle
    with (shards.parent / "other").open("wb") as other:
        os.dup2(other.fileno(), handle)
    with pytest.raises(OSError, match=mentioning("Bad file descriptor")):
        os.pread(handle, 600, 0)
    assert store.read([Range(name, 0, 600)]) == [whole]
    assert each_mentions(store.read([Range("nowhere.tar", 0, 600)]), ("nowhere.tar", "shard"))


def test_another_shard_than_the_indexs_is_refused(shards):
    with (shards / "images-000001.tar").open("ab") as file:
        file.write(b"\0" * 10_240)
    with pytest.raises(InputError, match=mentioning("images-000001.tar")):
        validate_images(load_dataset(shards))


def test_another_column_can_be_the_label(tmp_path):
    rows = [
        {"path": paint(tmp_path / f"{n}.jpg", (50, 9 * n, 0), n).name, "label": "ab"[n % 2], "species": "xyz"[n % 3]}
        for n in range(12)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    write_shards(load_dataset(tmp_path / "t.csv"), tmp_path / "shards", PackOptions(10**9))
    assert load_dataset(tmp_path / "shards", label_column="species").class_names == ("x", "y", "z")
    with pytest.raises(InputError, match=mentioning("did you mean", "species")):
        load_dataset(tmp_path / "shards", label_column="specie")


def altered(file: Path, **changes: object) -> None:
    table = pq.read_table(file)
    plain = json.loads(table.schema.metadata[b"efficientnetv2_shards"]) | changes
    metadata = table.schema.metadata | {b"efficientnetv2_shards": json.dumps(plain).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), file)


def test_an_index_of_another_version_is_refused(shards):
    altered(shards / "index.parquet", version=9)
    with pytest.raises(InputError, match=mentioning("9", "1", "index")):
        load_dataset(shards)


def test_a_damaged_index_is_refused_with_a_way_out(shards):
    file = shards / "index.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=mentioning("index.parquet")):
        load_dataset(shards)


def test_an_index_that_names_too_few_shards_is_refused(shards):
    altered(shards / "index.parquet", shards=[])
    with pytest.raises(InputError, match=mentioning("0", "shard")):
        load_dataset(shards)


def test_an_index_that_lists_a_image_twice_is_refused(shards):
    table = pq.read_table(shards / "index.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(3, 1)]), shards / "index.parquet")
    with pytest.raises(InputError, match="lists an image twice"):
        load_dataset(shards)


def place(**columns: object):
    """A change of the first row of an index."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        for name, value in columns.items():
            table.loc[0, name] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (place(shard_bytes=10**12), r"1,000,000,000,000 bytes .* images-0000\d\d.tar, which holds [\d,]+ bytes"),
        (place(shard_bytes=2**63 - 1), r"images-0000\d\d.tar, which holds"),
        (place(shard_bytes=-1), r"images-0000\d\d.tar, which holds"),
        (place(shard_offset=10**15), r"from byte 1,000,000,000,000,000 of images-0000\d\d.tar, which holds"),
        (place(shard_offset=-5), r"images-0000\d\d.tar, which holds"),
        (lambda table: table.assign(shard="x"), r"column 'shard' must hold whole numbers"),
        (lambda table: table.assign(shard_offset=0.5), r"column 'shard_offset' must hold whole numbers"),
        (lambda table: table.assign(label=1.5), r"column 'label' must hold text"),
    ],
)
def test_an_index_whose_rows_are_damaged_is_refused_before_anything_is_read(change, message, shards):
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
def test_an_index_whose_list_of_shards_is_none_is_refused(listed, shards):
    altered(shards / "index.parquet", shards=listed)
    with pytest.raises(InputError, match=mentioning("index.parquet", "damaged")):
        load_dataset(shards)


def test_tars_beside_folders_of_a_system_are_shards(shards):
    (shards / "index.parquet").unlink()
    (shards / "@eaDir").mkdir()
    assert len(load_dataset(shards)) == 48


def test_a_table_of_images_called_index_is_a_table(class_folders, tmp_path):
    rows = [("pictures/red/red_00.jpg", "red"), ("pictures/green/green_00.jpg", "green")]
    pq.write_table(pa.Table.from_pandas(pd.DataFrame(rows, columns=["path", "label"])), tmp_path / "index.parquet")
    assert load_dataset(tmp_path / "index.parquet").shards is None


def test_class_folders_beside_a_tar_stay_class_folders(class_folders):
    (class_folders / "all.tar").write_bytes(b"what they came from")
    assert load_dataset(class_folders).shards is None


def test_a_folder_of_compressed_shards_is_refused_as_such(tmp_path):
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
def test_shards_that_are_not_there_are_missed(data, message, shards):
    with pytest.raises(InputError, match=mentioning(*message)):
        load_dataset(f"{shards}/{data}")


def test_a_folder_above_may_be_called_with_braces_and_brackets(shards, tmp_path):
    folder = tmp_path / "my {set} [1]*"
    shutil.copytree(shards, folder / "sh")
    whole = load_dataset(shards)
    for data in ("sh", "sh/index.parquet", "sh/images-*.tar"):
        again = load_dataset(f"{folder}/{data}")
        assert (again.paths, again.digest()) == (whole.paths, whole.digest())
    whole = load_dataset(folder / "sh")
    whole.to_csv(folder / "list.csv")
    assert load_dataset(folder / "list.csv").labels.tolist() == whole.labels.tolist()


def test_shards_know_their_images(shards):
    with pytest.raises(InputError, match=mentioning("path_column", "shard")):
        load_dataset(shards, path_column="file")


def test_threads_and_processes_read_the_same(shards):
    import pickle
    from concurrent.futures import ThreadPoolExecutor

    reader = source_reader(load_dataset(shards))
    alone = [reader.source(row) for row in range(48)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(reader.source, range(48))) == alone
    travelled = pickle.loads(pickle.dumps(reader))
    assert [travelled.source(row) for row in np.random.default_rng(0).permutation(48)] == [
        alone[row] for row in np.random.default_rng(0).permutation(48)
    ]


def test_groups_lose_the_space_around_them_as_in_a_table(class_folders, tmp_path):
    """In an index that says 'P1 ', under its own name and under another."""
    write_shards(load_dataset(class_folders), tmp_path / "shards", PackOptions(shard_bytes=10**9))
    file = tmp_path / "shards/index.parquet"
    index = load_index(file, "index")
    groups = ["P1", "P1 ", " P2", "  "] * 12
    save_index(replace(index, table=index.table.assign(group=groups, patient=groups)), file)
    for asked in (None, "patient"):
        found = load_dataset(tmp_path / "shards", group_column=asked).table["group"]
        assert found.iloc[:3].tolist() == ["P1", "P1", "P2"]
        assert found.iloc[3::4].isna().all()


@pytest.fixture
def packed(class_folders, tmp_path):
    """48 images in 12 shards of 4; their dataset, as a run writes it next to itself."""
    write_shards(load_dataset(class_folders), tmp_path / "shards", PackOptions(shard_bytes=10**9, shard_images=4))
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
    report = validate_images(again)
    assert len(report.unreadable) == 0
    assert report.contents.tolist() == validate_images(packed).contents.tolist()


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
        (path_of(3, "../../pictures/red/red_00.jpg"), ("row 5", "red_00.jpg", "separate tables")),
        (path_of(3, "../../shards/images-000000.tar#no.jpg"), ("row 5", "no.jpg", "1 of 48 rows")),
        (path_of(3, "../../else/images-000000.tar#a.jpg"), ("2 folders", "/else", "one folder")),
        (lambda table: table.loc[[0, 1, 20, 1]], ("row 3 and row 5", "listed twice")),
        (lambda table: table.assign(path=table["path"].str.replace("/shards/", "/gone/")), ("no such shards",)),
    ],
)
def test_what_does_not_fit_is_refused_by_its_row(change, words, packed, tmp_path):
    with pytest.raises(InputError) as refused:
        load_dataset(rewritten(tmp_path / "runs/one/dataset.csv", change))
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_missing_shard_is_damage_as_it_is_for_the_shards_themselves(packed, tmp_path):
    (tmp_path / "shards/images-000005.tar").unlink()
    report = validate_images(load_dataset(tmp_path / "runs/one/dataset.csv"))
    assert len(report.unreadable) == 4
    assert mentions(report.notes[0], "images-000005.tar", "0", "4")
    (tmp_path / "shards/index.parquet").unlink()
    with pytest.raises(InputError, match=mentioning("images-000005.tar", "4", "48")):
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
