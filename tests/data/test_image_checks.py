"""Which files can be used, and which are identical."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.messages import mentioning, mentions

from efficientnetv2.data import file_probe
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.decode import load_image
from efficientnetv2.data.file_probe import map_chunks, probe
from efficientnetv2.data.image_checks import validate_images
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.utils.errors import InputError


def noise(seed: int, px: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (px, px, 3), dtype=np.uint8))


def encoded(seed: int, format_: str = "JPEG", px: int = 40) -> bytes:
    file = io.BytesIO()
    noise(seed, px).save(file, format_)
    return file.getvalue()


def make_dataset(root: Path, files: dict[str, bytes]) -> ImageDataset:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return load_dataset(root)


@pytest.fixture
def good(tmp_path: Path) -> ImageDataset:
    return make_dataset(tmp_path, {f"{'ab'[i % 2]}/{i:02}.jpg": encoded(i) for i in range(40)})


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("px", [2, 40, 300])
def test_complete_images_are_usable(tmp_path, format_, px):
    (tmp_path / "x").write_bytes(encoded(0, format_, px))
    assert probe(str(tmp_path / "x")).reason == ""


def test_jpeg_with_trailing_bytes_is_usable(tmp_path):
    (tmp_path / "x.jpg").write_bytes(encoded(0) + bytes(4000))
    assert probe(str(tmp_path / "x.jpg")).reason == ""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty (0 bytes)"),
        (b"path,label\n1.jpg,cat\n" * 9, "holds text, not an image"),
        (bytes(range(256)), "is not an image that Pillow can read"),
        (encoded(0, px=1), "is too small: 1×1 px"),
        (encoded(0, "PNG", px=1), "is too small: 1×1 px"),
        (encoded(0, px=300)[:-3000], "is cut short (truncated)"),
        (encoded(0)[:-300], "is cut short (truncated)"),
        (encoded(0, "PNG", px=300)[:-3000], "is cut short (truncated)"),
        (encoded(0, "WEBP")[:-100], "cannot be decoded"),
        (encoded(0, "TIFF")[:3000], "is cut short (truncated)"),
        (encoded(0, "BMP")[:-100], "is cut short (truncated)"),
    ],
)
def test_unusable_file_has_a_reason(tmp_path, data, reason):
    (tmp_path / "x.jpg").write_bytes(data)
    assert probe(str(tmp_path / "x.jpg")).reason.startswith(reason)


@pytest.mark.parametrize(
    ("header", "format_name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "video"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81", "video"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"FUJIFILMCCD-RAW 0201", "camera"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "camera"),
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"PK\x03\x04\x14\0", "archive"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_file_of_another_format_is_named_for_any_suffix(tmp_path, header, format_name):
    (tmp_path / "IMG_0001.jpg").write_bytes(header + bytes(500))
    assert format_name in probe(str(tmp_path / "IMG_0001.jpg")).reason
    with pytest.raises(UnreadableImageError, match=format_name):
        load_image(str(tmp_path / "IMG_0001.jpg"))


def test_camera_raw_is_not_read_as_its_preview(tmp_path):
    """DNG and NEF are TIFFs: a small preview, with the raw data in directories of its own."""
    Image.new("RGB", (160, 120)).save(tmp_path / "preview.tif", tiffinfo={254: 1, 330: 8})
    assert mentions(probe(str(tmp_path / "preview.tif")).reason, "raw data of a camera")
    Image.new("RGB", (160, 120)).save(tmp_path / "scan.tif", tiffinfo={254: 0})
    assert not probe(str(tmp_path / "scan.tif")).reason


def test_flipped_byte_in_a_png_is_found(tmp_path):
    data = bytearray(encoded(0, "PNG"))
    data[len(data) // 2] ^= 1
    (tmp_path / "x.png").write_bytes(data)
    assert mentions(probe(str(tmp_path / "x.png")).reason, "decoded")


def test_missing_files_and_folders_are_not_images(tmp_path):
    assert probe(str(tmp_path / "none.jpg")).reason == "does not exist"
    assert mentions(probe(str(tmp_path)).reason, "folder")


def test_decompression_bomb_is_not_opened_and_gives_no_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)  # 100 × 100 is an error, 80 × 80 a warning
    files = {f"{c}/{i}.png": encoded(i, "PNG", 80) for c in "ab" for i in range(20)}
    dataset = make_dataset(tmp_path, {**files, "a/bomb.png": encoded(0, "PNG", 120)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = validate_images(dataset)
    ((row, reason),) = report.unreadable.items()
    assert dataset.paths[row] == "a/bomb.png"
    assert "decompression bomb" in reason


def test_few_unreadable_files_are_listed_and_skipped(good, tmp_path):
    (tmp_path / "a/00.jpg").write_bytes(b"")
    (tmp_path / "b/13.jpg").unlink()
    report = validate_images(good)
    assert {good.paths[row]: reason for row, reason in report.unreadable.items()} == {
        "a/00.jpg": "is empty (0 bytes)",
        "b/13.jpg": "does not exist",
    }
    assert len(report.readable) == 38
    assert not set(report.readable) & set(report.unreadable)
    with pytest.raises(InputError, match=mentioning("a/00.jpg", "0")):
        validate_images(good, strict=True)


def test_more_than_5_percent_unreadable_is_rejected(good, tmp_path):
    """2 of 40 are skipped, 3 are an error."""
    for name in ("a/00.jpg", "a/02.jpg", "a/04.jpg"):
        (tmp_path / name).write_bytes(b"\0")
    with pytest.raises(InputError, match=mentioning("3", "40", "8", "5", "a/02.jpg")):
        validate_images(good)


def test_equal_bytes_have_one_id(tmp_path):
    """Files of the same size and the same end may differ in the middle; names do not matter."""
    base = np.array(noise(0))
    other = base.copy()
    other[1, 1] ^= 255
    files = {}
    for name, pixels in (("a/1.bmp", base), ("a/2.bmp", other), ("b/3.bmp", base), ("b/4.bmp", base[::-1])):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "BMP")
        files[name] = file.getvalue()
    assert len(set(map(len, files.values()))) == 1
    assert files["a/1.bmp"][-2000:] != files["b/4.bmp"][-2000:]
    report = validate_images(make_dataset(tmp_path, files))
    first, second, third, fourth = report.contents
    assert first == third
    assert len({first, second, fourth}) == 3
    assert report.label_conflicts == 1, "one image has both labels"


def test_ids_do_not_depend_on_the_threads(tmp_path):
    files = {f"{'ab'[i % 2]}/{i:04}.png": encoded(i % 300, "PNG", 4) for i in range(900)}
    dataset = make_dataset(tmp_path, files)
    first, second = validate_images(dataset), validate_images(dataset)
    assert first.contents.tolist() == second.contents.tolist()
    assert len(set(first.contents)) == 300
    assert mentions(first.notes[0], "600", "900")


def test_image_in_train_and_val_is_rejected_with_both_names(tmp_path):
    files = {
        f"{s}/{c}/{i}.jpg": encoded(i + 10 * ord(s[0]) + ord(c))
        for s in ("train", "val")
        for c in "ab"
        for i in range(3)
    }
    files["val/b/copy.jpg"] = files["train/a/1.jpg"]
    dataset = make_dataset(tmp_path, files)
    with pytest.raises(InputError, match=mentioning("train/a/1.jpg", "val/b/copy.jpg")):
        validate_images(dataset)
    published = validate_images(replace(dataset, published="imagenette"))
    assert "the published splits of imagenette are kept" in published.notes[0]


def test_duplicates_across_splits_are_named_by_row(tmp_path):
    for name in ("1", "2"):
        (tmp_path / f"{name}.jpg").write_bytes(encoded(0))
    (tmp_path / "3.jpg").write_bytes(encoded(1))
    (tmp_path / "t.csv").write_text("path,label,split\n1.jpg,a,\n2.jpg,a,test\n3.jpg,b,train\n")
    with pytest.raises(InputError, match=mentioning("1.jpg", "2", "2.jpg", "3", "test")):
        validate_images(load_dataset(tmp_path / "t.csv"))


def test_duplicates_with_different_labels_are_reported(tmp_path):
    dataset = make_dataset(tmp_path, {"cat/1.jpg": encoded(0), "dog/2.jpg": encoded(0), "dog/3.jpg": encoded(1)})
    notes = validate_images(dataset).notes
    assert mentions(notes[1], "cat/1.jpg", "dog/2.jpg")


def test_two_empty_files_are_not_duplicates(good, tmp_path):
    for name in ("a/00.jpg", "b/01.jpg"):
        (tmp_path / name).write_bytes(b"")
    report = validate_images(good)
    assert len(set(report.contents)) == 40
    assert report.notes == ()


def test_images_converted_to_rgb_are_counted_by_type(tmp_path):
    """Before training: a model of three channels loses near infrared and alpha."""
    rng = np.random.default_rng(0)
    for mode, count in (("L", 10), ("RGBA", 4), ("CMYK", 2)):
        for number in range(count):
            channels = () if mode == "L" else (4,)
            pixels = rng.integers(0, 256, (20, 20, *channels), dtype=np.uint8)
            suffix = "png" if mode == "RGBA" else "tif"
            Image.fromarray(pixels, mode).save(tmp_path / f"{mode}{number}.{suffix}")
    Image.fromarray(rng.integers(0, 2**16, (20, 20)).astype(np.uint16)).save(tmp_path / "16bit.png")
    for number in range(5):
        noise(number).save(tmp_path / f"color{number}.png")
        noise(number + 5).convert("P").save(tmp_path / f"palette{number}.png")
    (note,) = validate_images(load_dataset(tmp_path, require_labels=False)).notes
    assert note == (
        "Not stored as 8-bit RGB: 10 gray (three equal channels), 4 with an alpha channel (laid over white), "
        "2 CMYK, 1 gray of 16 bits (the upper 8 bits are read; the extra 'geo' measures the range of TIFFs)."
    )


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_part_of_a_16_bit_range_is_reported(tmp_path, bits, channels):
    """X-ray detectors and microscopes write 12 bits in 16: 16 of 256 levels remain."""
    rng = np.random.default_rng(0)
    for number in range(6):
        values = rng.integers(0, 2**bits, (20, 20, channels)).astype(">u2")
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(deep_png(values))
    notes = " ".join(validate_images(load_dataset(tmp_path)).notes)
    assert f"6 {'gray' if channels == 1 else 'colors'} of 16 bits" in notes
    assert ("16 of 256 levels" in notes) == (bits == 12)


def deep_png(values):
    """A PNG of 16 bits; Pillow cannot write RGB of 16 bits."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 0 if channels == 1 else 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_progress_is_the_number_of_checked_images(good, monkeypatch):
    monkeypatch.setattr(file_probe, "_CHUNK", 16)
    progress = []
    validate_images(good, progress=progress.append)
    assert progress == [16, 32, 40]


def test_stopping_cancels_chunks_that_have_not_started(monkeypatch):
    """All chunks except the first wait until the pool shuts down."""
    started, stopped, threads = [], threading.Event(), threading.active_count()

    def work(items):
        started.extend(items)
        assert items[0] == 0 or stopped.wait(60)
        return list(items)

    class Pool(file_probe.ThreadPoolExecutor):
        def shutdown(self, **options):
            super().shutdown(**options | {"wait": False})
            stopped.set()
            super().shutdown(wait=options.get("wait", True))

    def interrupt(done):
        raise KeyboardInterrupt

    monkeypatch.setattr(file_probe, "ThreadPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt):
        map_chunks(work, range(48), interrupt, threads=2, size=1)
    assert set(started) <= {0, 1, 2}, "the first, and one in each of two threads"
    assert threading.active_count() <= threads, "no thread is left"
