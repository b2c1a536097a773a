"""Shards on a web server: the same images in few requests, and errors of the server."""

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
from fsspec.config import conf
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
def test_url_is_a_folder_of_shards(data, server, class_folders):
    remote, local = load_dataset(server.url + data), load_dataset(class_folders)
    assert remote.labels.tolist() == local.labels.tolist()
    assert len(validate_images(remote).unreadable) == 0
    reader = source_reader(remote).ahead(range(48))
    assert [reader.source(row) for row in range(48)] == [Path(local.file(row)).read_bytes() for row in range(48)]
    assert source_reader(remote).name(0).startswith(f"{server.url}/shards/images-00000")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_equal_those_of_the_files(workers, server, class_folders):
    preprocessing = Preprocessing(image_size=32)
    batches = []
    for dataset in (load_dataset(f"{server.url}/shards"), load_dataset(class_folders)):
        images = TrainingImages(dataset, preprocessing, 0.3, Key.of(0))
        sampler = TrainSampler(dataset.labels, ProgressiveSchedule(image_size=32), 4, 8, 4, None, Key.of(3))
        batches.append(list(training_batches(images, sampler, workers=workers)))
    for remote, local in zip(*batches, strict=True):
        assert torch.equal(remote.images, local.images)
        assert torch.equal(remote.labels, local.labels)


def test_configuration_of_fsspec_holds_for_shards_at_a_url(server, monkeypatch):
    monkeypatch.setitem(conf, "http", {"client_kwargs": {"headers": {"X-Token": "secret"}}})
    store = RemoteStore(f"{server.url}/shards")
    assert {"headers", "timeout"} <= store._files().client_kwargs.keys()
    dataset = load_dataset(f"{server.url}/shards")
    source_reader(dataset).ahead([0])
    assert server.headers["X-Token"] == "secret"


def test_adjacent_images_are_fetched_in_one_request(server):
    dataset = load_dataset(f"{server.url}/shards")
    rows = dataset.table[dataset.table["shard"] == 2].sort_values("shard_offset").index.tolist()
    server.asked.clear()
    source_reader(dataset).ahead(rows)
    assert len(rows) == 10
    assert [name for name, _, _ in server.asked] == ["images-000002.tar"]


def test_distant_images_are_fetched_separately(tmp_path, monkeypatch):
    content = bytes(range(256)) * 400
    (tmp_path / "a.tar").write_bytes(content)
    monkeypatch.setattr(storage, "_GAP_BYTES", 1_000)
    monkeypatch.setattr(storage, "_MAX_BYTES", 20_000)
    ranges = [(60_000, 60_100), (0, 100), (1_000, 1_100), (5, 50), (70_000, 90_000), (90_000, 90_001)]
    with serving(tmp_path) as files:
        contents = RemoteStore(files.url).read([Range("a.tar", *span) for span in ranges])
        assert contents == [content[first:last] for first, last in ranges]
        assert sorted(files.asked) == [
            ("a.tar", 0, 1_099), ("a.tar", 60_000, 60_099), ("a.tar", 70_000, 89_999), ("a.tar", 90_000, 90_000),
        ]  # fmt: skip


def test_image_drawn_twice_is_requested_once(tmp_path, monkeypatch):
    """fsspec 2026.2 to 2026.7 drops both of two equal ranges."""

    def merge(shards, starts, stops, **options):
        spans = list(zip(shards, starts, stops, strict=True))
        assert len(set(spans)) == len(spans)
        return merge_offset_ranges(shards, starts, stops, **options)

    monkeypatch.setattr(storage, "merge_offset_ranges", merge)
    content = bytes(range(256)) * 400
    (tmp_path / "a.tar").write_bytes(content)
    with serving(tmp_path) as files:
        ranges = [Range("a.tar", *span) for span in ((500, 600), (0, 100), (500, 600))]
        assert RemoteStore(files.url).read(ranges) == [content[500:600], content[:100], content[500:600]]


