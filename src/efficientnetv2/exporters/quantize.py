"""int8 by post-training quantization: onnxruntime for ONNX, NNCF for OpenVINO."""

from __future__ import annotations

import io
import logging
import os
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

from efficientnetv2.data.image_io import Pixels
from efficientnetv2.exporters.graph import Floats, model_input, to_batch
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.optional_deps import import_optional

#: Fewer images give ranges that new images exceed. Ours, a third of NNCF's default.
MIN_CALIBRATION = 100
#: Number of images where there are enough. Source: NNCF, quantize(subset_size=300).
CALIBRATION = 300
#: ONNX operators with weights that are quantized.
LAYERS = ("Conv", "Gemm", "MatMul")
_OPENVINO_LAYERS = ("Convolution", "GroupConvolution", "MatMul")


def quantize_onnx(model: Any, calibration: Pixels | None, own: Preprocessing) -> tuple[Any, tuple[str, ...]]:
    """An ONNX model with quantization nodes (QDQ), and the layers in float.

    Only the inputs and weights of layers are int8, weights per channel; what is between layers stays in float. Layers
    on pooled features (squeeze and excitation) stay in float as well: they take little time, and int8 would cost most
    accuracy there.
    """
    images = _calibration(calibration)
    quantization = import_optional("onnxruntime.quantization", "onnx", "Quantizing to int8")
    onnx = import_optional("onnx", "onnx", "Quantizing to int8")
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    pooled = [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and [dim.dim_value for dim in shapes.get(node.output[0], ())][2:] == [1, 1]
    ]
    # The exporter has done what onnxruntime's own preparation does; without the mark it warns on the root logger.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    inputs = ({"images": _input(image, own)} for image in images)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        quantization.quantize_static(
            model,
            file,
            SimpleNamespace(get_next=lambda: next(inputs, None)),  # the only method that onnxruntime calls
            per_channel=True,
            op_types_to_quantize=list(LAYERS),
            nodes_to_exclude=pooled,
            activation_type=quantization.QuantType.QUInt8,  # faster than QInt8 on x86, and as accurate
        )
        quantized = onnx.load(file)
    weights = {node.output[0] for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in quantized.graph.node if node.op_type in LAYERS]
    return quantized, tuple(node.name for node in layers if node.input[1] not in weights)


def quantize_openvino(model: Any, calibration: Pixels | None, own: Preprocessing) -> tuple[Any, tuple[str, ...]]:
    """An OpenVINO model with int8 weights and activations, and the layers in float."""
    images = _calibration(calibration)
    nncf = _import_nncf()
    _simplify(model)
    with redirect_stdout(io.StringIO()):  # NNCF draws progress bars
        dataset = nncf.Dataset(list(images), lambda image: _input(image, own))
        quantized = nncf.quantize(model, dataset, subset_size=len(images))
    layers = [node for node in quantized.get_ordered_ops() if node.get_type_name() in _OPENVINO_LAYERS]
    in_float = [node.get_friendly_name() for node in layers if not _has_int8_weight(node)]
    return quantized, tuple(name.removesuffix("/WithoutBiases") for name in in_float)


def _simplify(model: Any) -> None:
    """Compute constants, and make x * sigmoid(x) one operation, which runs with the layer before it."""
    # NNCF would otherwise quantize between the two, and leave depthwise layers in float, whose weights are computed in
    # the graph: V2-S would take 1.6 times as long (measured).
    openvino = import_optional("openvino", "openvino", "Quantizing an OpenVINO model to int8")
    for product in model.get_ordered_ops():
        if product.get_type_name() == "Multiply":
            first, second = product.input_values()
            for value, gate in ((first, second), (second, first)):
                if gate.get_node().get_type_name() == "Sigmoid" and gate.get_node().input_value(0) == value:
                    openvino.utils.replace_node(product, openvino.opset13.swish(value))
                    break
    passes = import_optional("openvino.passes", "openvino", "Quantizing an OpenVINO model to int8")
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)


def _import_nncf() -> Any:
    """NNCF without its telemetry, and without its changes to logging."""
    os.environ.setdefault("NNCF_CI", "1")  # otherwise it sends statistics of use to its authors
    logger_class = logging.getLoggerClass()
    try:
        nncf = import_optional("nncf", "nncf", "Quantizing an OpenVINO model to int8")
    finally:
        logging.setLoggerClass(logger_class)
    nncf.set_log_level(logging.ERROR)
    return nncf


def _has_int8_weight(layer: Any) -> bool:
    node = layer.input_value(1).get_node()
    while node.get_type_name() not in ("Constant", "FakeQuantize") and node.get_input_size():
        node = node.input_value(0).get_node()
    return node.get_type_name() == "FakeQuantize" or bool(node.get_element_type().size == 1)


def require_calibration(num_images: int) -> None:
    """Refuse too few images to calibrate."""
    if num_images < MIN_CALIBRATION:
        raise InputError(
            f"int8 needs at least {MIN_CALIBRATION} images to calibrate, and there are {num_images}. Give more with "
            "`calibration`, or use `half`."
        )


def _calibration(images: Pixels | None) -> Pixels:
    require_calibration(0 if images is None else len(images))
    return np.asarray(images, np.uint8)


def _input(image: Pixels, own: Preprocessing) -> Floats:
    return model_input(to_batch(image[None]), own)
