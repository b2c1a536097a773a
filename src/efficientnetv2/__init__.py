"""EfficientNetV2 (arXiv:2104.00298): models, progressive learning, and training from a folder of images.

The public names, listed below, are imported when they are first used, so that ``import efficientnetv2`` is quick.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efficientnetv2.architectures.flops import count_flops as count_flops
    from efficientnetv2.architectures.registry import get_architecture as get_architecture
    from efficientnetv2.architectures.spec import Architecture as Architecture
    from efficientnetv2.architectures.spec import Stage as Stage
    from efficientnetv2.architectures.spec import fused_mbconv as fused_mbconv
    from efficientnetv2.architectures.spec import mbconv as mbconv
    from efficientnetv2.data.dataset import load_dataset as load_dataset
    from efficientnetv2.data.sampler import ProgressiveBatchSampler as ProgressiveBatchSampler
    from efficientnetv2.data.shards.writer import PackResult as PackResult
    from efficientnetv2.inference.embeddings import nearest_images as nearest_images
    from efficientnetv2.inference.predictor import Predictor as Predictor
    from efficientnetv2.models.adapt import adapt as adapt
    from efficientnetv2.models.adapt import freeze as freeze
    from efficientnetv2.models.factory import create as create
    from efficientnetv2.models.hub import list_models as list_models
    from efficientnetv2.models.model_file import load as load
    from efficientnetv2.models.model_file import save as save
    from efficientnetv2.models.regularization import apply_regularization as apply_regularization
    from efficientnetv2.preprocessing import Preprocessing as Preprocessing
    from efficientnetv2.progressive.presets import paper_schedule as paper_schedule
    from efficientnetv2.progressive.presets import released_schedule as released_schedule
    from efficientnetv2.progressive.schedule import ProgressiveSchedule as ProgressiveSchedule
    from efficientnetv2.progressive.schedule import Ramp as Ramp
    from efficientnetv2.progressive.schedule import StepSettings as StepSettings
    from efficientnetv2.training.callbacks import Callback as Callback
    from efficientnetv2.utils.errors import InputError as InputError
    from efficientnetv2.workflows.area import MapAreas as MapAreas
    from efficientnetv2.workflows.area import estimate_areas as estimate_areas
    from efficientnetv2.workflows.augmentation_preview import preview as preview
    from efficientnetv2.workflows.benchmark import benchmark as benchmark
    from efficientnetv2.workflows.check import DatasetCheck as DatasetCheck
    from efficientnetv2.workflows.check import check as check
    from efficientnetv2.workflows.compare import Comparison as Comparison
    from efficientnetv2.workflows.compare import compare as compare
    from efficientnetv2.workflows.convert import Conversion as Conversion
    from efficientnetv2.workflows.convert import convert as convert
    from efficientnetv2.workflows.crossval import cross_validate as cross_validate
    from efficientnetv2.workflows.data import BalancedTable as BalancedTable
    from efficientnetv2.workflows.data import balance as balance
    from efficientnetv2.workflows.data import pack as pack
    from efficientnetv2.workflows.estimate import Estimate as Estimate
    from efficientnetv2.workflows.estimate import estimate as estimate
    from efficientnetv2.workflows.evaluate import evaluate as evaluate
    from efficientnetv2.workflows.export import Export as Export
    from efficientnetv2.workflows.export import export as export
    from efficientnetv2.workflows.predict import predict as predict
    from efficientnetv2.workflows.predict_map import MapResult as MapResult
    from efficientnetv2.workflows.predict_map import predict_map as predict_map
    from efficientnetv2.workflows.push import Push as Push
    from efficientnetv2.workflows.push import push as push
    from efficientnetv2.workflows.results import CrossValidation as CrossValidation
    from efficientnetv2.workflows.results import Evaluation as Evaluation
    from efficientnetv2.workflows.results import Run as Run
    from efficientnetv2.workflows.search import Study as Study
    from efficientnetv2.workflows.search import search as search
    from efficientnetv2.workflows.train import train as train

_NAMES = {
    "workflows.train": ("train",),
    "workflows.results": ("Run", "Evaluation", "CrossValidation"),
    "training.callbacks": ("Callback",),
    "workflows.evaluate": ("evaluate",),
    "workflows.predict": ("predict",),
    "inference.predictor": ("Predictor",),
    "inference.embeddings": ("nearest_images",),
    "workflows.crossval": ("cross_validate",),
    "workflows.compare": ("compare", "Comparison"),
    "workflows.export": ("export", "Export"),
    "workflows.benchmark": ("benchmark",),
    "workflows.convert": ("convert", "Conversion"),
    "workflows.push": ("push", "Push"),
    "workflows.check": ("check", "DatasetCheck"),
    "workflows.data": ("pack", "balance", "BalancedTable"),
    "data.shards.writer": ("PackResult",),
    "workflows.augmentation_preview": ("preview",),
    "workflows.predict_map": ("predict_map", "MapResult"),
    "workflows.area": ("estimate_areas", "MapAreas"),
    "workflows.estimate": ("estimate", "Estimate"),
    "workflows.search": ("search", "Study"),
    "architectures.spec": ("Architecture", "Stage", "fused_mbconv", "mbconv"),
    "architectures.registry": ("get_architecture",),
    "architectures.flops": ("count_flops",),
    "models.factory": ("create",),
    "models.hub": ("list_models",),
    "models.adapt": ("adapt", "freeze"),
    "models.model_file": ("load", "save"),
    "models.regularization": ("apply_regularization",),
    "progressive.schedule": ("ProgressiveSchedule", "Ramp", "StepSettings"),
    "progressive.presets": ("paper_schedule", "released_schedule"),
    "data.sampler": ("ProgressiveBatchSampler",),
    "data.dataset": ("load_dataset",),
    "preprocessing": ("Preprocessing",),
    "utils.errors": ("InputError",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = list(_MODULES)

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'efficientnetv2' has no attribute '{name}'")
    return getattr(import_module(f"efficientnetv2.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