def test_no_range_makes_no_request(tmp_path):
    assert RemoteStore("http://127.0.0.1:9").read([]) == []


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_busy_server_is_requested_again(status, server):
    dataset = load_dataset(f"{server.url}/shards")
    first = source_reader(dataset).source(0)
    server.fail = [status, status]
    assert source_reader(dataset).source(0) == first
    assert server.fail == []


def test_broken_server_stops_the_run_with_shard_and_bytes(server):
    """It is not a damaged image: another image would replace it and change the run."""
    dataset = load_dataset(f"{server.url}/shards")
    row = dataset.table.iloc[0]
    where = f"bytes {row['shard_offset']} to {row['shard_offset'] + row['shard_bytes']}"
    server.fail = [500] * 100
    with pytest.raises(InputError, match=mentioning(where, "5", "500")):
        source_reader(dataset).source(0)
    assert len(server.fail) == 95


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_server_is_a_short_message_from_workers_too(workers, server):
    dataset = load_dataset(f"{server.url}/shards")
    preprocessing = Preprocessing(image_size=32)
    server.fail = [500] * 1000
    images = TrainingImages(dataset, preprocessing, 0.3, Key.of(0))
    sampler = TrainSampler(dataset.labels, ProgressiveSchedule(image_size=32), 4, 8, 4, None, Key.of(3))
    with pytest.raises(InputError, match="after 5 attempts") as error:
        list(training_batches(images, sampler, workers=workers))
    assert "Traceback" not in str(error.value)
    with pytest.raises(InputError, match="after 5 attempts") as error:
        list(evaluation_batches(dataset, preprocessing, batch_size=8, workers=workers))
    assert "Traceback" not in str(error.value)


def test_unavailable_server_is_not_a_missing_shard(server):
    dataset = load_dataset(f"{server.url}/shards")
    server.head_fails = 503
    with pytest.raises(InputError, match=mentioning("images-00000", "5")):
        validate_images(dataset)


@pytest.mark.parametrize("drips", [False, True])
def test_server_without_a_response_times_out(drips, monkeypatch):
    """It sends nothing, or one byte at a time of an endless response."""
    monkeypatch.setattr(storage, "_SILENCE_S", 0.4)
    monkeypatch.setattr(storage, "_LIMIT_S", 1.0)
    monkeypatch.setattr(storage, "_PAUSE_S", 0.01)
    stop = threading.Event()

    def accept(listening):
        connections = []
        while not stop.is_set():
            with contextlib.suppress(OSError):
                listening.settimeout(0.05)
                connections.append(listening.accept()[0])
                if drips:
                    connections[-1].sendall(b"HTTP/1.1 200 OK\r\nX: ")
            for connection in connections if drips else []:
                with contextlib.suppress(OSError):
                    connection.sendall(b"x")
        for connection in connections:
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept, args=(listening,))
        thread.start()
        base = f"http://127.0.0.1:{listening.getsockname()[1]}/shards"
        started = time.monotonic()
        for request in (
            lambda: RemoteStore(base).matching("*.tar"),
            lambda: RemoteStore(base).read([Range("a.tar", 0, 4)]),
        ):
            with pytest.raises(InputError, match=mentioning("1", "shard")):
                request()
        elapsed = time.monotonic() - started
        stop.set()
        thread.join()
    assert elapsed < 20


def test_refused_request_is_not_repeated(server):
    dataset = load_dataset(f"{server.url}/shards")
    server.fail = [403] * 3
    with pytest.raises(InputError, match=mentioning("403", "credentials")):  # not a damaged image
        source_reader(dataset).source(0)
    assert len(server.fail) == 2


