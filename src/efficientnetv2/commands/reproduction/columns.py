"""The columns of the paper's tables: their keys in paper.json, what they are called here, and their units."""

from __future__ import annotations

from typing import Any

from efficientnetv2.commands.reproduction import table

#: Table of the paper -> its key in paper.json.
TABLES = {
    "1": "table1_efficiency",
    "2": "table2_train_size_and_batch_efficientnet_b6",
    "3": "table3_fused_mbconv_in_efficientnet_b4",
    "5": "table5_size_vs_randaugment",
    "6": "table6_progressive_settings",
    "7": "table7_imagenet",
    "8": "table8_transfer",
    "9": "table9_datasets",
    "10": "table10_same_training",
    "11": "table11_scaling_down",
    "12": "table12_progressive_for_other_networks",
    "13": "table13_adaptive_regularization",
}
#: Figure of the paper that is drawn from its Table 7 -> the keys of what top-1 is drawn against.
FIGURES = {
    "figure1": ("train_hours", "params_m"),
    "figure5": ("params_m", "flops_b", "infer_ms_v100_fp16_batch16"),
}
#: Key of a column in paper.json -> what it is called here, and its unit. Our speeds stand beside the V100's.
HEADINGS = {
    "top1": ("top-1 %", "%"),
    "params_m": ("parameters, M", "M"),
    "flops_b": ("multiply-adds, B", "B"),
    "infer_ms": ("ms", "ms"),
    "infer_ms_v100_fp16_batch16": ("ms", "ms"),
    "v100_fp16_batch128_img_s": ("images/s", "images/s"),
    "train_hours": ("hours", "h"),
    "tpu_img_s_core_batch32": ("images/s per TPU core, batch 32", "images/s"),
    "tpu_img_s_core_batch128": ("images/s per TPU core, batch 128", "images/s"),
    "v100_img_s_batch12": ("images/s, batch 12", "images/s"),
    "v100_img_s_batch24": ("images/s, batch 24", "images/s"),
    "tpu_img_s_core": ("images/s per TPU core", "images/s"),
    "v100_img_s": ("images/s", "images/s"),
    "px128": ("128 px", "%"),
    "px192": ("192 px", "%"),
    "px300": ("300 px", "%"),
    "min": ("first stage", ""),
    "max": ("last stage", ""),
    "cifar10": ("cifar10", "%"),
    "cifar100": ("cifar100", "%"),
    "flowers102": ("flowers102", "%"),
    "cars": ("cars", "%"),
    "train": ("train", "pictures"),
    "eval": ("eval", "pictures"),
    "classes": ("classes", "classes"),
    "baseline_top1": ("baseline, top-1 %", "%"),
    "baseline_hours": ("baseline, hours", "h"),
    "progressive_top1": ("progressive, top-1 %", "%"),
    "progressive_hours": ("progressive, hours", "h"),
    "vanilla": ("vanilla", "%"),
    "adaptive": ("adaptive", "%"),
}


def figures(name: str) -> dict[str, Any]:
    """The paper's figures of a table, as ``table.paper`` gives them, whole; none of what the paper only draws.

    Args:
        name: as on the command line; a figure's are those of the table that it is drawn from.
    """
    name = "7" if name in FIGURES else name
    given: dict[str, Any] = table.paper()[TABLES[name]] if name in TABLES else {"columns": []}
    return given


def headings(name: str) -> dict[str, tuple[str, str]]:
    """Key of each column of the paper's table -> what it is called here, and its unit; in the paper's order.

    Args:
        name: as on the command line; of a figure it is the columns that it draws.
    """
    drawn = ("top1", *FIGURES[name]) if name in FIGURES else figures(name)["columns"]
    return {key: HEADINGS[key] for key in figures(name)["columns"] if key in drawn}
