"""From the words of ``search run`` to what is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from pydantic import ValidationError

from efficientnetv2.architectures.io import is_architecture_file
from efficientnetv2.architectures.registry import NAMES, get_architecture
from efficientnetv2.data.config import DataConfig
from efficientnetv2.nas import builtin_spaces
from efficientnetv2.nas.objective import Reward
from efficientnetv2.nas.proxy_task import StepTimeBy
from efficientnetv2.nas.space import Space, require_room
from efficientnetv2.nas.storage import file_of, optuna
from efficientnetv2.nas.study import Wanted
from efficientnetv2.training.image_sizes import requested_px
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipes.nas_proxy import CHOOSING
from efficientnetv2.utils import yaml_io
from efficientnetv2.utils.errors import InputError, did_you_mean, format_rule
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.search_options import ProxyOptions, SearchOptions, WorkerOptions


@dataclass(frozen=True)
class Preset:
    """What holds where nothing else is said.

    Args:
        space: a word for it.
        recipe: of a trial.
        trials: how many.
    """

    space: str
    recipe: str
    trials: int


# The exponents of a reward, and the options that say them.
_EXPONENTS = {
    "step_seconds": "w",
    "parameters": "v",
    "inference_seconds": "inference_exponent",
    "peak_memory_bytes": "memory_exponent",
}

# Fields of a recipe that trials do not read, and what to do instead. A recipe may bring them, so they are told by their
# value.
_UNREAD = {
    "patience": "a trial trains to its end, unless it is hopeless (--no-prune). Say --set patience=null, or leave it "
    "out.",
    "eval_px_tried": "a trial answers at one size. Say --set eval_px_tried=null, and which size with --set "
    "eval_px=SIZE.",
    "time_shares": "the stages of a trial are not timed, and last as progressive.shares says, or equally long. Say "
    "--set progressive.shares=[...], or --set time_shares=null.",
    "chosen_by": "a trial keeps the last weights, and a search rewards top-1. Say --set chosen_by=top1, or leave it "
    "out.",
    "recompute_stages": "the step that is timed keeps its activations. Say --set recompute_stages=0, or leave it out.",
    "pooling": "the step that is timed takes the mean over the last maps. Say --set pooling=null, or leave it out.",
    "answered": "pictures of the search choose among networks, and it looks at none of val and test. Say --set "
    "answered=val, or leave it out.",
    "cache_detail": "a trial reads the files whenever it draws a picture. Say --set cache_detail=null, or leave it "
    "out.",
}

# Those that ``--set`` must not say: of a recipe the network is passed over, and what it says of pictures of several
# labels; without minival, which a search has of its own, the others would be refused for the lack of it.
_NOT_OF_TRIALS = {
    "model": "the networks are those of a space. Say which with --space, which also takes a published network's name.",
    "several_labels": "the pictures of a search have one label each. Leave it out.",
    **{name: _UNREAD[name] for name in ("patience", "eval_px_tried")},
}

# The paper's: at most 1,000 samples of about 10 epochs (arXiv:2104.00298, section 3.3). The small one: ours.
PRESETS = {"small": Preset("small", "proxy_small", 100), "paper": Preset("paper", "proxy_paper", 1000)}


@dataclass(frozen=True, eq=False)
class Asked:
    """What the user asks for.

    Args:
        study: its folder.
        storage: where the trials lie; None in the folder.
        said_trials: how many; None by the preset.
        minutes: for this worker.
        searched, proxy, place: the options.
        source: of the pictures.

    Raises:
        InputError: a word that means nothing, or words that do not go together.
    """

    study: Path
    storage: str | None
    said_trials: int | None
    minutes: float | None
    searched: SearchOptions
    proxy: ProxyOptions
    source: DataConfig
    place: WorkerOptions

    def __post_init__(self) -> None:
        if self.searched.preset not in PRESETS:
            raise InputError(
                f"--preset is '{self.searched.preset}', but is small or paper"
                f"{did_you_mean(self.searched.preset, PRESETS)}"
            )
        if self.searched.step_time not in ("measured", "cached"):
            raise InputError(
                f"--step-time is '{self.searched.step_time}', but is measured or cached"
                f"{did_you_mean(self.searched.step_time, ['measured', 'cached'])}"
            )
        if self.source.label_separator is not None:
            raise InputError(
                "search takes pictures of one label each, but --label-separator "
                f"{shell_join([self.source.label_separator])} says that these have several. Leave it out, or train a "
                f"published network: effnetv2 train {shell_join(self.source.words)}"
            )
        if self.storage is not None:
            file_of(self.storage)
        optuna()  # an extra: missed here in words that say how to get it
        from efficientnetv2.nas.samplers import sampler

        sampler(self.sampler, self.space, seed=self.seed)
        first_px = round(requested_px(self.recipe)[0])
        require_room(self.space, min(first_px, self.recipe.eval_px or first_px))
        _ = self.reward, self.seeds

    @property
    def preset(self) -> Preset:
        """What holds where nothing else is said."""
        return PRESETS[self.searched.preset]

    @property
    def trials(self) -> int:
        """How many networks to try."""
        return self.said_trials or self.preset.trials

    @property
    def sampler(self) -> str:
        """Who says what is tried next."""
        return self.searched.sampler or "policy"

    @property
    def seed(self) -> int:
        """Of what the sampler draws."""
        return self.proxy.seed

    @property
    def prune(self) -> bool:
        """Whether hopeless trials are stopped."""
        return self.searched.prune

    @property
    def step_time(self) -> StepTimeBy:
        """How a step time is had."""
        return cast(StepTimeBy, self.searched.step_time)

    @cached_property
    def space(self) -> Space:
        """The networks to choose from."""
        return space_named(self.searched.space or self.preset.space)

    @cached_property
    def reward(self) -> Reward:
        """What they are worth."""
        given = {name: getattr(self.searched, option) for name, option in _EXPONENTS.items()}
        said = {name: value for name, value in given.items() if value is not None}
        try:
            return Reward(**said)
        except ValidationError as error:
            words = " or ".join(f"--{_EXPONENTS[name].replace('_', '-')}" for name in said)
            raise InputError(f"{words}: {format_rule(error.errors()[0])}.") from error

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Of the runs of a trial."""
        try:
            seeds = tuple(int(one) for one in self.proxy.seeds.split(","))
        except ValueError:
            raise InputError(
                f"--seeds {self.proxy.seeds}: give whole numbers with commas between them, as in --seeds 0,1,2."
            ) from None
        if len(set(seeds)) < len(seeds):
            raise InputError(
                f"--seeds {self.proxy.seeds}: a seed stands there twice; its run would be the same."
            )
        return seeds

    @cached_property
    def recipe(self) -> Recipe:
        """Of a trial, as it is asked for."""
        words = TrainOverrides(
            recipe=self.proxy.recipe or self.preset.recipe,
            epochs=self.proxy.epochs,
            image_px=self.proxy.image_px,
            batch_images=self.proxy.batch_images,
            settings=tuple(self.proxy.settings or ()),
        )
        for setting in words.settings:
            name, _, value = (part.strip() for part in setting.partition("="))
            if value != "null" and (why := _NOT_OF_TRIALS.get(name)) is not None:
                raise InputError(f"--set {setting}: {why}")
        recipe, _ = requested_recipe(words, torch.device("cpu"))
        named = {setting.partition("=")[0].strip() for setting in words.settings}
        if recipe.minival is None and "minival" in named:
            raise InputError(
                "--set minival=null: the pictures of minival choose among networks, so a search does not go without. "
                f"Leave it out (a share of {CHOOSING} is then set aside), or give a number or a share."
            )
        if recipe.weights not in ("none", "auto"):
            raise InputError(
                f"the recipe {recipe.name} begins with weights ({recipe.weights}), but the networks of a search have "
                "none: they are trained from scratch. Leave them out (--set weights=none)."
            )
        _refuse_unread(recipe)
        if recipe.compile is True:
            raise InputError(
                f"the recipe {recipe.name} says compile=true, but the step that is timed is not compiled. Say --set "
                "compile=false, or leave it out."
            )
        if recipe.model != "auto" and self.proxy.recipe is not None:
            recipe = recipe.model_copy(update={"model": "auto"})
        minival = CHOOSING if recipe.minival in (None, "auto") else recipe.minival
        return recipe.model_copy(update={"weights": "none", "minival": minival, "compile": False})

    @property
    def wanted(self) -> Wanted:
        """As a study is compared with it."""
        return Wanted(
            space=self.space,
            reward=self.reward,
            recipe=self.recipe,
            seeds=self.seeds,
            step_time=self.step_time,
            sampler=self.sampler,
            seed=self.seed,
            prune=self.prune,
        )


def _refuse_unread(recipe: Recipe) -> None:
    """A recipe says nothing that trials would pass over, whether it was named, a file or changed by ``--set``.

    Raises:
        InputError: naming the field, its value, and what to do instead.
    """
    for name, why in _UNREAD.items():
        value = getattr(recipe, name)
        if value == Recipe.model_fields[name].default:
            continue
        if name == "time_shares" and recipe.progressive.shares is not None:
            continue  # of a run that has measured them: these are read
        raise InputError(f"the recipe {recipe.name} says {name}={value}, but {why}")


def space_named(word: str) -> Space:
    """A space by a word.

    Args:
        word: ``small``, ``paper``, a published network, or a file of what ``Space.to_json`` gives.

    Raises:
        InputError: it is none of these.
    """
    if word == "small":
        return builtin_spaces.small()
    if word == "paper":
        return builtin_spaces.paper()
    if is_architecture_file(word):
        return Space.from_json(yaml_io.read(Path(word), "--space"))
    if word in NAMES:
        return builtin_spaces.around(get_architecture(word))
    raise InputError(
        f"--space {word}: there is no such space{did_you_mean(word, ['small', 'paper', *NAMES])} Give small, paper, "
        "a published network (effnetv2 models), or a file."
    )
