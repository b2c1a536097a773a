"""Shards on a web server: the same images, in few requests; and what is said when it fails."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fsspec.utils import merge_offset_ranges
from tests.command_line import TINY, effnetv2
from tests.file_server import FileServer, serving
from tests.messages import mentioning, mentions

from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.image_checks import validate_images
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.loader import TrainingImages, evaluation_batches, training_batches
from efficientnetv2.data.readers import source_reader
from efficientnetv2.data.sampler import TrainSampler
from efficientnetv2.data.shards import storage
from efficientnetv2.data.shards.storage import Range, RemoteStore
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule
from efficientnetv2.utils import optional_deps
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key


@pytest.fixture
def server(class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """48 images in 5 shards."""
    write_shards(load_dataset(class_folders), tmp_path / "served/shards", PackOptions(10**9, shard_images=10))
    monkeypatch.setattr(storage, "_PAUSE_S", 0.01)
    with serving(tmp_path / "served") as files:
        yield files


@pytest.mark.parametrize(
    "data", ["/shards", "/shards/", "/shards/index.parquet", "/shards/images-{000000..000004}.tar"]
)
def test_a_url_is_the_folder(data, server, class_folders):
    far, near = load_dataset(server.url + data), load_dataset(class_folders)
    assert far.labels.tolist() == near.labels.tolist()
    assert len(validate_images(far).unreadable) == 0
    reader = source_reader(far).ahead(range(48))
    assert [reader.source(row) for row in range(48)] == [Path(near.file(row)).read_bytes() for row in range(48)]
    assert source_reader(far).name(0).startswith(f"{server.url}/shards/images-00000")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_files(workers, server, class_folders):
    whole = Preprocessing(image_size=32)
    batches = []
    for dataset in (load_dataset(f"{server.url}/shards"), load_dataset(class_folders)):
        pictures = TrainingImages(dataset, whole, 0.3, Key.of(0))
        sampler = TrainSampler(dataset.labels, ProgressiveSchedule(image_size=32), 4, 8, 4, None, Key.of(3))
        batches.append(list(training_batches(pictures, sampler, workers=workers)))
    for far, near in zip(*batches, strict=True):
        assert torch.equal(far.images, near.images)
        assert torch.equal(far.labels, near.labels)


def test_neighbors_are_fetched_in_one_request(server):
    dataset = load_dataset(f"{server.url}/shards")
    rows = dataset.table[dataset.table["shard"] == 2].sort_values("shard_offset").index.tolist()
    server.asked.clear()
    source_reader(dataset).ahead(rows)
    assert len(rows) == 10
    assert [name for name, _, _ in server.asked] == ["images-000002.tar"]


def test_what_lies_far_apart_is_fetched_apart(tmp_path, monkeypatch):
    content = bytes(range(256)) * 400
    (tmp_path / "a.tar").write_bytes(content)
    monkeypatch.setattr(storage, "_GAP_BYTES", 1_000)
    monkeypatch.setattr(storage, "_MAX_BYTES", 20_000)
    ranges = [(60_000, 60_100), (0, 100), (1_000, 1_100), (5, 50), (70_000, 90_000), (90_000, 90_001)]
    with serving(tmp_path) as files:
        read_ = RemoteStore(files.url).read([Range("a.tar", *one) for one in ranges])
        assert read_ == [content[first:last] for first, last in ranges]
        assert sorted(files.asked) == [
            ("a.tar", 0, 1_099), ("a.tar", 60_000, 60_099), ("a.tar", 70_000, 89_999), ("a.tar", 90_000, 90_000),
        ]  # fmt: skip


def test_a_image_drawn_twice_is_asked_for_once(tmp_path, monkeypatch):
    """fsspec 2026.2 to 2026.7 take each of two equal ranges to lie within the other, and drop both."""

    def merged(shards, starts, stops, **words):
        asked = list(zip(shards, starts, stops, strict=True))
        assert len(set(asked)) == len(asked)
        return merge_offset_ranges(shards, starts, stops, **words)

    monkeypatch.setattr(storage, "merge_offset_ranges", merged)
    content = bytes(range(256)) * 400
    (tmp_path / "a.tar").write_bytes(content)
    with serving(tmp_path) as files:
        ranges = [Range("a.tar", *one) for one in ((500, 600), (0, 100), (500, 600))]
        assert RemoteStore(files.url).read(ranges) == [content[500:600], content[:100], content[500:600]]


def test_no_range_needs_no_request(tmp_path):
    assert RemoteStore("http://127.0.0.1:9").read([]) == []


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_busy_server_is_asked_again(status, server):
    dataset = load_dataset(f"{server.url}/shards")
    first = source_reader(dataset).source(0)
    server.fail = [status, status]
    assert source_reader(dataset).source(0) == first
    assert server.fail == []


def test_a_server_that_stays_broken_stops_the_run_naming_shard_and_bytes(server):
    """Not taken for a damaged image: another would stand in, and the run be another one after all."""
    dataset = load_dataset(f"{server.url}/shards")
    row = dataset.table.iloc[0]
    where = f"bytes {row['shard_offset']} to {row['shard_offset'] + row['shard_bytes']}"
    server.fail = [500] * 100
    with pytest.raises(InputError, match=mentioning(where, "5", "500")):
        source_reader(dataset).source(0)
    assert len(server.fail) == 95


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_server_is_a_plain_message_from_workers_too(workers, server):
    dataset = load_dataset(f"{server.url}/shards")
    whole = Preprocessing(image_size=32)
    server.fail = [500] * 1000
    pictures = TrainingImages(dataset, whole, 0.3, Key.of(0))
    sampler = TrainSampler(dataset.labels, ProgressiveSchedule(image_size=32), 4, 8, 4, None, Key.of(3))
    with pytest.raises(InputError, match="after 5 attempts") as stopped:
        list(training_batches(pictures, sampler, workers=workers))
    assert "Traceback" not in str(stopped.value)
    with pytest.raises(InputError, match="after 5 attempts") as stopped:
        list(evaluation_batches(dataset, whole, batch_size=8, workers=workers))
    assert "Traceback" not in str(stopped.value)


def test_a_server_that_does_not_answer_is_not_taken_for_one_that_has_lost_its_shards(server):
    dataset = load_dataset(f"{server.url}/shards")
    server.head_fails = 503
    with pytest.raises(InputError, match=mentioning("images-00000", "5")):
        validate_images(dataset)


@pytest.mark.parametrize("drips", [False, True])
def test_a_server_that_accepts_and_does_not_answer_is_given_up_after_the_limit(drips, monkeypatch):
    """It says nothing, or a byte at a time of an answer that never ends."""
    monkeypatch.setattr(storage, "_SILENCE_S", 0.4)
    monkeypatch.setattr(storage, "_LIMIT_S", 1.0)
    monkeypatch.setattr(storage, "_PAUSE_S", 0.01)
    ended = threading.Event()

    def drip(listening):
        taken = []
        while not ended.is_set():
            with contextlib.suppress(OSError):
                listening.settimeout(0.05)
                taken.append(listening.accept()[0])
                if drips:
                    taken[-1].sendall(b"HTTP/1.1 200 OK\r\nX: ")
            for one in taken if drips else []:
                with contextlib.suppress(OSError):
                    one.sendall(b"x")
        for one in taken:
            one.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        base = f"http://127.0.0.1:{listening.getsockname()[1]}/shards"
        began = time.monotonic()
        for ask in (
            lambda: RemoteStore(base).matching("*.tar"),
            lambda: RemoteStore(base).read([Range("a.tar", 0, 4)]),
        ):
            with pytest.raises(InputError, match=mentioning("1", "shard")):
                ask()
        took = time.monotonic() - began
        ended.set()
        thread.join()
    assert took < 20


def test_a_refusal_is_not_asked_again(server):
    dataset = load_dataset(f"{server.url}/shards")
    server.fail = [403] * 3
    with pytest.raises(UnreadableImageError, match=mentioning("403")):
        source_reader(dataset).source(0)
    assert len(server.fail) == 2


def test_missing_and_truncated_shards_are_named_and_the_rest_used(server):
    dataset = load_dataset(f"{server.url}/shards")
    folder = server.folder / "shards"
    (folder / "images-000001.tar").unlink()
    cut = folder / "images-000002.tar"
    rows = dataset.table[dataset.table["shard"] == 2].sort_values("shard_offset")
    cut.write_bytes(cut.read_bytes()[: rows["shard_offset"].iloc[4] + 7])
    report = validate_images(dataset)
    assert len(report.unreadable) == 10 + 6
    assert mentions(report.notes[0], "images-000001.tar", "0", "10")
    assert mentions(report.notes[1], "images-000002.tar")
    assert "4 of its 10" in report.notes[1]
    reader = source_reader(dataset).ahead(range(48))
    lost = report.unreadable.tolist()
    for row in range(48):
        if row in lost:
            with pytest.raises(UnreadableImageError, match=r"is missing|is cut short"):
                reader.source(row)
        else:
            assert reader.source(row)
    with pytest.raises(UnreadableImageError, match=mentioning("images-000002.tar")):
        source_reader(dataset).source(int(rows.index[-1]))


def test_a_server_without_ranges_is_recognized_and_told(server):
    dataset = load_dataset(f"{server.url}/shards")
    server.no_ranges = True
    with pytest.raises(InputError, match=r"sends whole files.*nginx"):
        source_reader(dataset).source(0)


def test_it_is_told_before_anything_is_begun(server):
    server.no_ranges = True
    with pytest.raises(InputError, match=mentioning("index.parquet")):
        load_dataset(f"{server.url}/shards")


def test_a_file_is_read_from_its_beginning_and_sought_in_with_few_requests(tmp_path, monkeypatch):
    content = bytes(range(256)) * 4_000
    (tmp_path / "a.tar").write_bytes(content)
    monkeypatch.setattr(storage, "_READ_AHEAD_BYTES", 100_000)
    monkeypatch.setattr(storage, "_MAX_BYTES", 300_000)
    with serving(tmp_path) as files:
        store = RemoteStore(files.url)
        with store.open("a.tar") as stream:
            assert stream.read(10) == content[:10]
            assert stream.read(1000) == content[10:1010]
            assert stream.seek(900_000) == 900_000
            assert stream.read(20) == content[900_000:900_020]
            assert stream.seek(0, 2) == len(content)
            assert stream.read(5) == b""
        assert len(files.asked) == 3, "whether parts can be had, and two reads"
        with store.open("a.tar") as stream:
            assert stream.read() == content
        assert len(files.asked) == 3 + 1 + 4, "1,024,000 bytes in parts of 300,000"
        with pytest.raises(FileNotFoundError):
            store.open("b.tar")


def test_a_url_without_shards_is_refused(server):
    with pytest.raises(InputError, match=mentioning("shards")):
        load_dataset(f"{server.url}/nothing")
    with pytest.raises(InputError, match=mentioning("127.0.0.1:9", "shards/index.parquet", "5")):
        load_dataset("http://127.0.0.1:9/shards")


@pytest.mark.parametrize("name", ["*.tar", "images-00000[0-4].tar"])
def test_stars_are_spelled_out_by_the_folder_that_the_server_shows(name, server):
    server.lists = True
    (server.folder / "shards/index.parquet").unlink()
    (server.folder / "shards/.hidden.tar").write_bytes(b"")
    assert len(load_dataset(f"{server.url}/shards/{name}")) == 48
    assert len(load_dataset(f"{server.url}/shards")) == 48
    assert RemoteStore(f"{server.url}/shards").matching("*-000003.tar") == ["images-000003.tar"]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_folder_that_a_busy_server_does_not_show_is_asked_for_again(status, server):
    server.lists = True
    store = RemoteStore(f"{server.url}/shards")
    server.fail = [status, status]
    assert len(store.matching("*.tar")) == 5
    assert server.fail == []


def test_a_server_that_is_gone_is_not_taken_for_an_empty_folder(server, monkeypatch):
    """Whether it answers with an error or not at all."""
    store = RemoteStore(f"{server.url}/shards")
    server.fail = [500] * 100
    with pytest.raises(InputError, match=mentioning("5", "500")):
        store.matching("*.tar")
    assert len(server.fail) == 95
    with pytest.raises(InputError, match=mentioning("127.0.0.1:9", "5")):
        RemoteStore("http://127.0.0.1:9/shards").matching("*.tar")


@pytest.mark.parametrize("status", [403, 404, 405])
def test_a_server_that_shows_no_folders_has_no_names_to_give(status, server):
    store = RemoteStore(f"{server.url}/shards")
    server.fail = [status]
    assert store.matching("*.tar") == []


@pytest.mark.parametrize(
    ("scheme", "package", "extra"),
    [("s3", "s3fs", "s3"), ("s3a", "s3fs", "s3"), ("gs", "gcsfs", "gcs"), ("az", "adlfs", "azure")],
)
def test_a_store_whose_package_is_missing_names_the_extra_and_what_pip_can_install(
    scheme, package, extra, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(optional_deps, "requires", lambda _: [f"{package}<3,>=2; extra == '{extra}'"])
    with pytest.raises(InputError) as error:
        load_dataset(f"{scheme}://bucket/shards")
    assert str(error.value) == (
        f"reading {scheme}:// needs the package '{package}' of the extra '{extra}', which is not installed. "
        f'Install it with: pip install "{package}<3,>=2"'
    )


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gopher://host/shards", ("gopher://", "shard")),
        ("htps://host/shards", ("did you mean", "https")),
        ("ftp://host/shards", ("ftp://", "shard")),
    ],
)
def test_a_kind_of_url_that_is_of_no_use_is_told_with_those_that_are(url, words):
    with pytest.raises(InputError) as error:
        load_dataset(url)
    assert mentions(str(error.value), *words)
    assert str(error.value).startswith(url)
    assert mentions(str(error.value), "s3")


def test_a_store_that_cannot_begin_is_told(monkeypatch):
    def without_keys(*_, **__):
        raise RuntimeError("no keys")

    monkeypatch.setattr(storage, "url_to_fs", without_keys)
    with pytest.raises(InputError, match=mentioning("memory://shards", "RuntimeError")):
        RemoteStore("memory://shards")


def test_a_package_of_fsspec_s_that_no_extra_brings_is_told_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(InputError, match=mentioning("efficientnetv2")):
        load_dataset("sftp://host/shards")


def test_tars_without_an_index_are_scanned_over_the_net(server, class_folders):
    (server.folder / "shards/index.parquet").unlink()
    far = load_dataset(f"{server.url}/shards/images-{{000000..000004}}.tar")
    assert len(far) == 48
    near = load_dataset(class_folders)
    content = {path: Path(near.file(row)).read_bytes() for row, path in enumerate(near.paths)}
    reader = source_reader(far)
    for row, path in enumerate(far.paths):
        name = path.partition("#")[2]
        assert reader.source(row) == content[name]
        assert far.class_names[far.labels[row]] == name.partition("/")[0]


def test_a_manifest_of_a_url_is_read_back_equal(server, tmp_path):
    dataset = load_dataset(f"{server.url}/shards")
    (tmp_path / "run").mkdir()
    dataset.to_csv(tmp_path / "run/dataset.csv")
    again = ImageDataset.from_csv(tmp_path / "run/dataset.csv", root=dataset.root, source="x")
    assert again.digest() == dataset.digest()
    of_the_run = ImageDataset.from_csv(tmp_path / "run/dataset.csv", root=tmp_path / "run", source="x")
    assert of_the_run.file(3) == dataset.file(3)
    as_data = load_dataset(tmp_path / "run/dataset.csv")
    assert as_data.digest() == dataset.digest()
    assert source_reader(as_data).source(3) == source_reader(dataset).source(3)


@pytest.mark.slow
def test_trained_from_a_url_as_from_the_files(server, class_folders, tmp_path):
    from tests.faults.test_kill_and_resume import bits

    for data, name in ((f"{server.url}/shards", "far"), (class_folders, "near")):
        words = ("train", data, *TINY, "--weights", "none", "--output", tmp_path / name)
        done = effnetv2(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert bits(tmp_path / "far") == bits(tmp_path / "near")
    done = effnetv2("evaluate", tmp_path / "far", f"{server.url}/shards", "--json", cwd=tmp_path)
    assert "48 of these 48" not in done.stderr
    assert "trained the model" in done.stdout
