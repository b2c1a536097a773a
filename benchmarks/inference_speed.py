"""Speed of predictions on the CPU, as ratios to their limits: bare OpenVINO, timm, and the reading of files.

Run: python -m benchmarks.inference_speed [--only PART] [--rounds 15] [--images 20000] [--photos FOLDER] [--record]

Models have random weights. The sides of a ratio take turns after a warm-up. Intervals are quartiles over the rounds.

- s: ``Predictor`` with OpenVINO on single decoded images of 384 px, V2-S. Bare OpenVINO gets a graph of fixed shape and
  normalized float32 tensors. If the processor has bf16, also with the engine ``openvino-bf16``.
- b0: Like s, with V2-B0 and batches of 32 images of 256 px, center crop 224 px. Bare OpenVINO uses the faster of the
  hints for latency and throughput.
- int8: An int8 export of V2-S in OpenVINO and timm's model in fp32, single tensors of 384 px.
- files: ``effnetv2 predict`` as a process, from JPEG files of 500x375 px to a CSV file, with V2-B0 and 10 classes. One
  limit is bare OpenVINO as above, the other is the reading of files without a model. Each alone has all cores. The
  shared limit runs both, one after the other. Memory is the peak on all images / the peak on a quarter of them.

A measurement is not recorded if the pace of the machine before and after differs by more than a tenth.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import timm
import torch
from benchmarks.bare_openvino import bare_sides
from benchmarks.in_turn import at_steady_pace
from benchmarks.predict_files import drawn, files_vs_limits, photos_in, write_images
from benchmarks.record import installed, record_spread

import efficientnetv2 as ev2
from efficientnetv2.exporters.formats import open_openvino
from efficientnetv2.inference.predict import Engine
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.utils.benchmark import TimingStats, interleave, speed_ratio
from efficientnetv2.utils.device import lower_precision

Ratios = dict[str, TimingStats]
ROUNDS, FILE_ROUNDS, IMAGES = 15, 3, 20_000
BATCHES, BATCH = 4, 32  # per turn
CALIBRATION, DISTINCT = 100, 500  # images


def vs_openvino(network: Network, batch: int, rounds: int, precision: str = "f32") -> TimingStats:
    """Speed of ``Predictor`` / speed of the faster side of bare OpenVINO."""
    preprocessing = network.preprocessing
    side = round(preprocessing.image_size / preprocessing.crop_pct)  # needs no resize
    images = np.random.default_rng(0).integers(0, 256, (BATCHES, batch, side, side, 3), np.uint8)
    engine: Engine = "openvino" if precision == "f32" else "openvino-bf16"
    predictor = ev2.Predictor(network, device="cpu", batch_size=batch, engine=engine)
    sides = {
        "ours": lambda: [predictor(batch_images) for batch_images in images],
        **bare_sides(network, batch, BATCHES, precision),
    }
    seconds = interleave(sides, rounds=rounds, warmup=2)
    for name, values in seconds.items():
        print(f"{name}: {1000 * np.median(values) / BATCHES:.1f} ms per batch of {batch}")
    bare = min(list(sides)[1:], key=lambda name: np.median(seconds[name]))
    return speed_ratio(seconds, of="ours", to=bare)


def predictor_s(options: argparse.Namespace) -> Ratios:
    network, name = ev2.create("efficientnetv2_s"), "predictor_s_384_vs_openvino"
    found = {name: vs_openvino(network, 1, options.rounds)}
    if lower_precision(torch.device("cpu")) == "bf16":
        return {**found, f"{name}_bf16": vs_openvino(network, 1, options.rounds, "bf16")}
    print(f"{name}_bf16: left out, because the processor has neither AVX512_BF16 nor AMX")
    return found


def predictor_b0(options: argparse.Namespace) -> Ratios:
    return {"predictor_b0_224_vs_openvino": vs_openvino(ev2.create("efficientnetv2_b0"), BATCH, options.rounds)}


def int8_vs_timm(network: Network, peer: torch.nn.Module, rounds: int) -> TimingStats:
    """Speed of an int8 export / speed of another model in PyTorch, batch 1."""
    size = network.preprocessing.image_size
    with TemporaryDirectory() as folder:
        path = Path(folder)
        model_file.save(path / "model.safetensors", network, class_names=[str(k) for k in range(network.num_classes)])
        write_images(path / "images", CALIBRATION, drawn(CALIBRATION))
        images = path / "images"
        exported = ev2.export(
            path / "model.safetensors", "openvino", int8=True, data=images, calibration=images, num_images=8
        )
        session = open_openvino(exported.path / "model.xml")
    tensor = torch.randn(1, 3, size, size)
    peer = peer.eval().to(memory_format=torch.channels_last)
    on_peer = tensor.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        sides = {"ours": partial(session.run, tensor.numpy()), "peer": partial(peer, on_peer)}
        seconds = interleave(sides, rounds=rounds, warmup=3)
    for name, values in seconds.items():
        print(f"{name}: {1000 * np.median(values):.1f} ms")
    return speed_ratio(seconds, of="ours", to="peer")


def int8(options: argparse.Namespace) -> Ratios:
    peer = timm.create_model("tf_efficientnetv2_s", pretrained=False)
    return {"int8_s_384_vs_timm_fp32": int8_vs_timm(ev2.create("efficientnetv2_s"), peer, options.rounds)}


def files(options: argparse.Namespace) -> Ratios:
    images = drawn(DISTINCT) if options.photos is None else photos_in(options.photos, DISTINCT)
    network = ev2.create("efficientnetv2_b0", num_classes=10)
    return files_vs_limits(network, images, options.images, min(options.rounds, FILE_ROUNDS))


PARTS = {"s": predictor_s, "b0": predictor_b0, "int8": int8, "files": files}


def command_of(part: str, options: argparse.Namespace) -> str:
    """The command that repeats a part."""
    parts = ["python -m benchmarks.inference_speed --only", part]
    parts += [f"--rounds {options.rounds}"] * (options.rounds != ROUNDS)
    if part == "files":
        parts += [f"--images {options.images}"] * (options.images != IMAGES)
        parts += ["--photos FOLDER"] * (options.photos is not None)
    return " ".join([*parts, "--record"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(PARTS), help="one part; default: all")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"number of rounds, at most {FILE_ROUNDS} for files")
    parser.add_argument("--images", type=int, default=IMAGES, help="number of files")
    parser.add_argument("--photos", type=Path, help="photos to write as files; default: drawn images")
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    all_steady = True
    for part in [options.only] if options.only else PARTS:
        found, is_steady = at_steady_pace(partial(PARTS[part], options))
        all_steady &= is_steady
        for name, ratio in found.items():
            print(f"{name}: {ratio}, n = {ratio.rounds}", flush=True)
            if options.record and is_steady:
                record_spread(
                    name,
                    ratio,
                    unit="ratio",
                    command=command_of(part, options),
                    versions=installed("openvino", "nncf", "timm"),
                )
    return 0 if all_steady else 1


if __name__ == "__main__":
    raise SystemExit(main())
