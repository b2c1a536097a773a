"""Numbers outside the valid range: the message names the option as typed, the value and the rule."""

from __future__ import annotations

import pytest
from tests.command_line import effnetv2, run_ok


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("data pack DATA out --shard-mb inf", "--shard-mb: invalid value 'inf' (must be between 0.1 and 1,000,000)"),
        ("data pack DATA out --shard-mb nan", "--shard-mb: invalid value 'nan' (must be between 0.1"),
        ("data pack DATA out --shard-mb 0", "--shard-mb: invalid value '0.0' (must be between 0.1"),
        ("data pack DATA out --shard-images 0", "--shard-images: invalid value '0' (must be at least 1)"),
        ("data pack DATA out --image-size 1", "--image-size: invalid value '1' (must be at least 2)"),
        ("train DATA --weights none --epochs -2", "--epochs -2: must be a number above 0 and at most 1,000,000"),
        ("train DATA --epochs inf", "--epochs inf: must be a number above 0"),
        ("train DATA --epochs nan", "--epochs nan: must be a number above 0"),
        ("train DATA --weights none --set epochs=0", "--epochs 0: must be a number above 0"),
        ("train DATA --minutes inf", "--minutes inf: must be a number above 0"),
        ("train DATA --dry-run --minutes 0", "--minutes 0: must be a number above 0"),
        ("train DATA --image-size 100000", "--image-size: invalid value '100,000' (must be between 1 and 4,096)"),
        ("train DATA --image-size 12x", "--image-size: invalid value '12x' (must be a whole number)"),
        ("train DATA --batch-size 99999999999", "--batch-size: invalid value '99,999,999,999' (must be between 1"),
        ("train DATA --weights none --memory-gib inf", "--memory-gib is inf, but must be a number above 0"),
        ("train DATA --dry-run --memory-gib nan", "--memory-gib is nan, but must be a number above 0"),
        ("train DATA --weights none --set precision=fp8", "--set precision=fp8: must be fp32"),
        ("train DATA --weights none --epochs 5 --set steps=3", "--epochs 5.0 --set steps=3: epochs is 5 and steps"),
        (
            "train DATA --weights none --batch-size 9 --set ghost_batch_size=2",
            "--batch-size 9 --set ghost_batch_size=2: ghost_batch_size is 2, which does not divide batch_size (9)",
        ),
        ("convert in.pth out.safetensors --image-size 0", "--image-size: invalid value '0' (must be between 1 and"),
    ],
)  # fmt: skip
def test_invalid_number_is_refused_with_its_option(command, message, class_folders, tmp_path):
    done = effnetv2(*command.replace("DATA", class_folders.name).split(), cwd=tmp_path)
    output = " ".join(done.stderr.replace("hint: ", "").split())
    assert done.returncode == 2, done.stderr
    assert f"error: {message}" in output, output
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"], "nothing was started"


def test_smallest_and_largest_shard_sizes_are_accepted(class_folders, tmp_path):
    for number in ("0.1", "1000000"):
        run_ok("data", "pack", class_folders, f"out {number}", "--shard-mb", number, cwd=tmp_path)
        assert all(path.stat().st_size <= 100_000 for path in (tmp_path / "out 0.1").glob("*.tar"))
