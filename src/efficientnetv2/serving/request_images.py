"""The images of a request: a form, a file, JSON, or a public URL. Everything raises RequestError."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import math
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import httpx2
import numpy as np
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from efficientnetv2.data.image_io import Pixels
from efficientnetv2.serving.intake import RequestError
from efficientnetv2.serving.schemas import InferRequest, InputTensor
from efficientnetv2.serving.served_model import SentImage
from efficientnetv2.utils.errors import escape_controls, first_error, short_repr, shorten, truncate

Schema = TypeVar("Schema", bound=BaseModel)

NO_IMAGE = "the request has no image. Send one: curl -F image=@photo.jpg URL"
_DIGITS = 20  # of a number of bytes, at most. Ours
_OTHER_FIELDS = 10  # fields of a form that are no files, at most. Ours
# Errors of a JSON body of which the first is named: the texts of millions of errors take gigabytes. Ours.
_MAX_ERRORS = 1_000
# Redirects that are followed, at most. Ours.
_REDIRECTS = 3
# Addresses that a gateway translates to IPv4, also to private ones. Source: RFC 6052, RFC 8215.
_TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))


async def form_images(request: Request, max_images: int) -> list[SentImage]:
    """The files of a form, whatever their fields are called."""
    parser = MultiPartParser(request.headers, request.stream(), max_files=max_images, max_fields=_OTHER_FIELDS)
    parser.spool_max_size = sys.maxsize  # in memory, which the intake counts: there may be no temporary folder
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(413 if error.message.startswith("Too many files") else 400, error.message) from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    images = [
        SentImage(truncate(escape_controls(file.filename or f"image {number}")), await file.read())
        for number, file in enumerate(files, start=1)
    ]
    await form.close()
    if not images:
        raise RequestError(400, NO_IMAGE)
    return images


def parse(schema: type[Schema], body: bytes) -> Schema:
    """A JSON body. Raises RequestError that names the first wrong field."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        count = error.error_count()
        reason = f"it has {count:,} wrong fields"
        if count <= _MAX_ERRORS:
            reason = first_error(error.errors(include_input=False))
        raise RequestError(400, f"the JSON is not valid: {reason}.") from error


def base64_images(texts: Sequence[str]) -> list[SentImage]:
    """Images sent as base64."""
    return [SentImage(f"image {number}", _decoded(text, number)) for number, text in enumerate(texts, start=1)]


def split_binary(body: bytes, header: str | None) -> tuple[bytes, bytes]:
    """The JSON of a body, ``header`` bytes or all, and the tensor after it. Source: Triton, binary tensor data."""
    if header is None:
        return body, b""
    # Python converts no number of thousands of digits.
    if not header.isascii() or not header.isdigit() or len(header) > _DIGITS or int(header) > len(body):
        raise RequestError(400, "Inference-Header-Content-Length must be the number of bytes of the JSON.")
    return body[: int(header)], body[int(header) :]


def num_tensor_images(request: InferRequest) -> int:
    """Number of images of a request of the Open Inference Protocol, by the shape of its tensor."""
    tensor = request.inputs[0]
    return math.prod(tensor.shape) if tensor.datatype == "BYTES" else tensor.shape[0]


def tensor_images(request: InferRequest, binary: bytes = b"") -> list[SentImage]:
    """The images of a request of the Open Inference Protocol; ``binary``, unless empty, replaces the JSON's tensor."""
    tensor = request.inputs[0]
    if tensor.name != "images":
        raise RequestError(400, f"the input must be 'images', not {shorten([truncate(tensor.name)])}.")
    if not tensor.data and not binary:
        raise RequestError(400, NO_IMAGE)
    count = num_tensor_images(request)
    read = _files(tensor, binary, count) if tensor.datatype == "BYTES" else _pixels(tensor, binary)
    return [SentImage(f"image {number}", content) for number, content in enumerate(read, start=1)]


def _files(tensor: InputTensor, binary: bytes, count: int) -> Sequence[bytes]:
    if binary:
        files = list(islice(_length_prefixed(binary), count + 1))
    else:
        texts = [one for row in tensor.data for one in (row if isinstance(row, list) else [row])]
        if not all(isinstance(one, str) for one in texts):
            raise RequestError(400, "'data' must be base64 texts.")
        files = [_decoded(text, number) for number, text in enumerate(texts[: count + 1], start=1)]
    if len(files) != count:
        found = len(files) if len(files) < count else f"more than {count}"
        raise RequestError(400, f"the shape {tensor.shape} must be the number of images, which is {found}.")
    return files


