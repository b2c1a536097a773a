"""The page of the server: one file, whose script and style are allowed by their hashes, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files


def load_page() -> tuple[str, str]:
    """The HTML of the page, and its content security policy."""
    html = files("efficientnetv2.serving").joinpath("page/index.html").read_text(encoding="utf-8")
    script, style = (_hash_of(html, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _hash_of(html: str, tag: str) -> str:
    """The hash of the only element with a tag. Source: CSP Level 3, section 2.3.1."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
