"""ONNX files: the graph of a network; where images are raw, their preprocessing comes before it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.exporters.graph import OUTPUTS, Encoding, ExportGraph
from efficientnetv2.exporters.quantize import LAYERS, quantize_onnx
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, error_summary
from efficientnetv2.utils.optional_deps import import_optional

# The first with antialiased Resize and with Gelu; onnxruntime 1.17, OpenVINO 2024 and TensorRT 10 read it.
# Source: onnx/docs/Versioning.md.
_OPSET = 20
# Limit of a file of protocol buffers. Source: protobuf.dev, "Proto limits".
_MAX_BYTES = 2**31 - 2**24


def write_onnx(graph: ExportGraph, path: Path, encoding: Encoding, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Write a checked ONNX file and return the layers that ``int8`` leaves in float; the number of images is free.

    With ``float16`` weights and arithmetic are float16, inputs and outputs stay float32.
    """
    onnx = import_optional("onnx", "onnx", "Exporting to ONNX")
    import_optional("onnxscript", "onnx", "Exporting to ONNX")
    if sum(weight.nbytes for weight in graph.state_dict().values()) > _MAX_BYTES:
        raise InputError("the weights are larger than 2 GB, which an ONNX file cannot hold. Export a smaller model.")
    model = _traced(graph)
    in_float: tuple[str, ...] = ()
    _name_layers(model)
    if encoding.precision == "float16":
        float16 = import_optional("onnxruntime.transformers.float16", "onnx", "Half precision")
        # Sums over the positions of a map, and the number of positions, may be larger than float16 holds.
        in_float32 = [*float16.DEFAULT_OP_BLOCK_LIST, "ReduceSum", "Div"]
        model = _sorted(float16.convert_float_to_float16(model, keep_io_types=True, op_block_list=in_float32))
        del model.graph.value_info[:]  # has the types of before where float32 stays
    elif encoding.precision == "int8":
        model, in_float = quantize_onnx(model, encoding.calibration, graph.preprocessing)
    if encoding.input == "uint8":
        model = _behind_preprocessing(onnx, model, graph.preprocessing)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return in_float


