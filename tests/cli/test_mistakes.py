"""Typical mistakes on the command line: each message names the input and one fix, in one format."""

from __future__ import annotations

import re

import pytest
from tests.command_line import effnetv2

# Words, what the error names, and what the hint names; None: the error itself lists the choices or the rule.
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
    ("export runs/x", "'export'", "no export"),
    ("convert a b.safetensors --to onnx", "--to: invalid value 'onnx' (choose from timm", "no export"),
    ("convert a b.pth --to tim", "--to: invalid value 'tim'", "'timm'"),
    ("evaluate m photos --split foo", "--split: invalid value 'foo' (choose from train", None),
    ("evaluate m photos --split tset", "--split: invalid value 'tset'", "'test'"),
    ("train photos --cache yes", "--cache: invalid value 'yes' (choose from ram, disk)", None),
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
]


@pytest.mark.parametrize(("words", "named", "fix"), MISTAKES, ids=[words for words, _, _ in MISTAKES])
def test_a_mistake_is_answered_by_its_name_and_one_fix(words, named, fix, tmp_path):
    done = effnetv2(*words.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    error, *hints = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert named in error
    assert [line for line in hints if not line.startswith("hint: ")] == []
    assert len(hints) <= 1
    assert fix is None or fix in " ".join(hints)
    assert list(tmp_path.iterdir()) == []


NOTED = [
    ("train photos --imgsz 0", "--image-size 0"),
    ("train photos --img-size 0", "--image-size 0"),
    ("train photos --batch 8 --epochs x", "--batch-size 8"),
    ("train photos --batch_size 8 --epochs x", "--batch-size 8"),
    ("train photos -b 8 --epochs x", "--batch-size 8"),
    ("train photos --lr0=0.1 --epochs x", "--lr 0.1"),
    ("train photos --learning-rate 0.1 --epochs x", "--lr 0.1"),
    ("train photos --opt sgd --epochs x", "--set optimizer.name=sgd"),
    ("train photos --val-split 0.1 --epochs x", "--set val_fraction=0.1"),
    ("train photos --patience 3 --epochs x", "--set patience=3"),
    ("train photos --pretrained --epochs x", "--weights auto"),
    ("train photos --pretrained=x.pth --epochs x", "--weights x.pth"),
    ("train photos --amp --epochs x", "precision"),
    ("train photos --project a --name b --epochs x", "--output a/b"),
    ("train photos --name b --epochs x", "--output runs/b"),
    ("train photos -o runs/x --epochs x", "--output runs/x"),
    ("train photos --compare-to runs/x --epochs x", "--baseline runs/x"),
    ("crossval photos -k 3 --epochs x", "--folds 3"),
    ("predict m photos --tta --workers -1", "--tta d4"),
]


@pytest.mark.parametrize(("words", "ours"), NOTED, ids=[words for words, _ in NOTED])
def test_an_option_of_another_tool_is_read_as_ours_with_a_note(words, ours, tmp_path):
    """The last option of each is wrong, so that nothing runs."""
    note, error = effnetv2(*words.split(), cwd=tmp_path).stderr.splitlines()
    assert note.startswith("Note: ")
    assert ours in note
    assert re.match(r"error: --(epochs|image-size|workers): invalid value", error)
