"""Packages that only some uses need: imported when needed, and missed by the name of their extra."""

from __future__ import annotations

import importlib
from types import ModuleType

from efficientnetv2.base.errors import InputError


def needed(module: str, extra: str, why: str) -> ModuleType:
    """Import a package that comes with an extra.

    Args:
        module: as one would import it, e.g. ``keras``.
        extra: of this package that brings it.
        why: what it is needed for; the message begins with it.

    Raises:
        InputError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Of a package that is there but lacks one of its own, the error already names what to install.
        if error.name != module.partition(".")[0]:
            raise
        raise InputError(
            f"{why} needs the package '{error.name}', which is not installed. "
            f"Install it with: pip install 'efficientnetv2[{extra}]'"
        ) from error
