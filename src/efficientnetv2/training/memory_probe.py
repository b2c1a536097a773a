"""Find what fits into memory: the group size and groups per pass, by counted activations or by passes on noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, cached_property

import numpy as np
import torch

from efficientnetv2.data.loader import Batch
from efficientnetv2.data.sampler import BatchRequest
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.ghost_batch import supports_ghost_batches
from efficientnetv2.models.output_shapes import activation_bytes, stride, trains_one
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.progressive.schedule import Ramp, StepSettings
from efficientnetv2.training.ddp import evenly_shared
from efficientnetv2.training.loop import StepContext, forward_backward
from efficientnetv2.training.microbatch import MicrobatchPlan, divisors
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.resolve_image_sizes import settings_by_size, sizes_by_field, validate_stride
from efficientnetv2.utils.device import Hardware, place
from efficientnetv2.utils.errors import InputError, MemoryShortError, pluralize
from efficientnetv2.utils.memory import GIB, PeakMemory, free_bytes, in_use_bytes, is_out_of_memory, release_memory
from efficientnetv2.utils.random_key import Key

# Fraction of the free memory for a measured pass. The rest is for fragmentation and other programs. Ours.
_MEASURED = 0.9
# Fraction for a counted pass that is then measured: a pass took 1.1 to 1.3 times the count of its activations. Ours.
_COUNTED = 0.6
# Fraction for a counted pass that needs no measurement. Ours.
_PLENTY = 0.25
# A number is measured if it is at least this multiple of one that fits. Ours.
_WORTH_A_TRIAL = 1.05
# Copies of the weights in a run: two moments and the EMA.
_WEIGHT_COPIES = 3
# A GPU with fewer images per step waits more than it computes. Ours.
_MIN_GPU_IMAGES = 32


class MemoryProbe:
    """Finds what fits into memory, by passes of copies of the model.

    An open ``precision`` of the recipe counts as fp32. ``room`` are the bytes for a pass, and ``limited`` is whether
    ``memory_gib`` decides it, rather than the free memory. ``took`` are the bytes of each group size that
    ``largest_group`` measured; None where memory ran out.
    """

    def __init__(self, recipe: Recipe, network: Network, hardware: Hardware) -> None:
        self.recipe, self.network, self.hardware = recipe, network, hardware
        self.device, self.world = hardware.device, hardware.world
        limit_gib = hardware.memory_gib
        release_memory(self.device)
        self._taken = in_use_bytes(self.device)
        weights = sum(weight.nbytes for weight in network.parameters() if weight.requires_grad)
        sharing = self.world.local_size if self.device.type == "cpu" else 1
        free = free_bytes(self.device, limit_gib, sharing=sharing)
        self.room = max(0, int((free - _WEIGHT_COPIES * weights) * _MEASURED))
        self.limited = limit_gib is not None and free < free_bytes(self.device, None, sharing=sharing)
        self.took: dict[int, int | None] = {}
        # Bytes of activations per image of a size; raises InputError if the model cannot process it.
        self.counted: Callable[[int], int] = cache(lambda image_size: activation_bytes(network, image_size))
        # Whether a training pass of one image fails, as batch-norm does with one value per channel.
        self.needs_two: Callable[[int], bool] = cache(lambda image_size: not trains_one(network, image_size))
        least = (self._taken + _WEIGHT_COPIES * weights) / GIB
        if limit_gib is not None and limit_gib <= least:
            raise MemoryShortError(
                f"`memory_gib={limit_gib:g}`: the program and the weights alone take "
                f"{math.ceil(100 * least) / 100:.2f} GiB. Give more."
            )

    @cached_property
    def stride(self) -> int | None:
        """Total stride of the model; None if it is not known."""
        if isinstance(self.network, EfficientNet):
            return self.network.architecture.stride
        return stride(self.network)

    def for_recipe(self, recipe: Recipe) -> MemoryProbe:
        """The same for a more resolved recipe: memory is measured again, but not counted again."""
        other = MemoryProbe(recipe, self.network, self.hardware)
        other.counted, other.needs_two = self.counted, self.needs_two
        return other

    def trial(self, setting: StepSettings, *, ghost_batch_size: int, groups: int = 1) -> int | None:
        """Peak bytes of a pass of some groups, above the use before any pass; None if memory ran out."""
        network = copy.deepcopy(self.network)
        place(network, self.device)
        network.train()
        apply_regularization(network, setting)
        batches = [_noise(setting, group, ghost_batch_size, self.network) for group in range(groups)]
        changes = {
            "batch_size": groups * ghost_batch_size,
            "ghost_batch_size": ghost_batch_size,
            "precision": "fp32" if self.recipe.precision == "auto" else self.recipe.precision,
        }
        context = StepContext(
            self.recipe.model_copy(update=changes),
            self.network.preprocessing,
            num_classes=self.network.num_classes,
            key=Key.of(self.recipe.seed).fold("preflight"),
            device=self.device,
        )
        taken = None
        try:
            with PeakMemory(self.device) as peak:
                forward_backward(network, batches, context, network)
            taken = peak.bytes - self._taken
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        del network, batches
        release_memory(self.device)
        return taken

    def largest_group(self, setting: StepSettings, *, among: Sequence[int]) -> int:
        """The largest of some group sizes that fits; 0 if none does (the first was measured)."""

        def taken(images: int) -> int | None:
            self.took[images] = self.trial(setting, ghost_batch_size=images)
            return self.took[images]

        self.took = {}
        return largest(among, each=self.counted(setting.image_size), room=self.room, taken=taken)

    def microbatches(self, settings: Sequence[StepSettings], *, ghost_batch_size: int) -> MicrobatchPlan:
        """Groups per pass at each size: as many as fit, in passes of about equal size. One group fits at each size.

        Larger passes are faster: V2-B0 at 64 px and groups of 4 was 1.7 times as fast with 8 groups per pass as with
        one, on one core.
        """
        groups = len(self.world.groups(self.recipe.batch_size // ghost_batch_size))
        synchronized = self.recipe.sync_batch_norm and self.world.is_distributed
        if groups == 1 or synchronized or not supports_ghost_batches(self.network):
            return MicrobatchPlan({setting.image_size: 1 for setting in settings})
        by_px = {}
        for setting in sorted(settings, key=lambda setting: setting.image_size):

            def taken(count: int, setting: StepSettings = setting) -> int | None:
                return self.trial(setting, ghost_batch_size=ghost_batch_size, groups=count)

            each = ghost_batch_size * self.counted(setting.image_size)
            most = largest(range(1, groups + 1), each=each, room=self.room, taken=taken)
            passes = math.ceil(groups / max(1, most))
            by_px[setting.image_size] = math.ceil(groups / passes)
        return MicrobatchPlan(by_px)


def largest(among: Sequence[int], *, each: int, room: int, taken: Callable[[int], int | None]) -> int:
    """The largest of growing numbers that fits into ``room`` bytes; 0 if not even the first fits.

    ``each`` are the counted bytes of one. ``taken`` measures the bytes of a number; None where memory ran out.
    """
    if among[-1] * each <= room * _PLENTY:
        return among[-1]
    number = max((count for count in among if count * each <= room * _COUNTED), default=among[0])
    fits, too_many = 0, among[-1] + 1
    while number:
        bytes_taken = taken(number)
        # The measured bytes show how many fit. Without a measurement, try half as many.
        reach = number / 2 if bytes_taken is None else number * room / max(1, bytes_taken)
        if bytes_taken is not None and bytes_taken <= room:
            fits = number
        else:
            too_many = number
        untried = [count for count in among if fits * _WORTH_A_TRIAL < count < too_many]
        number = max((count for count in untried if count <= reach), default=0)
        if number == 0 and fits == 0 and untried:
            number = untried[0]
    return fits


def _noise(setting: StepSettings, group: int, images: int, network: Network) -> Batch:
    """A group of random images."""
    shape = (images, setting.image_size, setting.image_size, network.in_channels)
    samples = np.arange(group * images, (group + 1) * images, dtype=np.int64)
    noise = torch.from_numpy(np.random.default_rng(group).integers(0, 256, shape, dtype=np.uint8))
    request = BatchRequest(0, group, setting, samples, np.zeros_like(samples))
    return Batch(request, noise.permute(0, 3, 1, 2), torch.arange(images) % network.num_classes, ())


def validate_sizes(recipe: Recipe, probe: MemoryProbe) -> None:
    """Check that the model can process every size in training and evaluation."""
    validate_stride(recipe, recipe.model, probe.stride)
    if isinstance(probe.network, EfficientNet):
        return
    trained: Sequence[int] = sorted(setting.image_size for setting in settings_by_size(recipe))
    size = recipe.progressive.image_size
    if isinstance(size, Ramp) and size.continuous:
        trained = range(trained[0], trained[-1] + 1, recipe.progressive.size_multiple)
        if probe.stride is not None:  # each remainder of it is enough
            trained = [*trained[: 2 * probe.stride], trained[-1]]
    for field, px in [*(("progressive", px) for px in trained), *sizes_by_field(recipe)]:
        if px is None:
            continue
        try:
            probe.counted(px)
        except InputError as error:
            what = "a training image" if field == "progressive" else field
            raise InputError(f"{what} is {px} px. {error}{_fix(recipe, probe, field)}") from error


def takes_sizes(probe: MemoryProbe, recipe: Recipe) -> bool:
    """Whether the model can process every size of a recipe."""
    with suppress(InputError):
        validate_sizes(recipe, probe)
        return True
    return False


def _fix(recipe: Recipe, probe: MemoryProbe, field: str) -> str:
    """A size that the model can process and how to set it; '' if none is known."""
    for px in (recipe.progressive.last.image_size, probe.network.preprocessing.image_size):
        try:
            probe.counted(px)
        except InputError:
            continue
        fields = {
            "progressive": f"`image_size={px}` and `progressive.stages=1`",
            "eval_image_size": f"`eval_image_size={px}`",
            "eval_image_size_candidates": "`eval_image_size_candidates=null`",
        }
        return f" It takes {px} px: use {fields[field]}."
    return ""


def fit_groups(
    recipe: Recipe, probe: MemoryProbe, *, is_set: bool, is_fixed: bool = False
) -> tuple[int, MicrobatchPlan, list[str]]:
    """Images per group, groups per pass, and a note for each choice; see ``group_size``."""
    group = group_size(recipe, probe, is_set=is_set, is_fixed=is_fixed)
    microbatches = probe.microbatches(settings_by_size(recipe), ghost_batch_size=group)
    world, batch = probe.world, recipe.batch_size
    notes = []
    if group < batch:
        notes.append(f"Groups of {group} of the {batch} images of a batch share batch-norm statistics.")
    if world.is_distributed and probe.device.type != "cpu" and batch // world.size < _MIN_GPU_IMAGES:
        notes.append(
            f"Each of the {world.size} GPUs gets {batch // world.size} images a step, which leaves it idle between "
            f"them. `batch_size={_MIN_GPU_IMAGES * world.size}` or more uses them better."
        )
    if microbatches.most > 1:
        notes.append(f"Of a step's {batch // group} groups run at a time: {microbatches}.")
    return group, microbatches, notes


def group_size(recipe: Recipe, probe: MemoryProbe, *, is_set: bool, is_fixed: bool = False) -> int:
    """``ghost_batch_size``: as the user ``is_set`` it, or the largest divisor of the batch that fits and can be shared.

    ``is_fixed`` is whether the run, or others of its kind, exist already.
    """
    batch, given = recipe.batch_size, recipe.ghost_batch_size
    least, reason = smallest_group(recipe, probe)
    if (given or batch) < least:
        larger = next((images for images in divisors(batch, most=batch) if images >= least), None)
        fix = f"`ghost_batch_size={larger}`" if larger else "a larger `batch_size`"
        raise InputError(
            f"A group of {pluralize(given or batch, 'image')} {reason}: it must have at least {least}. Use {fix}."
        )
    possible = [images for images in divisors(batch, most=given or batch) if images >= least]
    candidates = possible if is_set else evenly_shared(possible, batch_size=batch, processes=probe.world.size)
    largest = max(settings_by_size(recipe), key=lambda setting: setting.image_size)
    group = probe.largest_group(largest, among=candidates)
    if group and not (is_set and given is not None and group < given):
        return group
    room = f"{probe.room / GIB:.2f} GiB of free memory"
    fix = "Increase `memory_gib`" if probe.limited else "Free memory"
    if group == 0:
        took = probe.took[candidates[0]]
        result = "memory ran out" if took is None else f"it took {took / GIB:.2f} GiB"
        fix += "" if is_fixed else ", or use a smaller `model` or `image_size`"
        raise MemoryShortError(
            f"Not even a group of {candidates[0]} images of {largest.image_size} px fits into {room}: {result}. {fix}."
        )
    if not is_fixed:
        fix = f"Use `ghost_batch_size={group}`"
    raise MemoryShortError(
        f"ghost_batch_size is {given}, but the largest divisor of {batch} that fits at {largest.image_size} px into "
        f"{room} is {group}. {fix}."
    )


def smallest_group(recipe: Recipe, probe: MemoryProbe) -> tuple[int, str]:
    """The fewest images of a group, and what is wrong with fewer."""
    settings = [recipe.progressive.stage(0), *settings_by_size(recipe)]
    mixes = [name for name in ("mixup", "cutmix") if any(getattr(setting, f"{name}_alpha") for setting in settings)]
    if mixes:
        return 2 * len(mixes), f"leaves {' or '.join(mixes)} an image without a partner"
    if recipe.freeze_bn:  # batch-norm takes no statistics of the group
        return 1, ""
    px = min(setting.image_size for setting in settings)
    if isinstance(probe.network, EfficientNet):
        single_value = math.ceil(px / probe.network.architecture.stride) == 1
    else:
        single_value = probe.needs_two(px)
    reason = f"of {px} px leaves batch-norm one number per channel, which has no spread"
    return (2, reason) if single_value else (1, "")
