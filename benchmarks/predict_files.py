"""``effnetv2 predict`` on many JPEG files, against its limits; see ``benchmarks.inference_speed``."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from benchmarks.bare_openvino import bare_sides
from PIL import Image

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.loader import evaluation_batches
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.utils.benchmark import TimingStats, interleave

BATCH, BATCHES = 32, 4  # batch size and batches of OpenVINO per turn
READ = 2_000  # images of reading per turn


def drawn(count: int, size: tuple[int, int] = (500, 375)) -> Iterator[Image.Image]:
    """Yield images of smooth color."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = rng.integers(0, 256, (47, 63, 3), dtype=np.uint8)
        yield Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def photos_in(folder: Path, count: int) -> Iterator[Image.Image]:
    """Yield photos of a folder at 500x375 px."""
    for file in sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))[:count]:
        with Image.open(file) as image:
            yield image.convert("RGB").resize((500, 375), Image.Resampling.LANCZOS)


def write_images(folder: Path, count: int, images: Iterable[Image.Image]) -> None:
    """Write JPEG files, with the images in turn."""
    folder.mkdir()
    contents = []
    for image in images:
        image.save(content := io.BytesIO(), "JPEG", quality=90)
        contents.append(content.getvalue())
    for number in range(count):
        (folder / f"{number:06d}.jpg").write_bytes(contents[number % len(contents)])


def peak_mib(*arguments: object) -> float:
    """Run ``effnetv2`` to its end; return its peak memory."""
    process = subprocess.Popen(
        [sys.executable, "-m", "efficientnetv2", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    peak = 0.0
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            peak = max(peak, int(line.split()[1]) / 1024) if line.startswith("VmHWM") else peak
        time.sleep(0.1)
    if process.returncode:
        assert process.stderr is not None
        raise SystemExit(process.stderr.read().decode())
    return peak


def files_ratios(per_image: dict[str, list[float]], peaks: dict[str, list[float]]) -> dict[str, TimingStats]:
    """Compute ratios from seconds per image and MiB, with one value per round."""
    rounds = list(zip(per_image["files"], per_image["bare"], per_image["read"], strict=True))
    memory = zip(peaks["files"], peaks["quarter"], strict=True)
    return {
        "predict_files_vs_limit": TimingStats.of([max(bare, read) / own for own, bare, read in rounds]),
        "predict_files_vs_shared_limit": TimingStats.of([(bare + read) / own for own, bare, read in rounds]),
        "predict_files_memory": TimingStats.of([every / quarter for every, quarter in memory]),
    }


def files_vs_limits(model: Network, images: Iterable[Image.Image], count: int, rounds: int) -> dict[str, TimingStats]:
    """Predict ``count`` files, and compare time and memory with the limits."""
    own = model.preprocessing
    peaks: dict[str, list[float]] = {"files": [], "quarter": []}
    with TemporaryDirectory() as folder:
        place = Path(folder)
        model_file.save(place / "model.safetensors", model, class_names=[str(k) for k in range(model.num_classes)])
        write_images(place / "images", count, images)
        names = [str(file) for file in sorted((place / "images").iterdir())]
        for side, part in (("files", names), ("quarter", names[: count // 4])):
            (place / f"{side}.csv").write_text("\n".join(["path", *part, ""]))
        some = DataConfig(str(place / "files.csv")).read(require_labels=False).select(np.arange(min(count, READ)))

        def predict(side: str) -> None:
            out = ("--output", place / "out.csv", "--device", "cpu", "--engine", "openvino")
            peaks[side].append(peak_mib("predict", place / "model.safetensors", place / f"{side}.csv", *out))

        def read() -> None:
            for _ in evaluation_batches(some, own, batch_size=64, workers=0):
                pass

        bare = bare_sides(model, BATCH, BATCHES)
        sides = {"files": partial(predict, "files"), "quarter": partial(predict, "quarter"), "read": read, **bare}
        interleave({name: run for name, run in sides.items() if name != "files"}, rounds=1, warmup=0)
        peaks["quarter"].clear()
        seconds = interleave(sides, rounds=rounds, warmup=0)
    seconds["bare"] = seconds[min(bare, key=lambda name: np.median(seconds[name]))]
    divisors = {"files": count, "read": len(some), "bare": BATCH * BATCHES}
    per_image = {name: [value / number for value in seconds[name]] for name, number in divisors.items()}
    for name, values in per_image.items():
        print(f"{name}: {1 / np.median(values):.0f} images/s")
    print(f"peak memory: {np.median(peaks['files']):.0f} MiB, of a quarter {np.median(peaks['quarter']):.0f} MiB")
    return files_ratios(per_image, peaks)
