"""Words of version 0.1 in recipes, model files, reports and tables, translated where such a file is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# Version of the JSON files that the package writes. Files without one are from version 0.1.
SCHEMA_VERSION = 2

# Keys that mean the same in every file.
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
    "randaugment_colours": "randaugment_colors", "drawn_whole": "bootstrap_unit",
    "misjudged": "top_errors", "trained_on": "num_eval_images_seen_in_training",
    "chose": "num_eval_images_used_for_selection", "hashes": "sha256", "skipped": "num_skipped",
    "train_lost": "num_train_lost", "train_pictures": "num_train_images",
    "train_support": "train_images_per_class", "stored_px": "stored_size",
    "input_wait_share": "data_wait_fraction", "linear_probe_of_pictures": "linear_probe_num_available",
    "linear_probe_pictures": "linear_probe_num_images", "label_curve": "data_scaling_curve",
    "over_folds": "fold_mean", "splits_compared": "split_comparison", "tries": "candidates",
    "apart": "distance_to_train", "selected_figure": "selected_score", "waited_s": "data_wait_s",
    "groups_at_a_time": "microbatches", "views_compared": "tta_comparison",
    "answer": "activation", "picture_m": "ground_m", "flattering": "is_optimistic",
    "largest_over_smallest": "imbalance_ratio",
}  # fmt: skip
# Keys whose meaning depends on the object that they are in, by the key of that object ("" is the file itself).
_KEYS_IN = {
    "optimizer": {"kind": "name", "decay": "beta2"},
    "schedule": {"kind": "name", "factor": "gamma", "final": "min_lr_ratio"},
    "progressive": {"others": "extra"},
    "augment": {"colour": "color"},
    "rates": {"answers": "predictions"},
    "weights_compared": {"figure": "metric", "starts": "candidates"},
}
# Names of a key with a value of a type, and with others.
_NAMES_BY_TYPE: dict[str, tuple[type, str, str]] = {
    "pictures": (list, "images", "num_images"),
    "images": (int, "num_images", "images"),  # in a row of metrics.jsonl
    "answered": (str, "eval_split", "coverage"),
    "members": (int, "ensemble_size", "members"),
    "linear_probe": (float, "linear_probe_top1", "linear_probe"),
    "chosen": (list, "auto_choices", "chosen"),
    "asked": (bool, "requested", "asked"),
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
    "evaluated_on": {"all pictures": "all images"},
    "bootstrap_unit": {"places": "location", "groups": "group"},
    "global_pool": {"mean": "avg", "mean+centre": "avg+center"},
}
# Objects with keys that are class names or paths.
_OPAQUE = {
    "per_class", "train_support", "train_images_per_class", "linear_probe_f1", "intervals", "class_names",
    "by_class", "versions", "weights_trained_on",
}  # fmt: skip
# Columns of tables of predictions.
COLUMNS = {"label": "predicted_label", "drawn_whole": "cluster"}
FILES = {"run.json": "beginning.json", "dataset.csv": "manifest.csv"}


def upgrade(plain: T, part: str = "") -> T:
    """Plain JSON values of version 0.1, below the key ``part``, in the words of today; others stay as they are."""
    if isinstance(plain, list):
        return [upgrade(item, part) for item in plain]  # type: ignore[return-value]
    if not isinstance(plain, dict) or plain.get("schema_version") == SCHEMA_VERSION:
        return plain
    names = _KEYS | _KEYS_IN.get(part, {})
    upgraded = {}
    for key, item in plain.items():
        name = str(names.get(key, key))
        if key in _NAMES_BY_TYPE:
            kind, of_kind, other = _NAMES_BY_TYPE[key]
            name = of_kind if isinstance(item, kind) else other
        if isinstance(item, str):
            item = _VALUES.get(name, {}).get(item, item)
        upgraded[name] = item if key in _OPAQUE else upgrade(item, key)
    return upgraded  # type: ignore[return-value]


def upgrade_recipe(plain: Any) -> Any:
    """The values of ``recipe.yaml``. Only a file of version 0.1 has ``batch_images``."""
    return upgrade(plain) if isinstance(plain, dict) and "batch_images" in plain else plain


def run_file(folder: Path, name: str) -> Path:
    """A file of a run: version 0.1 called ``run.json`` ``beginning.json`` and ``dataset.csv`` ``manifest.csv``."""
    file, old = folder / name, folder / FILES.get(name, name)
    return old if old.exists() and not file.exists() else file
