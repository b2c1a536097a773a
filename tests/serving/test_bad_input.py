"""Invalid requests get a status and a reason, need little memory, and do not affect the next request."""

import base64
import io
import json
import resource
import struct
import tempfile
import zlib

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from tests.conftest import png_chunk
from tests.messages import mentions
from tests.serving.model_files import app_of, encoded, pixels

from efficientnetv2.serving import request_images
from efficientnetv2.serving.intake import RequestError
from efficientnetv2.serving.schemas import PredictRequest


def _png_header(width, height):
    """Return the header of a small PNG that would be decoded to this size."""
    rows = zlib.compress(bytes(2**20), 9) * 4
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def _image(width, height, format="PNG"):
    return encoded(Image.fromarray(np.zeros((height, width, 3), np.uint8)), format)


def _tiff_header(side, bands, bits, tile=None):
    """Return the header of a square raster that only GDAL reads, without its pixels."""
    entries = [(256, 4, 1, side), (257, 4, 1, side), (277, 3, 1, bands << 16), (258, 3, 1, bits << 16)]
    if tile:
        entries += [(322, 4, 1, tile), (323, 4, 1, tile)]
    return (
        b"MM\0*"
        + struct.pack(">IH", 8, len(entries))
        + b"".join(struct.pack(">HHII", *one) for one in entries)
        + bytes(4)
    )


def _rle_bmp(width, height):
    """Return a run-length encoded bitmap of four bytes a row."""
    rows = b"\1\0\0\0" * height
    start = 14 + 40 + 1024
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + bytes(1024) + rows


def _icon(content):
    """Return an icon file that contains a PNG."""
    return struct.pack("<HHH4BHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(content), 22) + content


JPEG = encoded(0)
BAD = {
    "a decompression bomb": (_png_header(30_000, 30_000), 413, ("bomb",)),
    "more pixels than the server takes": (_png_header(10_000, 9_000), 413, ("10,000×9,000", "50,000,000")),
    "a bomb that only GDAL opens": (_tiff_header(100_000, 5, 8), 413, ("100,000×100,000",)),
    "a raster of few pixels that have many bytes": (
        _tiff_header(7_000, 13, 64),
        413,
        ("7,000×7,000", 104, "50,000,000", 3),
    ),
    "a small raster whose tile is a bomb": (_tiff_header(16, 3, 8, tile=26_000), 413, ("26,000×26,000",)),
    "a format that is decoded in Python": (_rle_bmp(65_000, 760), 413, ("65,000×760", 48)),
    "an icon that unpacks to more than its header states": (_icon(_png_header(10_000, 9_000)), 415, ("ICO", "PNG")),
    "an empty file": (b"", 422, ("0 bytes",)),
    "text as JPEG": (b"this is no image", 415, ("image",)),
    "a truncated JPEG": (encoded(1)[:-400], 422, ("photo.jpg",)),
    "the first bytes of a JPEG": (encoded(1)[:20], 415, ("photo.jpg",)),
    "one pixel": (_image(1, 1), 422, ("1×1",)),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, ("SVG",)),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), 415, ("HEIC",)),
    "PDF": (b"%PDF-1.7\n", 415, ("PDF",)),
}
GOOD = {
    "very wide": _image(30_000, 2),
    "CMYK": encoded(Image.fromarray(pixels(1)).convert("CMYK")),
    "16 bits": encoded(Image.fromarray(pixels(1)[..., 0].astype(np.uint16) * 256), "PNG"),
    "an animated GIF": encoded(0, "GIF", save_all=True, append_images=[Image.fromarray(pixels(1))]),
}


def _is_served(client):
    return client.post("/predict", files={"image": ("ok.jpg", JPEG)}).status_code == 200


