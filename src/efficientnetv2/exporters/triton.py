"""The text of ``config.pbtxt`` for a model repository of NVIDIA Triton."""

from __future__ import annotations

from efficientnetv2.exporters.graph import OUTPUTS, InputKind
from efficientnetv2.models.efficientnet import Network

_MAX_BATCH, _MAX_DELAY_US = 64, 2000  # of requests that are computed together. Ours


def triton_config(name: str, network: Network, input_kind: InputKind) -> str:
    """``config.pbtxt``. Source: triton-inference-server/server, docs/user_guide/model_configuration.md."""
    own = network.preprocessing
    if input_kind == "uint8":
        kind, dims = "TYPE_UINT8", f"-1, -1, {own.channels}"
    else:
        kind, dims = "TYPE_FP32", f"{own.channels}, {own.image_size}, {own.image_size}"
    outputs = ",\n".join(
        f'  {{ name: "{output}", data_type: TYPE_FP32, dims: [ {network.num_classes} ], label_filename: "labels.txt" }}'
        for output in OUTPUTS
    )
    return f"""name: "{name}"
backend: "onnxruntime"
max_batch_size: {_MAX_BATCH}
input [
  {{ name: "images", data_type: {kind}, dims: [ {dims} ] }}
]
output [
{outputs}
]
dynamic_batching {{ max_queue_delay_microseconds: {_MAX_DELAY_US} }}
"""
