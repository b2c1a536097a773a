"""Tables 2 and 3: how fast a training step is, by picture size and batch, and by where Fused-MBConv stands."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from efficientnetv2.arch.cost import cost
from efficientnetv2.arch.published import architecture, published
from efficientnetv2.arch.spec import Architecture
from efficientnetv2.arch.variants import with_fused
from efficientnetv2.base.memory import is_out_of_memory
from efficientnetv2.base.timing import alternate, waiting
from efficientnetv2.commands.reproduction import table
from efficientnetv2.commands.reproduction.counts import HEADINGS, Say, rounds_of
from efficientnetv2.commands.reproduction.scale import Scale
from efficientnetv2.commands.reproduction.table import Figure, Row, Table
from efficientnetv2.inference.accelerate import place
from efficientnetv2.models.network import EfficientNet

_CLASSES = 1000
# Key of a column in paper.json -> what it is called here, and its unit. Ours stand beside the V100's.
_TABLE_2 = {
    "tpu_img_s_core_batch32": ("images/s per TPU core, batch 32", "images/s"),
    "tpu_img_s_core_batch128": ("images/s per TPU core, batch 128", "images/s"),
    "v100_img_s_batch12": ("images/s, batch 12", "images/s"),
    "v100_img_s_batch24": ("images/s, batch 24", "images/s"),
    "top1": HEADINGS["top1"],
}
_TABLE_3 = {
    "params_m": HEADINGS["params_m"],
    "flops_b": HEADINGS["flops_b"],
    "top1": HEADINGS["top1"],
    "tpu_img_s_core": ("images/s per TPU core", "images/s"),
    "v100_img_s": ("images/s", "images/s"),
}


def table_2(scale: Scale, device: torch.device, say: Say) -> Table:
    """EfficientNet-B6's training speed at two sizes and two batches."""
    figures = table.paper()["table2_train_size_and_batch_efficientnet_b6"]
    spec = architecture("efficientnet_b6")
    rows = []
    for key in ("train_px_512", "train_px_380"):
        paper_px = int(key.rpartition("_")[2])
        px, ours = scale.px(paper_px), {}
        for images in (12, 24):
            batch = scale.batch(images)
            say(f"timing EfficientNet-B6 at {px} px, batch {batch}")
            ours[f"images/s, batch {images}"] = speed(spec, px, batch, scale.rounds, device)
        rows.append(Row(f"{paper_px} px", table.row_of(figures, key, _TABLE_2), ours))
    return Table(
        "2",
        "Table 2: smaller pictures and larger batches train faster (EfficientNet-B6)",
        tuple(rows),
        "top-1 on ImageNet; a TPU core, and one V100 in fp16; OOM: out of memory.",
        f"{table.untrained(scale.name)}{device}, fp32, at {scale.px_share:g} of the size and {scale.batch_share:g} of "
        f"the batch ({scale.px(512)} and {scale.px(380)} px, batches of {scale.batch(12)} and {scale.batch(24)}), "
        f"{rounds_of(scale)}; accuracy is not measured here.",
        scale.name,
    )


def table_3(scale: Scale, device: torch.device, say: Say) -> Table:
    """EfficientNet-B4 with Fused-MBConv in its first stages, its own kernels and 3x3 throughout."""
    figures = table.paper()["table3_fused_mbconv_in_efficientnet_b4"]
    base, eval_px = architecture("efficientnet_b4"), published("efficientnet_b4").eval_px
    px, batch = scale.px(eval_px), scale.batch(32)
    variants: list[tuple[str, str | None, Architecture]] = [("no fused", "no_fused", base)]
    for stages in (3, 5, 7):
        variants.append(
            (f"fused stages 1-{stages}", f"fused_stage1-{stages}", with_fused(base, stages=stages))
        )
        variants.append(
            (f"fused stages 1-{stages}, all 3x3", None, with_fused(base, stages=stages, kernel=3))
        )
    rows = []
    for name, key, spec in variants:
        say(f"timing EfficientNet-B4, {name}")
        total = cost(spec, image_px=eval_px).total
        ours = {
            "parameters, M": Figure((total.parameters / 1e6,), "M"),
            "multiply-adds, B": Figure((total.multiply_adds / 1e9,), "B"),
            "images/s": speed(spec, px, batch, scale.rounds, device),
        }
        rows.append(Row(name, table.row_of(figures, key, _TABLE_3) if key else {}, ours))
    return Table(
        "3",
        "Table 3: Fused-MBConv in the first stages of EfficientNet-B4",
        tuple(rows),
        "top-1 on ImageNet; training on a TPU core, and on one V100 in fp16.",
        f"{table.untrained(scale.name)}counted at {eval_px} px; steps on {device} in fp32 at {px} px, batch {batch}, "
        f"{rounds_of(scale)}; accuracy is not measured here.",
        scale.name,
    )


def speed(spec: Architecture, image_px: int, batch_images: int, rounds: int, device: torch.device) -> Figure:
    """Images per second of a training step: forward, backward and SGD on noise, in fp32, channels-last.

    Args:
        spec: of the network, with 1,000 classes.
        image_px: size of the pictures.
        batch_images: of a step.
        rounds: after one that warms up.
        device: to measure on.

    Returns:
        One value per round; missing where memory ran out.
    """
    try:
        step = _step(spec, image_px, batch_images, device)
        seconds = alternate({"step": step}, rounds=rounds, wait=waiting(device))["step"]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return Figure(unit="images/s", why="out of memory")
    return Figure(tuple(batch_images / one for one in seconds), "images/s")


def _step(spec: Architecture, image_px: int, batch_images: int, device: torch.device) -> Callable[[], None]:
    network = place(EfficientNet(spec, num_classes=_CLASSES).train(), device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(batch_images, 3, image_px, image_px, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch_images, device=device) % _CLASSES

    def step() -> None:
        functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
