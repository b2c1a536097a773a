"""Imports of optional packages. A missing one is an `InputError` with the command that installs it.

This includes torchvision, which is always installed, but may not fit the installed torch.
"""

from __future__ import annotations

import importlib
import platform
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from types import ModuleType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from efficientnetv2.utils.errors import InputError, error_summary

_INSTALL_BOTH = (
    "install torch and torchvision from one place, as pytorch.org states for this machine. Without a GPU: "
    "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu"
)


def import_optional(module: str, extra: str, why: str) -> ModuleType:
    """Import a module of a package that an extra installs, or raise InputError. ``why`` is what needs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # If an installed package lacks a dependency, the error already names it.
        if error.name != module.partition(".")[0]:
            raise
        raise InputError(
            f"{why} needs the package '{error.name}' of the extra '{extra}', which is not installed. "
            f"{_how_to_install(extra, error.name)}"
        ) from error
    except (ImportError, RuntimeError, OSError):
        import_torchvision()  # The package may have imported it: then the reason is known.
        raise


def import_torchvision(module: str = "") -> ModuleType:
    """Import torchvision or a module of it, or raise InputError: its operators are compiled for one torch."""
    try:
        return importlib.import_module(f"torchvision.{module}".rstrip("."))
    except (ImportError, RuntimeError, OSError) as error:
        try:
            installed, torch = version("torchvision"), version("torch")
        except PackageNotFoundError as missing:
            raise InputError(f"the package '{missing.name}' is not installed: {_INSTALL_BOTH}") from error
        raise InputError(
            f"torchvision {installed} does not fit torch {torch}, and can't be imported ({error_summary(error)}): "
            f"{_INSTALL_BOTH}"
        ) from error


def _how_to_install(extra: str, package: str) -> str:
    if extra not in (metadata("efficientnetv2").get_all("Provides-Extra") or []):
        return f'Install it with: pip install -e ".[{extra}]"'  # the code is newer than what is installed
    packages = extra_requirements(extra)
    listed, here = ({_name(line) for line in lines} for lines in (requires("efficientnetv2") or [], packages))
    name = canonicalize_name(package)
    if not packages or (name in listed and not any(each.startswith(name) for each in here)):  # or tensorflow-cpu
        return f"There is none for Python {platform.python_version()} on {platform.system()}."
    # Double quotes work in every shell, on Windows too.
    return "Install it with: pip install " + " ".join(f'"{each}"' for each in packages)


def _name(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def extra_requirements(extra: str) -> list[str]:
    """The packages of an extra that this machine needs, as pip takes them.

    ``efficientnetv2[EXTRA]`` would not work for a clone: pip would look for the package in its index.
    """
    found = [Requirement(line) for line in requires("efficientnetv2") or []]
    return sorted(
        f"{package.name}{package.specifier}"
        for package in found
        if (marker := package.marker) and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
    )
