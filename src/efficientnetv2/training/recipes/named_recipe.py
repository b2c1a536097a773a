"""A recipe with its description for users."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from efficientnetv2.training.recipe import Recipe


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe, and what ``effnetv2 recipes NAME`` shows of it.

    Args:
        title: One line for the list of recipes.
        result: What it reaches, and what it costs where that is known.
        source: Where the hyperparameters come from.
        ours: What the source leaves open or does in another way.
        data: Arguments of ``effnetv2 train`` before ``--recipe``.
        run: Further text after the command.
        has_cost: Whether ``result`` states hours or minutes. If not, the command that estimates them is added.
    """

    recipe: Recipe
    title: str
    result: str
    source: str
    ours: str
    data: str = "IMAGENET"
    run: str = ""
    has_cost: bool = False

    @property
    def description(self) -> str:
        """Title, command, cost and result, source, and what is ours."""
        command = f"{self.data} --recipe {self.recipe.name}"
        estimate = "" if self.has_cost else f" Estimate for this machine: effnetv2 train --dry-run {command}"
        sections = {
            "Run": f"effnetv2 train {command}{self.run}",
            "Cost and result": self.result + estimate,
            "Source": self.source,
            "Ours": self.ours,
        }
        lines = (
            textwrap.fill(f"{name}: {text}", 118, subsequent_indent="    ", break_on_hyphens=False)
            for name, text in sections.items()
        )
        return "\n".join([self.title, "", *lines])
