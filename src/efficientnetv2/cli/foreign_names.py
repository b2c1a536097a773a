"""Names of options in other tools, and of commands there and in version 0.1, with those of this program."""

from __future__ import annotations

# Options of timm, Ultralytics and Hugging Face whose value one of ours takes, where a command has it. Ours.
ALIASES = {
    **dict.fromkeys(("--imgsz", "--img-size"), "--image-size"),
    **dict.fromkeys(("--batch", "-b", "--per-device-train-batch-size"), "--batch-size"),
    "--num-train-epochs": "--epochs",
    **dict.fromkeys(("--lr0", "--learning-rate"), "--lr"),
    **dict.fromkeys(("--output-dir", "--save-dir", "--out", "-o"), "--output"),
    **dict.fromkeys(("--num-workers", "-j"), "--workers"),
    "--arch": "--model",
    **dict.fromkeys(("--pretrained", "--checkpoint", "--initial-checkpoint"), "--weights"),
    **dict.fromkeys(("--cfg", "--config"), "--recipe"),
    **dict.fromkeys(("--conf", "--threshold"), "--abstain-below"),
    "--format": "--to",
    **dict.fromkeys(("--num-folds", "--n-splits", "--k-folds", "--cv", "-k"), "--folds"),
}
# The same of options without a value; None: it holds without an option.
FLAGS: dict[str, tuple[str, ...] | None] = {
    "--pretrained": ("--weights", "auto"),
    "--no-pretrained": ("--weights", "none"),
    "--tta": ("--set", "tta=d4"),
    "--amp": None,
}
WITHOUT_VALUE = {"--tta": "d4"}  # where another tool has a flag of this name. Ours
FLAG_VALUES = {"--tta": ("none", "d4")}  # before one of these words it is our option, not that flag
# Advice about options that have no equal here. Ours.
ADVICE = {
    "--amp": "Mixed precision is automatic; to set it: --set precision=bf16",
    **dict.fromkeys(("--project", "--name", "--experiment"), "The folder of the run is --output FOLDER"),
    **dict.fromkeys(
        ("--gpus", "--gpu"),
        "The GPU is --device cuda:0; for several: torchrun --nproc-per-node N -m efficientnetv2 train",
    ),
    "--cos-lr": "The schedule is a cosine by default; to set it: --set schedule.name=cosine",
    "--early-stopping": "Early stopping is --epochs 40 --set minival=0.1 --set patience=5",
    **dict.fromkeys(("--num-classes", "--nc"), "Leave it out: the classes are read from DATA"),
    "--optimizer": "The optimizer is --set optimizer.name=NAME: sgd, adamw or rmsprop",
    "--no-augment": "Augmentation is off with --set progressive.randaugment=null --set augment.flip=none",
    **dict.fromkeys(("--model-ema", "--ema"), "The moving average of the weights is --set ema_decay=0.9998"),
    **dict.fromkeys(("--val-dir", "--val-data", "--split"), "Splits are folders or a column split in DATA"),
    **dict.fromkeys(("--exist-ok", "--overwrite"), "Give a new folder: --output FOLDER"),
    "--rank-unlabeled": "What to label next is --rank CSV",
}
# The same for commands that have no --set.
ADVICE_WITHOUT_SET = {
    **dict.fromkeys(("--top-k", "--topk"), "Leave it out: the table has the probability of every class"),
    **dict.fromkeys(("--metric", "--metrics"), "Leave it out: evaluate prints all metrics"),
}
# Options of other tools that are an argument here.
ARGUMENTS = {
    **dict.fromkeys(("--data", "--data-dir", "--train-dir", "--source", "--input"), "DATA"),
    **dict.fromkeys(("--model", "-m", "--checkpoint", "--weights"), "MODEL"),
}
# What other tools call a command.
COMMANDS = {
    **dict.fromkeys(("val", "validate", "eval", "test"), "evaluate"),
    **dict.fromkeys(("infer", "inference"), "predict"),
    **dict.fromkeys(("classify", "fit", "finetune", "fine-tune"), "train"),
    "import": "convert",
    **dict.fromkeys(("cv", "cross-validate", "crossvalidate", "kfold"), "crossval"),
    **dict.fromkeys(("inspect", "analyze", "analyse"), "check"),
    **dict.fromkeys(("config", "configs", "recipe"), "recipes"),
    **dict.fromkeys(("plan", "estimate"), "train DATA --dry-run"),
    **dict.fromkeys(("augment", "preview"), "train DATA --preview PNG"),
    **dict.fromkeys(("shard", "shards", "pack"), "data pack"),
    **dict.fromkeys(("onnx", "to-onnx", "deploy"), "export MODEL --format onnx"),
    "balance": "data balance",
    "map": "geo map",
    "area": "geo area",
    "best": "show",
    "help": "--help",
    "version": "--version",
}
# Formats that other tools export to, and what `export` calls the nearest of its own.
EXPORT_FORMATS = {
    **{name: name for name in ("onnx", "openvino", "torch", "triton")},
    **dict.fromkeys(("torchscript", "pt2"), "torch"),
    **dict.fromkeys(("tensorrt", "trt", "engine"), "onnx"),
}
# Tasks of other tools that are none of an image classifier.
OTHER_TASKS = ("detect", "segment", "pose", "obb", "track")
