"""The configuration of ``search run``, resolved from its options."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast

import torch
from pydantic import ValidationError

from efficientnetv2.architectures.io import is_architecture_file
from efficientnetv2.architectures.registry import NAMES, get_architecture
from efficientnetv2.data.config import DataConfig
from efficientnetv2.nas.objective import Reward
from efficientnetv2.nas.proxy_task import StepTimeBy
from efficientnetv2.nas.space import Space, paper_space, require_image_size, small_space, space_around
from efficientnetv2.nas.storage import import_optuna, sqlite_file
from efficientnetv2.nas.study import RequestedConfig
from efficientnetv2.training.image_sizes import requested_px
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipes.nas_proxy import CHOOSING
from efficientnetv2.utils.errors import InputError, did_you_mean, format_rule
from efficientnetv2.utils.io import read_yaml
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.search_options import ProxyOptions, SearchOptions, WorkerOptions


class Preset(NamedTuple):
    """Defaults of a search: the names of its space and recipe, and the number of trials."""

    space: str
    recipe: str
    trials: int


# The paper's: at most 1,000 samples of about 10 epochs (arXiv:2104.00298, section 3.3). The small one: ours.
PRESETS = {"small": Preset("small", "proxy_small", 100), "paper": Preset("paper", "proxy_paper", 1000)}

# The exponents of a reward, and their options.
_EXPONENTS = {
    "step_seconds": "w",
    "parameters": "v",
    "inference_seconds": "inference_exponent",
    "peak_memory_bytes": "memory_exponent",
}

# Recipe fields that trials do not support, from any source, and why.
_UNSUPPORTED = {
    "patience": "a trial trains to its end, unless it is pruned (--no-prune)",
    "eval_image_size_candidates": "a trial is evaluated at one size (--set eval_image_size=SIZE)",
    "stage_time": "the stages of a trial are not timed (--set progressive.stage_fractions=[...])",
    "monitor": "a trial keeps the last weights, and a search rewards top-1",
    "checkpoint_stages": "the step that is timed keeps its activations",
    "global_pool": "the step that is timed has average pooling",
    "eval_split": "a trial is evaluated on images of the search, never on val or test",
    "cache_resolution": "a trial reads the image files",
}
# Fields that ``--set`` cannot set. Those of a recipe do not matter, or are refused for another reason.
_NOT_SETTABLE = {
    "model": "the space determines the networks (--space NAME)",
    "multilabel": "the images of a search have one label each",
    "patience": _UNSUPPORTED["patience"],
    "eval_image_size_candidates": _UNSUPPORTED["eval_image_size_candidates"],
}


@dataclass(frozen=True, eq=False)
class SearchConfig:
    """What ``search run`` was asked for.

    Args:
        study: Folder of the study.
        storage: URL of its database; None is a file in the folder.
        requested_trials: None takes the preset's.
        minutes: For this worker.
        options, proxy, worker: The command's options.
        source: The dataset.

    Raises:
        InputError: An unknown value, or options that contradict each other.
    """

    study: Path
    storage: str | None
    requested_trials: int | None
    minutes: float | None
    options: SearchOptions
    proxy: ProxyOptions
    source: DataConfig
    worker: WorkerOptions

    def __post_init__(self) -> None:
        for option, value, choices in (
            ("--preset", self.options.preset, tuple(PRESETS)),
            ("--step-time", self.options.step_time, ("measured", "cached")),
        ):
            if value not in choices:
                raise InputError(
                    f"{option}: invalid value '{value}' (choose from {', '.join(choices)})"
                    f"{did_you_mean(value, choices)}"
                )
        if self.source.label_separator is not None:
            raise InputError(
                f"--label-separator {shell_join([self.source.label_separator])}: search takes images of one label "
                f"each. Remove it, or train a published model: effnetv2 train {shell_join(self.source.words)}"
            )
        if self.storage is not None:
            sqlite_file(self.storage)
        import_optuna()  # An extra; its message says how to install it.
        from efficientnetv2.nas.samplers import create_sampler

        create_sampler(self.sampler, self.space, seed=self.proxy.seed)
        first_size = round(requested_px(self.recipe)[0])
        require_image_size(self.space, min(first_size, self.recipe.eval_image_size or first_size))
        _ = self.reward, self.seeds

    @property
    def preset(self) -> Preset:
        """Defaults of this search."""
        return PRESETS[self.options.preset]

    @property
    def trials(self) -> int:
        """Number of trials."""
        return self.requested_trials or self.preset.trials

    @property
    def sampler(self) -> str:
        """Name of the sampler."""
        return self.options.sampler or "policy"

    @property
    def step_time(self) -> StepTimeBy:
        """How step times are found."""
        return cast(StepTimeBy, self.options.step_time)

    @cached_property
    def space(self) -> Space:
        """The architectures to choose from."""
        return load_space(self.options.space or self.preset.space)

    @cached_property
    def reward(self) -> Reward:
        """What is maximized."""
        options = {name: getattr(self.options, option) for name, option in _EXPONENTS.items()}
        given = {name: value for name, value in options.items() if value is not None}
        try:
            return Reward(**given)
        except ValidationError as error:
            problem = error.errors()[0]
            name = str(problem["loc"][0])
            raise InputError(
                f"--{_EXPONENTS[name].replace('_', '-')} {given[name]:g}: the exponent of {name} "
                f"{format_rule(problem)}, or a higher cost would be rewarded."
            ) from error

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs of a trial."""
        try:
            seeds = tuple(int(seed) for seed in self.proxy.seeds.split(","))
        except ValueError:
            raise InputError(
                f"--seeds {self.proxy.seeds}: must be whole numbers with commas between them, as in --seeds 0,1,2."
            ) from None
        if len(set(seeds)) < len(seeds):
            raise InputError(f"--seeds {self.proxy.seeds}: a seed is given twice; its run would be the same.")
        return seeds

    @cached_property
    def recipe(self) -> Recipe:
        """The requested recipe of a trial."""
        overrides = TrainOverrides(
            recipe=self.proxy.recipe or self.preset.recipe,
            epochs=self.proxy.epochs,
            image_size=self.proxy.image_size,
            batch_size=self.proxy.batch_size,
            settings=tuple(self.proxy.settings or ()),
        )
        assigned = {
            name.strip(): value.strip() for name, _, value in (s.partition("=") for s in overrides.settings)
        }
        for name, value in assigned.items():
            if value != "null" and name in _NOT_SETTABLE:
                raise InputError(f"--set {name}={value}: {_NOT_SETTABLE[name]}. Leave it out.")
        recipe, _ = requested_recipe(overrides, torch.device("cpu"))
        if recipe.minival is None and "minival" in assigned:
            raise InputError(
                f"--set minival=null: a search selects networks on minival. Leave it out (a fraction of {CHOOSING} is "
                "then set aside), or pass a number or a fraction."
            )
        if recipe.weights not in ("none", "auto"):
            raise InputError(
                f"the recipe {recipe.name} sets weights={recipe.weights}, but the networks of a search are trained "
                "from scratch. Use --set weights=none."
            )
        _require_supported(recipe)
        if self.proxy.recipe is not None:
            recipe = recipe.model_copy(update={"model": "auto"})
        minival = CHOOSING if recipe.minival in (None, "auto") else recipe.minival
        return recipe.model_copy(update={"weights": "none", "minival": minival, "compile": False})

    @property
    def requested(self) -> RequestedConfig:
        """What a study is compared with."""
        return RequestedConfig(
            space=self.space,
            reward=self.reward,
            recipe=self.recipe,
            seeds=self.seeds,
            step_time=self.step_time,
            sampler=self.sampler,
            seed=self.proxy.seed,
            prune=self.options.prune,
        )


