"""The program ``effnetv2``."""

from __future__ import annotations

import logging
import os
import platform
import sys
import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from efficientnetv2.cli import data, geo, parsing, search
from efficientnetv2.cli.compare import compare
from efficientnetv2.cli.convert import convert
from efficientnetv2.cli.crossval import crossval
from efficientnetv2.cli.demo import demo
from efficientnetv2.cli.evaluate import evaluate
from efficientnetv2.cli.export import export, push
from efficientnetv2.cli.models import models, recipes
from efficientnetv2.cli.predict import predict
from efficientnetv2.cli.serve import serve
from efficientnetv2.cli.train import train
from efficientnetv2.utils.processes import keep_freed_memory, limit_openmp

# GDAL's drivers that fetch from a network. A file next to a raster may name what they open.
# Source: GDAL's list of raster drivers.
_NETWORK_DRIVERS = "HTTP,WMS,WCS,WMTS,PLMOSAIC,EEDA,EEDAI,STACTA,STACIT,DAAS"

app = parsing.app(
    name="effnetv2", help="Train, evaluate and use image classifiers.\n\nStart with: `effnetv2 train DATA`"
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"effnetv2 {version('efficientnetv2')} (Python {platform.python_version()}, torch {version('torch')})")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What comes before a command."""


# The groups of --help, in the order of a workflow.
for panel, commands in {
    "Data": (data.check, data.app),
    "Train": (train, crossval, models, recipes, demo),
    "Evaluate": (evaluate, compare),
    "Use": (predict, serve, export, convert, push, geo.app),
    "Research": (search.app,),
}.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, rich_help_panel=panel)
        else:
            app.command(cls=parsing.Command, rich_help_panel=panel)(command)


def main() -> None:
    """Run the program and exit with its code."""
    # Python starts forkserver and spawned processes with -c, which puts the working directory first on their path.
    os.environ["PYTHONSAFEPATH"] = "1"
    keep_freed_memory()
    os.environ.setdefault("GDAL_SKIP", _NETWORK_DRIVERS)
    limit_openmp()  # commands import PyTorch, which reads once how many threads it has, and how they wait
    _silence_libraries()
    app()


def _silence_libraries() -> None:
    """Keep warnings of libraries off the screen, unless asked for: ``python -W default``, ``TORCH_LOGS``."""
    # Errors of libraries come through, and so do warnings of this package, each in a line.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module="efficientnetv2")
        warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"
    if logging.lastResort is not None:
        logging.lastResort.setLevel(logging.ERROR)
    os.environ.setdefault("TORCH_LOGS", "-all")  # warnings, which PyTorch shows by a handler of its own
    # A Jupyter kernel hands its own down, which may not be installed here. Every command draws into files.
    os.environ["MPLBACKEND"] = "agg"
