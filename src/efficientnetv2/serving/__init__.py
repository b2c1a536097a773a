"""An HTTP server for models: `effnetv2 serve`, or an ASGI application for another server.

`create_app` and `serve` are imported when they are first used: they need the extra `serve`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from efficientnetv2.serving.options import ServerOptions
from efficientnetv2.utils.optional_deps import import_optional

if TYPE_CHECKING:
    from efficientnetv2.serving.app import create_app as create_app
    from efficientnetv2.serving.server import serve as serve

__all__ = ["ServerOptions", "create_app", "serve"]


def __getattr__(name: str) -> Any:
    if name not in ("create_app", "serve"):
        raise AttributeError(f"module 'efficientnetv2.serving' has no attribute '{name}'")
    for package in ("fastapi", "uvicorn", "python_multipart"):
        import_optional(package, "serve", "Serving a model")
    return getattr(import_module(f"efficientnetv2.serving.{'server' if name == 'serve' else 'app'}"), name)