@pytest.mark.parametrize("name", BAD)
def test_unreadable_image_is_refused_with_its_name_and_the_reason(client, name):
    content, status, facts = BAD[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    response = client.post("/predict", files={"image": ("photo.jpg", content, "image/jpeg")})
    assert response.status_code == status
    assert mentions(response.json()["error"], "photo.jpg", *facts)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10  # KiB
    assert _is_served(client)


@pytest.mark.parametrize("name", GOOD)
def test_unusual_image_is_predicted(client, name):
    assert client.post("/predict", files={"image": ("photo", GOOD[name])}).status_code == 200


def test_large_photo_needs_no_temporary_folder(client, monkeypatch, tmp_path):
    """As in a container whose disk cannot be written."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), "PNG")
    assert len(content) > 2**21
    assert client.post("/predict", files={"image": ("photo.png", content)}).status_code == 200


def test_unreadable_image_of_several_is_named(client):
    files = [("image", ("good.jpg", JPEG)), ("image", ("bad.jpg", b"text")), ("image", ("empty.jpg", b""))]
    response = client.post("/predict", files=files)
    assert response.status_code == 415
    assert mentions(response.json()["error"], "bad.jpg")


@pytest.mark.parametrize(
    ("content", "content_type", "status", "facts"),
    [
        (JPEG, "text/plain", 415, ("multipart/form-data", "curl -F")),
        (JPEG, "application/x-www-form-urlencoded", 415, ("curl -F",)),
        (b"--x\r\n\r\n", "multipart/form-data", 400, ("boundary",)),
        (b"nonsense", "multipart/form-data; boundary=x", 400, ()),
        (b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nphoto.jpg\r\n--x--\r\n',
         "multipart/form-data; boundary=x", 400, ("no image", "curl -F")),
        (b"{", "application/json", 400, ("JSON",)),
        (b"[" * 100_000, "application/json", 400, ("JSON",)),
        (b"{}", "application/json", 400, ("no image",)),
        (json.dumps({"image": "/etc/passwd"}).encode(), "application/json", 400, ("image 1", "path")),
        (json.dumps({"path": "../../etc/passwd"}).encode(), "application/json", 400, ("path",)),
        (json.dumps({"url": "https://example.com/a.jpg"}).encode(), "application/json", 403, ("URL",)),
        (json.dumps({"images": [base64.b64encode(JPEG).decode()] * 33}).encode(), "application/json", 413, (33, 32)),
        (json.dumps({"image": "", "images": [""] * 32}).encode(), "application/json", 413, (33, 32)),
        (json.dumps({"images": [[]] * 1_000}).encode(), "application/json", 400, ("images.0", "JSON")),
        (json.dumps({str(number): 1 for number in range(2_000)}).encode(), "application/json", 400, ("JSON", "2,000")),
    ],
)  # fmt: skip
def test_malformed_request_is_refused(client, content, content_type, status, facts):
    response = client.post("/predict", content=content, headers={"Content-Type": content_type})
    assert response.status_code == status
    assert mentions(response.json()["error"], *facts) if facts else response.json()["error"]
    assert _is_served(client)


def test_too_many_images_are_refused(client):
    response = client.post("/predict", files=[("image", JPEG)] * 33)
    assert response.status_code == 413
    assert mentions(response.json()["error"], 32)
    assert _is_served(client)


@pytest.mark.parametrize(
    ("datatype", "shape", "status"), [("BYTES", [33], 413), ("UINT8", [33, 9, 9, 3], 413), ("BYTES", [1], 400)]
)
def test_a_tensor_of_too_many_images_is_refused_before_its_images_are_built(
    client, datatype, shape, status, monkeypatch
):
    built = []
    monkeypatch.setattr(request_images, "_pixels", lambda *_: built.append(1))
    monkeypatch.setattr(request_images, "_length_prefixed", lambda binary: (built.append(1) or b"" for _ in binary))
    header = json.dumps({"inputs": [{"name": "images", "shape": shape, "datatype": datatype}]}).encode()
    response = client.post(
        "/v2/models/tiny/infer",
        content=header + bytes(10_000),
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
    assert response.status_code == status
    assert mentions(response.json()["error"], *([33, 32] if status == 413 else ["shape", 1]))
    assert len(built) <= 2


def test_too_many_bytes_are_refused_with_or_without_a_declared_length(model):
    with TestClient(app_of(model, max_bytes=10_000)) as client:
        for content in (bytes(20_000), (bytes(1_000) for _ in range(20))):
            response = client.post("/predict", content=content, headers={"Content-Type": "image/jpeg"})
            assert response.status_code == 413
            assert mentions(response.json()["error"], "10,000 bytes")
        assert client.app.state.service.intake.buffered == 0
        assert _is_served(client)


def test_bytes_of_all_requests_together_are_limited(model):
    with TestClient(app_of(model, max_bytes=10_000)) as client:
        client.app.state.service.intake.buffered = 16 * 10_000 - 10
        response = client.post("/predict", content=JPEG, headers={"Content-Type": "image/jpeg"})
        assert response.status_code == 429
        assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/v2/models/..%2f..%2fetc%2fpasswd"])
def test_path_outside_the_routes_is_not_found(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert "root:" not in response.text


def test_wrong_method_is_refused(client):
    response = client.get("/predict")
    assert response.status_code == 405
    assert response.json()["error"]


def test_file_names_are_short_and_without_control_characters(client):
    name = "\x1b[31m" + "x" * 500
    buffer = io.BytesIO(b"text")
    error = client.post("/predict", files={"image": (name, buffer)}).json()["error"]
    assert "\x1b" not in error
    assert len(error) < 300


def test_list_of_invalid_items_has_one_error():
    """Each error needs hundreds of bytes, and an item of a list may have two errors."""
    with pytest.raises(RequestError) as refused:
        request_images.parse(PredictRequest, json.dumps({"images": [[]] * 1_000}).encode())
    assert refused.value.__cause__.error_count() == 1


def test_numbers_of_a_json_tensor_are_freed_after_conversion_to_pixels(client):
    shape = (1, 4, 5, 3)
    tensor = {"name": "images", "shape": shape, "datatype": "UINT8", "data": np.zeros(shape, int).tolist()}
    body, (image,) = client.app.state.service._parse_infer(json.dumps({"inputs": [tensor]}).encode(), b"")
    assert image.content.shape == shape[1:]
    assert body.inputs[0].data == []