def _traced(graph: ExportGraph) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                graph,
                (graph.sample(),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["images"],
                output_names=list(OUTPUTS),
                opset_version=_OPSET,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = error_summary(error.__cause__ or error)
            raise InputError(
                f"PyTorch cannot export {graph.network.display_name()} to ONNX ({reason}). Use `format=torch`, or "
                "another model."
            ) from error
    assert program is not None, "with dynamo=True, PyTorch returns a program"
    return program.model_proto


def _name_layers(model: Any) -> None:
    """Call each layer by the module that has its weight; a layer that is used again gets a number."""
    weights, used = {weight.name for weight in model.graph.initializer}, Counter[str]()
    for node in model.graph.node:
        if node.op_type in LAYERS and node.input[1] in weights and node.input[1].endswith(".weight"):
            name = node.input[1].removeprefix("network.").removesuffix(".weight")
            used[name] += 1
            node.name = name if used[name] == 1 else f"{name}:{used[name]}"


def _behind_preprocessing(onnx: Any, model: Any, preprocessing: Preprocessing) -> Any:
    """The model with raw images (N, H, W, C) uint8 as input."""
    front = onnx.parser.parse_model(_preprocessing_text(preprocessing))
    front.ir_version = model.ir_version
    used = {name for node in front.graph.node for name in node.input}
    constants = [constant for constant in front.graph.initializer if constant.name in used]
    del front.graph.initializer[:]  # onnxruntime warns of constants without a use
    front.graph.initializer.extend(constants)
    merged = onnx.compose.merge_models(front, model, io_map=[("normalized", "images")], prefix1="pre/")
    merged.graph.input[0].name = "images"
    for node in merged.graph.node:
        node.input[:] = ["images" if name == "pre/images" else name for name in node.input]
    return merged


def _sorted(model: Any) -> Any:
    """The model with each node after those that it needs."""
    ir = import_optional("onnx_ir", "onnx", "Half precision")
    found = ir.passes.common.TopologicalSortPass()(ir.from_proto(model)).model
    return ir.to_proto(found)


def _preprocessing_text(own: Preprocessing) -> str:
    """Crop, antialiased resize as Pillow does it, and normalization, in ONNX's textual syntax."""
    channels, px = own.channels, own.image_size
    # Within one gray level of Pillow: cubic_coeff_a and exclude_outside are those of its filter.
    kernel = 'mode = "cubic", cubic_coeff_a = -0.5' if own.interpolation == "bicubic" else 'mode = "linear"'
    # Resize and Pad get all four axes: with two, onnxruntime's optimizer breaks them in front of int8 layers.
    resize = f"Resize <{kernel}, antialias = 1, exclude_outside = 1>"
    scale = ", ".join(f"{1 / (255 * std):.9g}" for std in own.std)
    offset = ", ".join(f"{-mean / std:.9g}" for mean, std in zip(own.mean, own.std, strict=True))
    fill = ", ".join(str(min(255, max(0, round(255 * mean)))) for mean in own.mean)
    if own.crop_mode == "border":
        fit = f"""
            longest = ReduceMax <keepdims = 1> (shape_float)
            factor = Div (target_float, longest)
            fitted_float = Mul (shape_float, factor)
            fitted_round = Round (fitted_float)
            fitted_least = Max (fitted_round, one_float)
            fitted = Cast <to = 7> (fitted_least)
            fitted_shape = Concat <axis = 0> (planes, fitted)
            small = {resize} (values, , , fitted_shape)
            spare = Sub (target, fitted)
            before = Div (spare, two)
            after = Sub (spare, before)
            pads = Concat <axis = 0> (none, before, none, after)
            shifted = Sub (small, fill)
            padded = Pad (shifted, pads, zero)
            resized = Add (padded, fill)"""
        box = "crop = Identity (shape)"
    else:
        side = "ReduceMin <keepdims = 1> (shape_float)" if own.crop_mode == "center" else "Identity (shape_float)"
        box = f"""
            side = {side}
            kept_float = Mul (side, crop_pct)
            kept_round = Round (kept_float)
            kept_least = Max (kept_round, one_float)
            kept = Cast <to = 7> (kept_least)
            crop = Expand (kept, axes_shape)"""
        fit = f"""
            target_shape = Concat <axis = 0> (planes, target)
            resized = {resize} (values, , , target_shape)"""
    return f"""
        <ir_version: 10, opset_import: ["" : {_OPSET}]>
        preprocessing (uint8[batch, height, width, {channels}] images)
        => (float[batch, {channels}, {px}, {px}] normalized)
        <int64[2] axes = {{1, 2}}, int64[2] none = {{0, 0}}, int64[1] axes_shape = {{2}}, int64 two = {{2}},
         int64[2] target = {{{px}, {px}}}, float target_float = {{{px}}}, float zero = {{0}}, float most = {{255}},
         float one_float = {{1}}, float crop_pct = {{{own.crop_pct:.9g}}}, float[1, {channels}, 1, 1] fill = {{{fill}}},
         float[1, {channels}, 1, 1] scale = {{{scale}}}, float[1, {channels}, 1, 1] offset = {{{offset}}}>
        {{
            shape = Shape <start = 1, end = 3> (images)
            shape_float = Cast <to = 1> (shape)
            {box}
            outside = Sub (shape, crop)
            start = Div (outside, two)
            end = Add (start, crop)
            cropped = Slice (images, start, end, axes)
            channels_first = Transpose <perm = [0, 3, 1, 2]> (cropped)
            values = Cast <to = 1> (channels_first)
            planes = Shape <start = 0, end = 2> (values)
            {fit}
            rounded = Round (resized)
            levels = Clip (rounded, zero, most)
            scaled = Mul (levels, scale)
            normalized = Add (scaled, offset)
        }}"""
