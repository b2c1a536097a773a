"""Before the first step: which groups fit into memory, and how many of them at a time, by trying.

What a pass will need is counted first, in no time and no memory. Where that is far below what is free, there is
nothing to find out; elsewhere a pass is really made, on noise, and the memory it took decides.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch

from efficientnetv2.data.loader import Batch
from efficientnetv2.data.sampler import BatchRequest
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.ghost_batch import takes_several
from efficientnetv2.models.memory_profile import activation_bytes, stride, trains_one
from efficientnetv2.models.regularization import apply_setting
from efficientnetv2.progressive.schedule import Setting
from efficientnetv2.training.loop import StepContext, forward_backward
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.device import place
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World
from efficientnetv2.utils.errors import MemoryShortError
from efficientnetv2.utils.memory import GIB, Peak, free_bytes, in_use_bytes, is_out_of_memory, release
from efficientnetv2.utils.rng import Key

# Shares of what is free, all ours. Of a measured pass: the rest is for fragments, and for what others take later.
_MEASURED = 0.9
# Of a counted one that is tried: what is counted, activations, was 1.1 to 1.3 times less than a pass then took.
_COUNTED = 0.6
# Of a counted one that needs no trial.
_PLENTY = 0.25
# A number is tried if it is so many times what is known to fit.
_WORTH_A_TRIAL = 1.05
# Tensors as large as the weights that a run keeps beside them: two moments, the moving average.
_BESIDE_WEIGHTS = 3


class MemoryProbe:
    """Tries passes of a run that has not begun.

    Args:
        recipe: settled but for ``group_images`` and perhaps the precision, which then is fp32 here.
        network: to train; unchanged, copies are tried.
        num_classes: K.
        device: to train on.
        limit_gib: of memory that each process may take in all; None is what there is.
        world: the processes that share the groups and, on a CPU, the memory.

    Attributes:
        room: bytes that a pass may take.
        limited: whether the limit sets that, rather than what there is.
        took: of each group that was tried for ``largest_group``, by its pictures: bytes, None where memory ran out.

    Raises:
        MemoryShortError: as much memory is taken already as the limit allows, or more.
    """

    def __init__(
        self,
        recipe: Recipe,
        network: Network,
        *,
        num_classes: int,
        device: torch.device,
        limit_gib: float | None,
        world: World = SINGLE_PROCESS,
    ) -> None:
        self.recipe, self.network, self.num_classes = recipe, network, num_classes
        self.device, self.world, self._limit_gib = device, world, limit_gib
        release(device)
        self._taken = in_use_bytes(device)
        weights = sum(weight.nbytes for weight in network.parameters() if weight.requires_grad)
        sharing = world.local_size if device.type == "cpu" else 1
        free = free_bytes(device, limit_gib, sharing=sharing)
        self.room = max(0, int((free - _BESIDE_WEIGHTS * weights) * _MEASURED))
        self.limited = limit_gib is not None and free < free_bytes(device, None, sharing=sharing)
        self.took: dict[int, int | None] = {}
        self._counts: dict[int, int] = {}
        self._need_two: dict[int, bool] = {}
        least = (self._taken + _BESIDE_WEIGHTS * weights) / GIB
        if limit_gib is not None and limit_gib <= least:
            raise MemoryShortError(
                f"--memory-gib {limit_gib:g}: the program and the weights alone take "
                f"{math.ceil(100 * least) / 100:.2f} GiB, before the first picture. Give more."
            )

    def counted(self, image_px: int) -> int:
        """Bytes of activations that one picture of that size makes a pass keep.

        Raises:
            InputError: the network cannot take pictures of that size.
        """
        if image_px not in self._counts:
            self._counts[image_px] = activation_bytes(self.network, image_px)
        return self._counts[image_px]

    @cached_property
    def stride(self) -> int | None:
        """See ``models.memory_profile.stride``; of ours as their architecture has it."""
        if isinstance(self.network, EfficientNet):
            return self.network.architecture.stride
        return stride(self.network)

    def needs_two(self, image_px: int) -> bool:
        """Whether a pass over one picture of that size fails in training, as of batch-norm of one number does."""
        if image_px not in self._need_two:
            self._need_two[image_px] = not trains_one(self.network, image_px)
        return self._need_two[image_px]

    def settled(self, recipe: Recipe) -> MemoryProbe:
        """The same for a recipe that leaves less open: memory is looked at again, but not counted again."""
        other = MemoryProbe(
            recipe,
            self.network,
            num_classes=self.num_classes,
            device=self.device,
            limit_gib=self._limit_gib,
            world=self.world,
        )
        other._counts, other._need_two = self._counts, self._need_two
        return other

    def trial(self, setting: Setting, *, group_images: int, groups: int = 1) -> int | None:
        """Make a pass and see what it takes.

        Args:
            setting: that holds in it.
            group_images: pictures of a group.
            groups: in the pass.

        Returns:
            Bytes at its highest, above what was taken before any pass; None if memory ran out.
        """
        network = copy.deepcopy(self.network)
        place(network, self.device)
        network.train()
        apply_setting(network, setting)
        channels = self.network.in_channels
        batches = [
            _noise(setting, group, group_images, channels, self.num_classes) for group in range(groups)
        ]
        sizes = {"batch_images": groups * group_images, "group_images": group_images}
        precision = "fp32" if self.recipe.precision == "auto" else self.recipe.precision
        context = StepContext(
            self.recipe.model_copy(update=sizes | {"precision": precision}),
            self.network.preprocessing,
            num_classes=self.num_classes,
            key=Key.of(self.recipe.seed).fold("preflight"),
            device=self.device,
        )
        taken = None
        try:
            with Peak(self.device) as peak:
                forward_backward(network, batches, context, network)
            taken = peak.bytes - self._taken
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        del network, batches
        release(self.device)
        return taken

    def largest_group(self, setting: Setting, *, among: Sequence[int]) -> int:
        """The largest of these numbers of pictures that fits as a group; 0 if none does (the first was tried)."""

        def taken(images: int) -> int | None:
            self.took[images] = self.trial(setting, group_images=images)
            return self.took[images]

        self.took = {}
        return largest(among, each=self.counted(setting.image_px), room=self.room, taken=taken)

    def groups_at_a_time(self, settings: Sequence[Setting], *, group_images: int) -> MicrobatchPlan:
        """How many groups run in one pass at each size: as many as fit, in passes of about the same number.

        More at a time keep a processor busier. Groups of 4 pictures of 64 px went through V2-B0 1.7 times as fast in
        passes of 8 groups as in passes of one, on one core.

        Args:
            settings: one for each size.
            group_images: pictures of a group, of which a single one fits at each size.
        """
        groups = len(self.world.groups(self.recipe.batch_images // group_images))
        synchronised = self.recipe.sync_batch_norm and self.world.is_distributed
        if groups == 1 or synchronised or not takes_several(self.network):
            return MicrobatchPlan({setting.image_px: 1 for setting in settings})
        by_px = {}
        for setting in sorted(settings, key=lambda one: one.image_px):

            def taken(count: int, setting: Setting = setting) -> int | None:
                return self.trial(setting, group_images=group_images, groups=count)

            each = group_images * self.counted(setting.image_px)
            most = largest(range(1, groups + 1), each=each, room=self.room, taken=taken)
            passes = math.ceil(groups / max(1, most))
            by_px[setting.image_px] = math.ceil(groups / passes)
        return MicrobatchPlan(by_px)


def largest(among: Sequence[int], *, each: int, room: int, taken: Callable[[int], int | None]) -> int:
    """The largest number that fits, by trying from what the count says is safe.

    Args:
        among: numbers to choose from, growing.
        each: bytes that one of them takes, as counted.
        room: bytes there are.
        taken: tries a number; the bytes it took, or None where memory ran out.

    Returns:
        One of ``among``; 0 if not even the first fits.
    """
    if among[-1] * each <= room * _PLENTY:
        return among[-1]
    number = max((one for one in among if one * each <= room * _COUNTED), default=among[0])
    fits, too_many = 0, among[-1] + 1
    while number:
        bytes_taken = taken(number)
        # What came out says how many there is room for; without any figure, half as many.
        reach = number / 2 if bytes_taken is None else number * room / max(1, bytes_taken)
        if bytes_taken is not None and bytes_taken <= room:
            fits = number
        else:
            too_many = number
        untried = [one for one in among if fits * _WORTH_A_TRIAL < one < too_many]
        number = max((one for one in untried if one <= reach), default=0)
        if number == 0 and fits == 0 and untried:
            number = untried[0]
    return fits


def _noise(setting: Setting, group: int, images: int, channels: int, num_classes: int) -> Batch:
    """A group of pictures of noise."""
    px = setting.image_px
    samples = np.arange(group * images, (group + 1) * images, dtype=np.int64)
    noise = np.random.default_rng(group).integers(0, 256, (images, px, px, channels), dtype=np.uint8)
    request = BatchRequest(0, group, setting, samples, np.zeros_like(samples))
    return Batch(request, torch.from_numpy(noise).permute(0, 3, 1, 2), torch.arange(images) % num_classes, ())
