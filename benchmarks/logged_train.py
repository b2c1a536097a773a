"""``effnetv2 train`` that also logs which samples each process trains on, at which step.

Run: python -m benchmarks.logged_train LOG_FOLDER train DATA ..., alone or under torchrun

Each process of each start writes a file with one line per group of samples.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efficientnetv2.cli import main as cli
from efficientnetv2.data.loader import Batch
from efficientnetv2.training import trainer


def main() -> None:
    """Remove the folder from the arguments, then run ``effnetv2``."""
    folder = Path(sys.argv.pop(1))
    folder.mkdir(parents=True, exist_ok=True)
    real = trainer.training_batches

    def logged(*args: Any, **options: Any) -> Iterator[Batch]:
        began = f"{time.time():.3f}"
        start = os.environ.get("TORCHELASTIC_RUN_ID", "alone") + os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
        with (folder / f"{began}_{os.getpid()}.jsonl").open("w", buffering=1) as file:
            for batch in real(*args, **options):
                request = batch.request
                line = {"start": start, "step": request.step, "group": request.group, "ids": request.ids.tolist()}
                file.write(json.dumps(line) + "\n")
                yield batch

    trainer.training_batches = logged
    cli.main()


def samples_by_group(folder: Path) -> dict[tuple[int, int], list[list[int]]]:
    """(step, group) -> the sample ids of each time that the group counts, which should be once.

    Steps after the step that a later start resumed from are lost, and do not count.
    """
    starts: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # cut off by a kill
                continue
            starts.setdefault(row["start"], []).append(row)
    found: dict[tuple[int, int], list[list[int]]] = {}
    first_lost_step = float("inf")
    for rows in reversed(starts.values()):
        for row in rows:
            if row["step"] < first_lost_step:
                found.setdefault((row["step"], row["group"]), []).append(row["ids"])
        first_lost_step = min(first_lost_step, *(row["step"] for row in rows))
    return found


if __name__ == "__main__":
    main()
