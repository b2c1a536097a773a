"""`torch.export` programs (.pt2), which PyTorch and AOTInductor load without this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from efficientnetv2.exporters.graph import ExportGraph, InputKind


def write_program(
    graph: ExportGraph, path: Path, *, input_kind: InputKind, half: bool, metadata: Mapping[str, str]
) -> None:
    """Write a program for normalized float images; the number of images is free."""
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(graph, (graph.sample(),), dynamic_shapes=shapes)
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(dict(metadata))})
