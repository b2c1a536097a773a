"""The page that classifies images: with a server, or as static files with the model in the browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from efficientnetv2.exporters.graph import metadata
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.utils.errors import InputError, error_summary

# The version that the tests use. The package has no license file, and its script names the license.
_PACKAGE = "onnxruntime-web@1.30.0"
# Files of the package, and their names in an export: not every server knows the type of .mjs.
_RUNTIME = {
    "ort.wasm.bundle.min.mjs": "ort.wasm.bundle.min.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
_ASSETS = files("efficientnetv2.exporters").joinpath("page")


def load_page(script_sources: str = "") -> tuple[str, str]:
    """The HTML of the page, and its content security policy; ``script_sources`` are allowed besides its own script."""
    html = _ASSETS.joinpath("index.html").read_text(encoding="utf-8")
    script, style = (_hash_of(html, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script} {script_sources}; style-src {style}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    return html, policy


def read_runtime(path: Path | None) -> dict[str, bytes]:
    """Files of onnxruntime-web by their name in an export, from `npm pack`'s file or the folder. Raises InputError."""
    fix = f"Run `npm pack {_PACKAGE}`, and give its file with `runtime`."
    if path is None:
        raise InputError(f"`format=web` needs the npm package onnxruntime-web. {fix}")
    try:
        if path.is_dir():
            return {name: (path / "dist" / file).read_bytes() for file, name in _RUNTIME.items()}
        with tarfile.open(path) as archive:
            return {name: _read_member(archive, f"package/dist/{file}") for file, name in _RUNTIME.items()}
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"`runtime` {path} is not onnxruntime-web ({error_summary(error)}). {fix}") from error


def _read_member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    if stream is None:
        raise tarfile.ReadError(f"{name} is not a file")
    return stream.read()


def write_page(folder: Path, network: Network, runtime: Mapping[str, bytes]) -> None:
    """Write all files next to `model.onnx`, which takes raw images; ``runtime`` as `read_runtime` returns it."""
    # The worker is a file of the folder. Compiling WebAssembly needs the permission in browsers whose workers inherit.
    html, policy = load_page("'self' 'wasm-unsafe-eval'")
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<meta name="worker" content="worker.js">\n'
    (folder / "index.html").write_text(html.replace("<title>", f"{head}<title>", 1), encoding="utf-8", newline="\n")
    (folder / "worker.js").write_bytes(_ASSETS.joinpath("worker.js").read_bytes())
    info = metadata(network, "uint8")
    decoded = {name: json.loads(info[name]) for name in ("names", "image_size", "crop_pct", "mean", "std")}
    (folder / "model.json").write_text(json.dumps(info | decoded), encoding="utf-8")
    (folder / "onnxruntime-web").mkdir()
    for name, content in runtime.items():
        (folder / "onnxruntime-web" / name).write_bytes(content)


def _hash_of(html: str, tag: str) -> str:
    """The hash of the only element with a tag. Source: CSP Level 3, section 2.3.1."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