def _require_supported(recipe: Recipe) -> None:
    """Refuse a recipe with a field that trials would ignore."""
    if recipe.compile is True:
        raise InputError(
            f"the recipe {recipe.name} sets compile=true, but the step that is timed is not compiled. Use --set "
            "compile=false, or leave it out."
        )
    for name, reason in _UNSUPPORTED.items():
        value, default = getattr(recipe, name), Recipe.model_fields[name].default
        # Of a run that has measured stage_time, progressive.stage_fractions is read.
        is_measured = name == "stage_time" and recipe.progressive.stage_fractions is not None
        if value != default and not is_measured:
            raise InputError(
                f"the recipe {recipe.name} sets {name}={value}, but {reason}. Use --set "
                f"{name}={'null' if default is None else default}, or leave it out."
            )


def load_space(name: str) -> Space:
    """A space by its name: ``small``, ``paper``, a published model, or a file of `Space.to_json`.

    Raises:
        InputError: It is none of these.
    """
    if name == "small":
        return small_space()
    if name == "paper":
        return paper_space()
    if is_architecture_file(name):
        return Space.from_json(read_yaml(Path(name), "--space"))
    if name in NAMES:
        return space_around(get_architecture(name))
    raise InputError(
        f"--space {name}: there is no such space{did_you_mean(name, ['small', 'paper', *NAMES])} Pass small, paper, a "
        "published model (effnetv2 models), or a file."
    )