def test_missing_and_truncated_shards_are_named_and_the_rest_used(server):
    dataset = load_dataset(f"{server.url}/shards")
    folder = server.folder / "shards"
    (folder / "images-000001.tar").unlink()
    truncated = folder / "images-000002.tar"
    rows = dataset.table[dataset.table["shard"] == 2].sort_values("shard_offset")
    truncated.write_bytes(truncated.read_bytes()[: rows["shard_offset"].iloc[4] + 7])
    report = validate_images(dataset)
    assert len(report.unreadable) == 10 + 6
    assert mentions(report.notes[0], "images-000001.tar", "0", "10")
    assert mentions(report.notes[1], "images-000002.tar")
    assert "4 of its 10" in report.notes[1]
    reader = source_reader(dataset).ahead(range(48))
    for row in range(48):
        if row in report.unreadable:
            with pytest.raises(UnreadableImageError, match=r"is missing|is cut short"):
                reader.source(row)
        else:
            assert reader.source(row)
    with pytest.raises(UnreadableImageError, match=mentioning("images-000002.tar")):
        source_reader(dataset).source(int(rows.index[-1]))


def test_server_without_range_requests_is_recognized(server):
    dataset = load_dataset(f"{server.url}/shards")
    server.no_ranges = True
    with pytest.raises(InputError, match=r"sends whole files.*nginx"):
        source_reader(dataset).source(0)


def test_server_without_range_requests_is_rejected_at_the_start(server):
    server.no_ranges = True
    with pytest.raises(InputError, match=mentioning("index.parquet")):
        load_dataset(f"{server.url}/shards")


def test_file_is_read_and_sought_with_few_requests(tmp_path, monkeypatch):
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
        assert len(files.asked) == 3, "one check for range requests, two reads"
        with store.open("a.tar") as stream:
            assert stream.read() == content
        assert len(files.asked) == 3 + 1 + 4, "1,024,000 bytes in parts of 300,000"
        with pytest.raises(FileNotFoundError):
            store.open("b.tar")


@pytest.mark.parametrize("name", ["cat.jpg", "images.csv", "photos.zip", "images.parquet"])
def test_url_of_another_file_is_to_be_downloaded(name, server):
    with pytest.raises(InputError, match=mentioning(name, "shards", "ownload")):
        load_dataset(f"{server.url}/{name}")
    assert not server.headers, "the server got no request"


def test_url_without_shards_is_rejected(server):
    with pytest.raises(InputError, match=mentioning("shards")):
        load_dataset(f"{server.url}/nothing")
    with pytest.raises(InputError, match=mentioning("127.0.0.1:9", "shards/index.parquet", "5")):
        load_dataset("http://127.0.0.1:9/shards")


@pytest.mark.parametrize("name", ["*.tar", "images-00000[0-4].tar"])
def test_wildcards_use_the_directory_listing_of_the_server(name, server):
    server.lists = True
    (server.folder / "shards/index.parquet").unlink()
    (server.folder / "shards/.hidden.tar").write_bytes(b"")
    assert len(load_dataset(f"{server.url}/shards/{name}")) == 48
    assert len(load_dataset(f"{server.url}/shards")) == 48
    assert RemoteStore(f"{server.url}/shards").matching("*-000003.tar") == ["images-000003.tar"]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_busy_server_is_requested_again_for_a_listing(status, server):
    server.lists = True
    store = RemoteStore(f"{server.url}/shards")
    server.fail = [status, status]
    assert len(store.matching("*.tar")) == 5
    assert server.fail == []


def test_unavailable_server_is_not_an_empty_folder(server, monkeypatch):
    """With an error response or without any response."""
    store = RemoteStore(f"{server.url}/shards")
    server.fail = [500] * 100
    with pytest.raises(InputError, match=mentioning("5", "500")):
        store.matching("*.tar")
    assert len(server.fail) == 95
    with pytest.raises(InputError, match=mentioning("127.0.0.1:9", "5")):
        RemoteStore("http://127.0.0.1:9/shards").matching("*.tar")


@pytest.mark.parametrize(("status", "facts"), [(403, ("403", "credentials")), (404, ("there are no such shards",))])
def test_server_that_refuses_access_is_named(status, facts, server):
    server.head_fails = status
    with pytest.raises(InputError, match=mentioning(*facts)):
        load_dataset(f"{server.url}/shards/images-{{000000..000004}}.tar")


