"""Packages that only some uses need: imported when needed, and missed with the command that brings them.

torchvision among them, which is always installed, but may not fit the torch that is.
"""

from __future__ import annotations

import importlib
import platform
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from types import ModuleType

from packaging.requirements import Requirement

from efficientnetv2.utils.errors import InputError

_BOTH = (
    "install torch and torchvision from one place, as pytorch.org says for this machine. Without a GPU: "
    "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu"
)


def import_optional(module: str, extra: str, why: str) -> ModuleType:
    """Import a package that comes with an extra.

    Args:
        module: as one would import it, e.g. ``keras``.
        extra: of this package that brings it.
        why: what it is needed for; the message begins with it.

    Raises:
        InputError: the package is not installed, or needs torchvision, which does not fit torch.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Of a package that is there but lacks one of its own, the error already names what to install.
        if error.name != module.partition(".")[0]:
            raise
        raise InputError(
            f"{why} needs the package '{error.name}' of the extra '{extra}', which is not installed. "
            f"{_how_to_get(extra)}"
        ) from error
    except (ImportError, RuntimeError, OSError):
        import_torchvision()  # which it may have imported: then that says what is wrong
        raise


def import_torchvision(module: str = "") -> ModuleType:
    """Import torchvision, or a module of it.

    Its operators are compiled for one version of torch: beside another one it can't be imported at all.

    Args:
        module: e.g. ``models``; '' is torchvision itself.

    Raises:
        InputError: it is not installed, or does not fit torch.
    """
    try:
        return importlib.import_module(f"torchvision.{module}".rstrip("."))
    except (ImportError, RuntimeError, OSError) as error:
        try:
            there, torch = version("torchvision"), version("torch")
        except PackageNotFoundError as missing:
            raise InputError(f"the package '{missing.name}' is not installed: {_BOTH}") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"torchvision {there} does not fit torch {torch}, and can't be imported ({reason}): {_BOTH}"
        ) from error


def _how_to_get(extra: str) -> str:
    packages = extra_requirements(extra)
    if extra not in (metadata("efficientnetv2").get_all("Provides-Extra") or []):
        again = f'pip install -e ".[{extra}]"'
        return f"efficientnetv2 is newer than what was installed: install it anew, in a clone with {again}"
    if not packages:
        return f"There is none for Python {platform.python_version()} on {platform.system()}."
    # Double quotes are quotes in every shell, Windows' too.
    return "Install it with: pip install " + " ".join(f'"{package}"' for package in packages)


def extra_requirements(extra: str) -> list[str]:
    """What pip is to install for an extra on this machine, by the names and versions that this package states.

    Named one by one they can be had wherever this package is from; ``efficientnetv2[EXTRA]`` would ask the index
    for a package that may have come from a clone.

    Args:
        extra: of this package.
    """
    found = [Requirement(line) for line in requires("efficientnetv2") or []]
    return sorted(
        f"{one.name}{one.specifier}"
        for one in found
        if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""})
    )
