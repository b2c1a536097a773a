"""Imports of optional packages. A missing one is an `InputError` with the command that installs it.

This includes torchvision, which is always installed, but may not fit the installed torch.
"""

from __future__ import annotations

import importlib
import platform
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from types import ModuleType

from packaging.requirements import Requirement

from efficientnetv2.utils.errors import InputError

_INSTALL_BOTH = (
    "install torch and torchvision from one place, as pytorch.org says for this machine. Without a GPU: "
    "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu"
)


def import_optional(module: str, extra: str, why: str) -> ModuleType:
    """Import a module of a package that an extra installs. ``why`` begins the message: what needs it.

    Raises:
        InputError: The package is not installed, or needs torchvision, which does not fit torch.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # If an installed package lacks a dependency, the error already names it.
        if error.name != module.partition(".")[0]:
            raise
        raise InputError(
            f"{why} needs the package '{error.name}' of the extra '{extra}', which is not installed. "
            f"{_how_to_install(extra)}"
        ) from error
    except (ImportError, RuntimeError, OSError):
        import_torchvision()  # The package may have imported it: then the reason is known.
        raise


def import_torchvision(module: str = "") -> ModuleType:
    """Import torchvision or a module of it. Its operators are compiled for one version of torch.

    Raises:
        InputError: It is not installed, or does not fit torch.
    """
    try:
        return importlib.import_module(f"torchvision.{module}".rstrip("."))
    except (ImportError, RuntimeError, OSError) as error:
        try:
            installed, torch = version("torchvision"), version("torch")
        except PackageNotFoundError as missing:
            raise InputError(f"the package '{missing.name}' is not installed: {_INSTALL_BOTH}") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"torchvision {installed} does not fit torch {torch}, and can't be imported ({reason}): {_INSTALL_BOTH}"
        ) from error


def _how_to_install(extra: str) -> str:
    if extra not in (metadata("efficientnetv2").get_all("Provides-Extra") or []):
        again = f'pip install -e ".[{extra}]"'
        return f"efficientnetv2 is newer than what was installed: install it anew, in a clone with {again}"
    packages = extra_requirements(extra)
    if not packages:
        return f"There is none for Python {platform.python_version()} on {platform.system()}."
    # Double quotes work in every shell, on Windows too.
    return "Install it with: pip install " + " ".join(f'"{package}"' for package in packages)


def extra_requirements(extra: str) -> list[str]:
    """The packages of an extra that this machine needs, as pip takes them.

    ``efficientnetv2[EXTRA]`` would not work for a clone: pip would look for the package in its index.
    """
    found = [Requirement(line) for line in requires("efficientnetv2") or []]
    return sorted(
        f"{one.name}{one.specifier}"
        for one in found
        if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""})
    )
