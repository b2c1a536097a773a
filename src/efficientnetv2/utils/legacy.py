"""Words of version 0.1 in recipes, model files and tables, translated where such a file is read."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")

# Version of the JSON files that the package writes.
SCHEMA_VERSION = 2

# Keys that mean the same in every part of a file.
_KEYS = {
    "eval_px_tried": "eval_image_size_candidates", "eval_px": "eval_image_size", "image_px": "image_size",
    "batch_images": "batch_size", "group_images": "ghost_batch_size", "crop_fraction": "crop_pct",
    "crop_framing": "train_crop_mode", "framing": "crop_mode", "crop_area_min": "crop_scale_min",
    "enlarge": "max_upscale", "cache_detail": "cache_resolution", "frozen_statistics": "freeze_bn",
    "recompute_stages": "checkpoint_stages", "initialisation": "init", "classifier": "head_init",
    "pooling": "global_pool", "eval_views": "tta", "views": "tta", "several_labels": "multilabel",
    "balance": "class_sampling", "rare_randaugment": "minority_randaugment_scale",
    "holdout": "val_fraction", "chosen_by": "monitor", "validate_epochs": "val_interval_epochs",
    "validate_images": "val_max_images", "time_shares": "stage_time", "px_multiple": "size_multiple",
    "shares": "stage_fractions", "turns": "random_draws", "made_for": "expected_dataset",
    "epochs_auto": "auto_epochs", "head_lr": "head_lr_mult", "unfreeze": "gradual_unfreeze",
    "every_epochs": "step_epochs", "warmup_share": "max_warmup_fraction",
    "randaugment_colours": "randaugment_colors", "answered": "eval_split", "selected_figure": "selected_score",
    "picture_m": "ground_m",
}  # fmt: skip
# Keys whose meaning depends on the object that they are in, by the key of that object.
_KEYS_IN = {
    "optimizer": {"kind": "name", "decay": "beta2"},
    "schedule": {"kind": "name", "factor": "gamma", "final": "min_lr_ratio"},
    "progressive": {"others": "extra"},
    "augment": {"colour": "color"},
}
# Values by the new key.
_CROP_MODES = {"whole": "squash", "crop": "center", "pad": "border"}
_VALUES = {
    "crop_mode": _CROP_MODES,
    "train_crop_mode": _CROP_MODES,
    "tta": {"one": "none", "symmetries": "d4"},
    "flip": {"symmetries": "d4"},
    "init": {"released": "default", "calm": "zero_residual"},
    "head_init": {"fresh": "random", "probe": "linear_probe"},
    "global_pool": {"mean": "avg", "mean+centre": "avg+center"},
}
# Columns of tables of predictions.
COLUMNS = {"label": "predicted_label", "drawn_whole": "cluster"}


def upgrade(plain: T, part: str = "") -> T:
    """Plain JSON values of version 0.1, below the key ``part``, in the words of today; others stay as they are."""
    if isinstance(plain, list):
        return [upgrade(item, part) for item in plain]  # type: ignore[return-value]
    if not isinstance(plain, dict):
        return plain
    names = _KEYS | _KEYS_IN.get(part, {})
    upgraded = {}
    for key, item in plain.items():
        name = str(names.get(key, key))
        if isinstance(item, str):
            item = _VALUES.get(name, {}).get(item, item)
        upgraded[name] = upgrade(item, key)
    return upgraded  # type: ignore[return-value]


def upgrade_recipe(plain: Any) -> Any:
    """The values of ``recipe.yaml``. Only a file of version 0.1 has ``batch_images``."""
    return upgrade(plain) if isinstance(plain, dict) and "batch_images" in plain else plain