@pytest.mark.parametrize("status", [403, 404, 405])
def test_server_without_listings_matches_nothing(status, server):
    store = RemoteStore(f"{server.url}/shards")
    server.fail = [status]
    assert store.matching("*.tar") == []


@pytest.mark.parametrize(
    ("scheme", "package", "extra"),
    [("s3", "s3fs", "s3"), ("s3a", "s3fs", "s3"), ("gs", "gcsfs", "gcs"), ("az", "adlfs", "azure")],
)
def test_missing_package_names_the_extra_and_the_pip_command(scheme, package, extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(optional_deps, "requires", lambda _: [f"{package}<3,>=2; extra == '{extra}'"])
    with pytest.raises(InputError) as error:
        load_dataset(f"{scheme}://bucket/shards")
    assert str(error.value) == (
        f"reading {scheme}:// needs the package '{package}' of the extra '{extra}', which is not installed. "
        f'Install it with: pip install "{package}<3,>=2"'
    )


@pytest.mark.parametrize(
    ("url", "facts"),
    [
        ("gopher://host/shards", ("gopher://", "shard")),
        ("htps://host/shards", ("did you mean", "https")),
        ("ftp://host/shards", ("ftp://", "shard")),
    ],
)
def test_unsupported_scheme_names_supported_schemes(url, facts):
    with pytest.raises(InputError) as error:
        load_dataset(url)
    assert mentions(str(error.value), *facts)
    assert str(error.value).startswith(url)
    assert mentions(str(error.value), "s3")


def test_storage_error_at_the_start_is_reported(monkeypatch):
    def without_keys(*_, **__):
        raise RuntimeError("no keys")

    monkeypatch.setattr(storage, "url_to_fs", without_keys)
    with pytest.raises(InputError, match=mentioning("memory://shards", "RuntimeError")):
        RemoteStore("memory://shards")


def test_missing_fsspec_package_without_an_extra_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(InputError, match=mentioning("efficientnetv2")):
        load_dataset("sftp://host/shards")


def test_tars_without_an_index_are_scanned_over_http(server, class_folders):
    (server.folder / "shards/index.parquet").unlink()
    remote = load_dataset(f"{server.url}/shards/images-{{000000..000004}}.tar")
    assert len(remote) == 48
    local = load_dataset(class_folders)
    content = {path: Path(local.file(row)).read_bytes() for row, path in enumerate(local.paths)}
    reader = source_reader(remote)
    for row, path in enumerate(remote.paths):
        name = path.partition("#")[2]
        assert reader.source(row) == content[name]
        assert remote.class_names[remote.labels[row]] == name.partition("/")[0]


def test_dataset_csv_of_a_url_is_read_back_equal(server, tmp_path):
    dataset = load_dataset(f"{server.url}/shards")
    (tmp_path / "run").mkdir()
    dataset.to_csv(tmp_path / "run/dataset.csv")
    reloaded = ImageDataset.from_csv(tmp_path / "run/dataset.csv", root=dataset.root, source="x")
    assert reloaded.digest() == dataset.digest()
    from_run = ImageDataset.from_csv(tmp_path / "run/dataset.csv", root=tmp_path / "run", source="x")
    assert from_run.file(3) == dataset.file(3)
    as_data = load_dataset(tmp_path / "run/dataset.csv")
    assert as_data.digest() == dataset.digest()
    assert source_reader(as_data).source(3) == source_reader(dataset).source(3)


@pytest.mark.slow
def test_training_from_a_url_gives_the_same_bits(server, class_folders, tmp_path):
    from tests.faults.test_kill_and_resume import bits

    for data, name in ((f"{server.url}/shards", "far"), (class_folders, "near")):
        args = ("train", data, *TINY, "--weights", "none", "--output", tmp_path / name)
        result = effnetv2(*args, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert bits(tmp_path / "far") == bits(tmp_path / "near")
    result = effnetv2("evaluate", tmp_path / "far", f"{server.url}/shards", "--json", cwd=tmp_path)
    assert "48 of these 48" not in result.stderr
    assert "trained the model" in result.stdout
