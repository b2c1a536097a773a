"""Typical mistakes on the command line and in Python: each message names the input and one fix, in two sentences."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import torch
from tests.command_line import effnetv2
from tests.messages import mentioning

import efficientnetv2 as ev2

# Arguments, what the error names, and what the hint names; None: the error itself lists the choices or the rule.
MISTAKES = [
    ("trian photos", "'trian'", "train"),
    ("val runs/x photos", "'val'", "effnetv2 evaluate"),
    ("classify photos", "'classify'", "effnetv2 train"),
    ("inspect photos", "'inspect'", "effnetv2 check"),
    ("plan photos", "'plan'", "effnetv2 train DATA --dry-run"),
    ("augment photos", "'augment'", "effnetv2 train DATA --preview"),
    ("shards photos out", "'shards'", "effnetv2 data pack"),
    ("balance photos out", "'balance'", "effnetv2 data balance"),
    ("map m r.tif", "'map'", "effnetv2 geo map"),
    ("search best study", "'best'", "effnetv2 search show"),
    ("detect photos", "'detect'", "detection library"),
    ("onnx runs/x", "'onnx'", "effnetv2 export MODEL --format onnx"),
    ("data shard photos out", "'shard'", "effnetv2 data pack"),
    ("--verison", "--verison", "effnetv2 --help"),
    ("convert a b.safetensors --to onnx", "--to: invalid value 'onnx' (choose from timm", "effnetv2 export MODEL"),
    ("convert a b.safetensors --to torchscript", "--to: invalid value 'torchscript'", "--format torch"),
    ("convert a b.onnx", "OUT b.onnx", "effnetv2 export a"),
    ("convert nowhere b.safetensors", "nowhere does not exist", "Give a weight file"),
    ("export", "MODEL: missing", "effnetv2 export [OPTIONS] MODEL"),
    ("export nowhere", "nowhere does not exist", "Give a model file"),
    ("export m --format tflite", "--format: invalid value 'tflite' (choose from onnx", None),
    ("convert a b.pth --to tim", "--to: invalid value 'tim'", "'timm'"),
    ("evaluate m photos --split foo", "--split: invalid value 'foo' (choose from train", None),
    ("evaluate m photos --split tset", "--split: invalid value 'tset'", "'test'"),
    ("train photos --cache yes", "--cache: invalid value 'yes' (choose from ram, disk)", None),
    ("train photos --resume runs/x", "runs/x", "--output runs/x --resume"),
    ("train photos --resume=runs/x", "--resume", "--output runs/x --resume"),
    ("train photos --resume --output=runs/x more", "more", "one DATA"),
    ("train photos --epochs ten", "--epochs: invalid value 'ten' (must be a number)", None),
    ("train photos --image-size 0", "--image-size: invalid value '0' (must be between 1", None),
    ("train photos --workers -1", "--workers: invalid value '-1' (must be at least 0)", None),
    ("train . --epochs 1 --minutes 2", "--epochs and --minutes", "one"),
    ("train . --lr 0.1 --set optimizer.lr=0.2", "--lr and --set optimizer.lr", "one"),
    ("train photos --resume --dry-run", "--resume and --dry-run", "one"),
    ("train nowhere", "'nowhere' does not exist", "Give a folder"),
    ("train photos --lr", "--lr: a value is missing", "--lr X"),
    ("train", "DATA: missing", "effnetv2 train [OPTIONS] DATA"),
    ("train photos --epoch 3", "--epoch: no such option", "--epochs"),
    ("train photos --frobnicate 3", "--frobnicate: no such option", "effnetv2 train --help-all"),
    ("train photos lr0=0.1", "lr0=0.1", "--lr 0.1"),
    ("train photos more", "more", "one DATA"),
    ("train --data photos", "--data", "effnetv2 train photos"),
    ("train photos --project runs", "--project", "--output FOLDER"),
    ("convert a b.safetensors --mean half", "--mean: invalid value 'half'", None),
    ("compare runs/one", "compare", "RUN RUN"),
    ("compare", "RUN: missing", "effnetv2 compare [OPTIONS] RUN"),
    ("compare runs/one runs/two", "runs/one does not exist", "Give the folder of a finished run"),
    ("train . --device 0", "--device 0: there is no such device; GPU 0 is cuda:0", "This machine has auto"),
    ("train . --device gpu", "--device gpu", "This machine has auto"),
    ("train . --epochs 0", "--epochs 0: must be a number above 0", None),
    ("train photos --seed abc", "--seed: invalid value 'abc' (must be a whole number)", None),
    ("train photos --batch-size 2.5", "--batch-size: invalid value '2.5' (must be a whole number)", None),
    ("train photos --crop-mode stretch", "--crop-mode: invalid value 'stretch' (choose from squash", None),
    ("train photos --labels lower", "--labels: invalid value 'lower' (choose from exact", None),
    ("train . --bands red", "--bands is 'red', but must be numbers", None),
    ("train . --nodata none,x", "--nodata is 'none,x', but must be numbers", None),
    ("train . --memory-gib 0", "--memory-gib is 0, but must be a number above 0", None),
    ("train . --set epochs", "'epochs': write it as name=value", None),
    ("train . --set optimizer.learning=1", "optimizer.learning=1", "effnetv2 recipes --fields"),
    ("train . --set optimizer.lrr=1", "did you mean 'optimizer.lr'?", None),
    ("train . --set optimizer.lr=fast", "--set optimizer.lr=fast: must be a number above 0", None),
    ("train . --set optimizer.name=adam", "--set optimizer.name=adam: must be rmsprop, sgd or adamw", None),
    ("train . --set progressive.image_size={start:64,end:128}", "put a space behind each colon", None),
    ("train . --set batch_size=0", "--batch-size 0: must be a whole number", None),
    ("train . --recipe finetun", "'finetun'; did you mean 'finetune'?", "effnetv2 recipes"),
    ("train . --recipe my.yaml", "--recipe my.yaml: there is no such file", "Give a recipe.yaml"),
    ("train . --weights b0.in2k", "--weights b0.in2k", "effnetv2 models --pretrained"),
    ("train . --model efficientnet_v2_s", "'efficientnet_v2_s'; did you mean 'efficientnetv2_s'", None),
    ("train photos --optimizer adam", "--optimizer", "--set optimizer.name=NAME"),
    ("train photos --gpus 2", "--gpus", "torchrun"),
    ("train photos --num-classes 3", "--num-classes", "Leave it out"),
    ("train photos --early-stopping", "--early-stopping", "--set minival=0.1 --set patience=5"),
    ("train photos --model-ema", "--model-ema", "--set ema_decay="),
    ("train photos --val-dir photos", "--val-dir", "a column split"),
    ("train photos --exist-ok", "--exist-ok", "--output FOLDER"),
    ("train photos --patience", "--patience", "--set patience=VALUE"),
    ("train photos --resume", "--resume: there is no run in runs", "leave out --resume"),
    ("train --resume", "DATA: missing", "effnetv2 train [OPTIONS] DATA"),
    ("predict nowhere photos", "nowhere does not exist", "Give a model file"),
    ("predict m photos --output next.xlsx", "--output next.xlsx", "ends in .csv"),
    ("predict m photos --abstain-below 50", "--abstain-below: invalid value '50.0' (must be between 0 and 1)", None),
    ("predict m photos --engine gpu", "--engine: invalid value 'gpu' (choose from auto", None),
    ("predict m photos --top-k 5", "--top-k", "Leave it out"),
    ("predict --model m --source photos", "--model", "effnetv2 predict m DATA"),
    ("evaluate photos", "DATA: missing", "effnetv2 evaluate [OPTIONS] MODEL DATA"),
    ("evaluate m photos --eval-sizes a", "--eval-sizes: invalid value 'a'", "96,128,160"),
    ("evaluate m photos --costs", "--costs: a value is missing", "--costs CSV"),
    ("evaluate m photos --metrics f1", "--metrics", "Leave it out"),
    ("crossval photos --by group_id", "--by: invalid value 'group_id' (choose from auto", "'group'"),
    ("crossval . --candidate lr=1", "--candidate: one leaves nothing to select", "Add another"),
    ("crossval photos --ensemble 0", "--ensemble: invalid value '0' (must be between 1 and 100)", None),
    ("check nowhere", "'nowhere' does not exist", "Give a folder"),
    ("data pack photos", "OUT: missing", "effnetv2 data pack [OPTIONS] DATA OUT"),
    ("geo map m r.tif o.tif", "o.tif", "effnetv2 geo map [OPTIONS] MODEL RASTER"),
    ("geo area map.tif", "SAMPLE: missing", "effnetv2 geo area [OPTIONS] MAP SAMPLE"),
    ("search run study", "--data: missing", "--data DATA"),
    ("search show nowhere", "nowhere holds no study", "effnetv2 search run nowhere"),
    ("search export nowhere --trial best", "--trial: invalid value 'best' (must be a whole number)", None),
    ("models --fetch efficientnetv2_b9", "'efficientnetv2_b9'; did you mean", "Known: "),
    ("recipes --field momentumm", "'momentumm'; did you mean 'momentum'?", "effnetv2 recipes --fields"),
    ("train photos --imgz 224", "--imgz: no such option", "Did you mean '--image-size'?"),
    ("train photos --bs 32", "--bs: no such option", None),
    ("train photos --cos-lr", "--cos-lr: no such option", "schedule.name=cosine"),
    ("demo extra", "extra", "effnetv2 demo [OPTIONS]"),
]


def num_sentences(*texts: str) -> int:
    """A sentence starts with a capital letter after the end of another; a question between names is not counted."""
    return sum(1 + len(re.findall(r"(?<=[^.][.?!]) +(?=[A-Z])", text)) for text in texts)


@pytest.mark.parametrize(("args", "named", "fix"), MISTAKES, ids=[args for args, _, _ in MISTAKES])
def test_error_names_the_mistake_and_one_fix(args, named, fix, tmp_path):
    done = effnetv2(*args.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    error, *hints = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert named in error
    assert [line for line in hints if not line.startswith("hint: ")] == []
    assert len(hints) <= 1
    assert fix is None or fix in " ".join(hints)
    assert num_sentences(error, *hints) <= 2
    assert list(tmp_path.iterdir()) == []


NOTED = [
    ("train photos --imgsz 0", "--image-size 0"),
    ("train photos --img-size 0", "--image-size 0"),
    ("train photos --batch 8 --epochs x", "--batch-size 8"),
    ("train photos --batch_size 8 --epochs x", "--batch-size 8"),
    ("train photos -b 8 --epochs x", "--batch-size 8"),
    ("train photos --lr0=0.1 --epochs x", "--lr 0.1"),
    ("train photos --learning-rate 0.1 --epochs x", "--lr 0.1"),
    ("train photos --per_device_train_batch_size 8 --epochs x", "--batch-size 8"),
    ("train photos --num_train_epochs x", "--epochs x"),
    ("train photos --opt sgd --epochs x", "--set optimizer.name=sgd"),
    ("train photos --val-split 0.1 --epochs x", "--set val_fraction=0.1"),
    ("train photos --patience 3 --epochs x", "--set patience=3"),
    ("train photos --pretrained --epochs x", "--weights auto"),
    ("train photos --pretrained=x.pth --epochs x", "--weights x.pth"),
    ("train photos --amp --epochs x", "precision"),
    ("train photos --project a --name b --epochs x", "--output a/b"),
    ("train photos --name b --epochs x", "--output runs/b"),
    ("train photos -o runs/x --epochs x", "--output runs/x"),
    ("crossval photos -k 3 --epochs x", "--folds 3"),
    ("predict m photos --tta --workers -1", "--tta d4"),
    ("train photos --tta --epochs x", "--set tta=d4"),
    ("train photos --tta d4 --epochs x", "--set tta=d4"),
    ("train photos --tta none --epochs x", "--set tta=none"),
    ("train photos --scheduler cosine --epochs x", "--set schedule.name=cosine"),
    ("train photos --weight-decay 0.05 --epochs x", "--set optimizer.weight_decay=0.05"),
    ("train photos --out runs/x --epochs x", "--output runs/x"),
    ("crossval photos --cv 3 --epochs x", "--folds 3"),
]


@pytest.mark.parametrize(("args", "expected"), NOTED, ids=[args for args, _ in NOTED])
def test_option_of_another_tool_is_accepted_with_a_note(args, expected, tmp_path):
    """The last option of each command is invalid, so that nothing runs."""
    note, error = effnetv2(*args.split(), cwd=tmp_path).stderr.splitlines()
    assert note.startswith("Note: ")
    assert expected in note
    assert re.match(r"error: --(epochs|image-size|workers): invalid value", error)


# Calls, and what their message names: the input, and one fix or the rule.
IN_PYTHON = [
    (lambda: ev2.train("nowhere"), ("'nowhere' does not exist", "Give a folder")),
    (lambda: ev2.train("photos", epoch=3), ("'epoch'", "'epochs'")),
    (lambda: ev2.train("photos", imgsz=224), ("'imgsz'", "'image_size'")),
    (lambda: ev2.train("photos", augment=False), ("'augment'", "help(efficientnetv2.train)")),
    (lambda: ev2.train("photos", epochs="ten"), ("`epochs`", "must be a number", "'ten'")),
    (lambda: ev2.train("photos", epochs=1, minutes=2), ("`epochs` and `minutes`", "one of them")),
    (lambda: ev2.train("photos", batch_size=2.5), ("`batch_size`", "must be an integer", "2.5")),
    (lambda: ev2.train("photos", crop_mode="centre"), ("`crop_mode`", "'centre'", "'center'")),
    (lambda: ev2.train("photos", cache="yes"), ("`cache`", "ram, disk", "'yes'")),
    (lambda: ev2.train("photos", resume="runs/x"), ("`resume`", "'runs/x'", "`output`")),
    (lambda: ev2.train("photos", settings="lr=1"), ("`settings`", "must be a mapping")),
    (lambda: ev2.train("photos", model=torch.nn.Linear(2, 2)), ("`model`", "Linear", "own-training-loop.md")),
    (lambda: ev2.train(pd.DataFrame({"path": ["a"]})), ("`data`", "DataFrame", "to_csv")),
    (lambda: ev2.predict("m", "photos"), ("m does not exist", "Give a model file")),
    (lambda: ev2.predict("m", "photos", engine="gpu"), ("`engine`", "'gpu'", "onnxruntime")),
    (lambda: ev2.evaluate("m", "photos", tta="d8"), ("`tta`", "'d8'", "d4")),
    (lambda: ev2.cross_validate("photos", by="groups"), ("`by`", "'groups'", "'group'")),
    (
        lambda: ev2.cross_validate("nowhere", folds=None, by=None, members=None, candidates=None),
        ("'nowhere' does not exist", "Give a folder"),
    ),
    (lambda: ev2.search("photos", step_exponent=0.1), ("`step_exponent`", "at most 0", "0.1")),
    (lambda: ev2.search("photos", memory_exponent="x"), ("`memory_exponent`", "must be a number", "'x'")),
    (lambda: ev2.search("photos", epochs="2"), ("`epochs`", "must be a number", "'2'")),
    (lambda: ev2.compare("runs/one"), ("two runs or more", "Give their folders")),
    (lambda: ev2.convert("a", "b.safetensors", to="onnx"), ("`to`", "'onnx'", "efficientnetv2.export")),
    (lambda: ev2.export("m", format="tflite"), ("`format`", "'tflite'", "onnx")),
    (lambda: ev2.create("efficientnetv2_b9"), ("'efficientnetv2_b9'", "did you mean 'efficientnetv2_b")),
    (lambda: ev2.create("efficientnetv2_b0", num_classes="3"), ("num_classes", "'3'", "a whole number")),
    (lambda: ev2.create(3), ("`model` is 3", "a module")),
    (lambda: ev2.adapt(torch.nn.Linear(2, 2), num_classes=3), ("Linear", "efficientnetv2.create")),
    (lambda: ev2.freeze(torch.nn.Linear(2, 2), stages=2), ("a Linear is not", "efficientnetv2.create")),
    (lambda: ev2.count_flops("efficientnetv2_s", image_size=384), ("`architecture`", "str", "get_architecture")),
    (lambda: ev2.load("nowhere"), ("nowhere does not exist", "Give a model file")),
    (lambda: ev2.save("m.safetensors", 2), ("int", "efficientnetv2.create")),
    (lambda: ev2.Predictor(3), ("int is not a model", "Give a model file")),
    (lambda: ev2.estimate("photos", epochs=0), ("`epochs=0`", "must be a number above 0")),
]


@pytest.mark.parametrize(("call", "facts"), IN_PYTHON, ids=[facts[0] for _, facts in IN_PYTHON])
def test_python_error_names_the_argument_and_one_fix(call, facts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ev2.InputError, match=mentioning(*facts)) as error:
        call()
    assert num_sentences(str(error.value)) <= 2
    assert list(tmp_path.iterdir()) == []
