"""Only supported files and formats are opened, with limits on memory and time."""

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tests.messages import mentioning, mentions

from efficientnetv2.data import open_image
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.decode import load_image
from efficientnetv2.data.file_probe import probe
from efficientnetv2.data.image_io import UnreadableImageError, image_size, is_high_bit_depth
from efficientnetv2.data.image_metadata import longer_sides
from efficientnetv2.data.open_image import is_image


def encoded(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def noise(px=64, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (px, px, 3), dtype=np.uint8))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n{} loop\n"


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    """Some libraries run Ghostscript on such a file."""
    called, file = tmp_path / "called", tmp_path / "a/holiday.jpg"
    program = tmp_path / "bin/gs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho called > "{called}"\necho 10.0\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    file.parent.mkdir()
    file.write_bytes(EPS)
    assert mentions(probe(str(file)).reason, "PostScript", "image")
    for source in (file, EPS):
        with pytest.raises(UnreadableImageError, match=mentioning("format")):
            load_image(source)
        with pytest.raises(UnreadableImageError, match=mentioning("format")):
            image_size(source)
        assert not is_high_bit_depth(source)
    assert np.isnan(longer_sides(load_dataset(tmp_path / "a", require_labels=False))).all()
    assert not called.exists()


def test_supported_formats_are_found_in_folders():
    assert all(map(is_image, ("a.jpg", "a.PNG", "a.webp", "a.tif", "a.bmp", "a.gif", "a.jp2", "a.avif", "a.ico")))
    assert not any(map(is_image, ("a.eps", "a.ps", "a.wmf", "a.fits", "a.txt")))


@pytest.fixture(params=["pipe", "device"])
def endless(request, tmp_path):
    path = tmp_path / f"{request.param}.jpg"
    if request.param == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.timeout(60)
def test_pipes_and_devices_are_rejected_immediately(endless):
    assert mentions(probe(str(endless)).reason, "regular file")
    for open_file in (load_image, image_size):
        with pytest.raises(UnreadableImageError, match=mentioning("regular file")):
            open_file(endless)
    assert not is_high_bit_depth(endless)
    with pytest.raises(OSError, match="regular"):
        open_image.read_file(endless)


def test_file_size_is_limited(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(encoded(noise()))
    monkeypatch.setattr(open_image, "MAX_BYTES", 100)
    with pytest.raises(UnreadableImageError, match="more than"):
        load_image(tmp_path / "x.png")


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("after_pixels", [False, True], ids=["before the pixels", "after the pixels"])
@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_long_text_in_a_png_is_not_damage(tmp_path, kind, after_pixels):
    content, large = encoded(noise()), zlib.compress(b'{"node": 1} ' * 200_000)
    names = {b"zTXt": b"workflow\0\0", b"iCCP": b"profile\0\0", b"iTXt": b"workflow\0\1\0\0\0"}
    body = names[kind] + large
    position = content.index(b"IEND") - 4 if after_pixels else content.index(b"IDAT") - 4
    (tmp_path / "x.png").write_bytes(content[:position] + chunk(kind, body) + content[position:])
    assert probe(str(tmp_path / "x.png")).reason == ""
    assert np.array_equal(np.asarray(load_image(tmp_path / "x.png")), np.asarray(noise()))
    assert image_size(tmp_path / "x.png") == (64, 64)


def header_only_png(width, height):
    """A PNG of a few bytes without pixel data."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(2, 5_000_000), (5_000_000, 2), (1, 80_000_000)])
def test_extreme_sizes_are_rejected_before_decoding(tmp_path, size, monkeypatch):
    (tmp_path / "x.png").write_bytes(header_only_png(*size))
    monkeypatch.setattr(Image.Image, "load", None)  # decoding fails
    for reason in (probe(str(tmp_path / "x.png")).reason, rejection(tmp_path / "x.png")):
        assert f"{size[0]} x {size[1]}" in reason


def rejection(path):
    with pytest.raises(UnreadableImageError) as caught:
        load_image(path)
    return caught.value.reason


def test_threads_that_ignore_warnings_leave_the_filters_of_the_process():
    """The first thread leaves before the second: `warnings.catch_warnings` would then leave its filters behind."""
    before, entered, left = list(warnings.filters), threading.Event(), threading.Event()

    def second():
        with open_image.IGNORED_WARNINGS:
            entered.set()
            left.wait(30)
            warnings.warn("not shown", stacklevel=1)

    with ThreadPoolExecutor(1) as pool:
        with open_image.IGNORED_WARNINGS:
            second_thread = pool.submit(second)
            entered.wait(30)
        left.set()
        second_thread.result()
    assert warnings.filters == before
    with pytest.raises(UserWarning, match="shown"):
        warnings.warn("shown", stacklevel=1)
