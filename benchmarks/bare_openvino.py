"""Bare OpenVINO as a side of speed benchmarks: a graph with a fixed shape, and ready tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from efficientnetv2.exporters.openvino import openvino_core
from efficientnetv2.models.efficientnet import Network


def bare_sides(network: Network, batch: int, batches: int, precision: str = "f32") -> dict[str, Callable[[], object]]:
    """Performance hint -> a run of bare OpenVINO on ready tensors."""
    import openvino

    size = network.preprocessing.image_size
    tensors = [np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32) for _ in range(batches)]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        sample = (torch.from_numpy(tensors[0]),)
        torch.onnx.export(network.eval(), sample, file, dynamo=True, verbose=False, external_data=False)
        latency, throughput = (
            openvino_core().compile_model(
                file, "CPU", {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": precision}
            )
            for hint in ("LATENCY", "THROUGHPUT")
        )
    request, queue = latency.create_infer_request(), openvino.AsyncInferQueue(throughput)

    def one_by_one() -> None:
        for tensor in tensors:
            request.infer(tensor, share_inputs=True, share_outputs=True)

    def queued() -> None:
        for tensor in tensors:
            queue.start_async(tensor, share_inputs=True)
        queue.wait_all()

    return {"latency": one_by_one} if batch == 1 else {"latency": one_by_one, "throughput": queued}