def _length_prefixed(binary: bytes) -> Iterator[bytes]:
    """Elements that have their length before them, as 4 bytes, little-endian."""
    place = 0
    while place < len(binary):
        end = place + 4 + int.from_bytes(binary[place : place + 4], "little")
        if end > len(binary):
            raise RequestError(400, "the binary tensor is cut short.")
        yield binary[place + 4 : end]
        place = end


def _pixels(tensor: InputTensor, binary: bytes) -> Pixels:
    if len(tensor.shape) != 4:
        raise RequestError(400, f"the shape {tensor.shape} must be (N, H, W, channels).")
    try:
        values = np.frombuffer(binary, np.uint8) if binary else np.asarray(tensor.data)
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
            raise ValueError
        return values.astype(np.uint8).reshape(tensor.shape)
    except (ValueError, OverflowError, TypeError) as error:
        raise RequestError(400, f"'data' must be whole numbers of 0 to 255 in the shape {tensor.shape}.") from error


def _decoded(text: str, number: int) -> bytes:
    """The content of base64, or of a data URL."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"image {number} is not base64. Send the content of a file, not its path.") from error


def is_public(address: str) -> bool:
    """Whether an IP address is reachable from everywhere, and so is not one of this machine or its network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # IPv4 addresses within IPv6: mapped, 6to4, Teredo.
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inner:
            return is_public(str(inner))
        if ip.is_site_local or any(ip in network for network in _TRANSLATED):
            return False
    return ip.is_global and not ip.is_multicast


async def fetch(url: str, count: Callable[[int], object], timeout_s: float) -> bytes:
    """The content of a URL. Raises RequestError, also for an address that is not public.

    ``count`` gets the number of bytes of each part, and raises RequestError for too many.

    The connection goes to the address that was checked, whatever the name resolves to later. Proxies are not used.
    """
    target = _parsed(url)
    async with httpx2.AsyncClient(trust_env=False, timeout=timeout_s) as client:
        for _ in range(_REDIRECTS + 1):
            address = await _resolve(target)
            try:
                request = client.build_request(
                    "GET",
                    target.copy_with(host=address),
                    headers={"Host": target.netloc.decode("ascii"), "Accept-Encoding": "identity", "Accept": "image/*"},
                    extensions={"sni_hostname": _host(target)},
                )
                response = await client.send(request, stream=True)
                try:
                    if not response.has_redirect_location:
                        return await _content(response, str(target), count)
                    target = _parsed(response.headers["location"], target)
                finally:
                    await response.aclose()
            except httpx2.InvalidURL as error:  # too long, once it is quoted
                raise RequestError(400, f"{short_repr(url)} is not a URL.") from error
            except (httpx2.HTTPError, UnicodeError) as error:  # the latter for the host of a redirect
                shown = short_repr(str(target))
                raise RequestError(422, f"{shown} can't be fetched ({type(error).__name__}).") from error
    raise RequestError(422, f"{short_repr(url)} redirects more than {_REDIRECTS} times. Send the image.")


def _host(target: httpx2.URL) -> str:
    """The host as DNS has it. ``target.host`` is decoded, and may be encoded again as another name."""
    return target.raw_host.decode("ascii")


def _parsed(url: str, base: httpx2.URL | None = None) -> httpx2.URL:
    """A URL of the web; of a redirect, whose URL may be relative, with the URL that redirects as `base`."""
    try:
        target = httpx2.URL(url) if base is None else base.join(url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise RequestError(400, f"{short_repr(url)} is not a URL.") from error
    if target.scheme not in ("http", "https") or not _host(target) or target.userinfo:
        raise RequestError(400, f"{short_repr(url)} must begin with http:// or https://, without a password.")
    if target.port is not None and not 0 < target.port < 2**16:
        raise RequestError(400, f"the port of {short_repr(url)} must be 1 to 65535, not {short_repr(target.port)}.")
    return target


async def _resolve(target: httpx2.URL) -> str:
    """An address of the URL's host; all of them must be public."""
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(_host(target), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RequestError(422, f"the host {short_repr(_host(target))} is not found.") from error
    addresses = [str(one[4][0]) for one in found]
    if not addresses or not all(map(is_public, addresses)):
        raise RequestError(403, f"the host {short_repr(_host(target))} has a private address. Send the image.")
    return addresses[0]


async def _content(response: httpx2.Response, url: str, count: Callable[[int], object]) -> bytes:
    if response.status_code != 200:
        raise RequestError(422, f"{short_repr(url)} can't be fetched (status {response.status_code}).")
    content = bytearray()
    async for chunk in response.aiter_raw():
        count(len(chunk))
        content += chunk
    return bytes(content)
