"""One dataclass parameter of a command: its options for typer, and the value that the command gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from efficientnetv2.cli.options import option, spread

Length = Annotated[int, option("How long.", panel="The bird")]


@dataclass(frozen=True)
class Bird:
    length: Length = 3
    colors: Annotated[list[str] | None, option("Colors.", None, "--color", panel="The bird")] = None


def test_dataclass_fields_become_options():
    got = []

    @spread
    def fly(place: Annotated[str, typer.Argument()], bird: Bird, far: Annotated[bool, typer.Option("--far")] = False):
        """Fly somewhere."""
        got.append((place, bird, far))

    app = typer.Typer()
    app.command()(fly)
    run = CliRunner().invoke(app, ["north", "--length", "5", "--color", "red", "--color", "blue", "--far"])
    assert run.exit_code == 0, run.output
    assert CliRunner().invoke(app, ["south"]).exit_code == 0
    assert got == [("north", Bird(5, ["red", "blue"]), True), ("south", Bird(), False)]
    output = CliRunner().invoke(app, ["--help"]).output
    assert output.index("The bird") < output.index("--length") < output.index("--color")
    assert "Fly somewhere" in output
