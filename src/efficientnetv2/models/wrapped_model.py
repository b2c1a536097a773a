"""A module of timm, torchvision or anyone else, wrapped as a model of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from efficientnetv2.models.blocks import optimize_convolutions
from efficientnetv2.models.conversion.timm_config import stated_preprocessing
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError


class WrappedModel(Network):
    """A module of someone else with the interface of ``Network``.

    The first ``nn.Conv2d`` reads the image, or those that a timm model names, and the last ``nn.Linear`` is the
    classifier, in the order in which the module lists its parts. If a timm model names several classifiers, as
    distilled models have, they are all of them.
    ``module`` is used, not copied. ``source`` is the name by which ``create`` builds it again ("timm:resnet50",
    "torchvision:vit_b_16@384"). Raises InputError if one of the two layers is missing.
    """

    def __init__(
        self, module: nn.Module, *, source: str | None = None, preprocessing: Preprocessing | None = None
    ) -> None:
        name = source or type(module).__name__
        declared = _declared_classifiers(module)
        leaves = [leaf for part in declared for leaf in part.modules() if next(leaf.children(), None) is None]
        if leaves and all(isinstance(leaf, nn.Identity) for leaf in leaves):
            raise InputError(f"{name} comes without a classifier. Name the classes: num_classes=N.")
        convolutions = [part for part, m in module.named_modules() if part and isinstance(m, nn.Conv2d)]
        classifiers = _classifier_names(module, declared)
        if not convolutions or not classifiers:
            lacking = "nn.Linear to classify" if convolutions else "nn.Conv2d that reads images"
            fix = "Use another model." if source else "Wrap it into a module that has one."
            raise InputError(f"{name} has no {lacking}. {fix}")
        stem, classifier = module.get_submodule(convolutions[0]), module.get_submodule(classifiers[-1])
        assert isinstance(stem, nn.Conv2d)
        assert isinstance(classifier, nn.Linear)
        in_channels = stem.in_channels
        first = next(part for part, m in module.named_modules() if part and next(m.children(), None) is None)
        is_timm = isinstance(getattr(module, "pretrained_cfg", None), Mapping)
        if (source or "").startswith("timm:") or (is_timm and first != convolutions[0]):
            in_channels = getattr(module, "in_chans", in_channels)  # a layer rearranges the image before the stem
        super().__init__(num_classes=classifier.out_features, in_channels=in_channels, embed_dim=classifier.in_features)
        optimize_convolutions(module)
        self.module = module
        self.source = source
        self.stem_name = convolutions[0]
        stated = getattr(module, "pretrained_cfg", None)
        stems = (stated.get("first_conv") or ()) if isinstance(stated, Mapping) else ()
        stems = (stems,) if isinstance(stems, str) else stems
        # Several where more than one convolution reads the image.
        self.stem_names = tuple(name for name in stems if name in convolutions) or (convolutions[0],)
        self.classifier_names = classifiers  # in the order of the module
        self.classifier_name = classifiers[-1]
        self._map_indices: tuple[int, ...] | None = None  # of the maps to return; set by ``features``
        if preprocessing is not None:
            self.preprocessing = preprocessing.with_channels(in_channels)

    def display_name(self) -> str:
        """The source, or the class of the module."""
        return self.source or type(self.module).__name__

    def features(self, x: Tensor) -> list[Tensor]:
        """The last feature map at each resolution, (N, C, H/s, W/s), largest first.

        A transformer, which has one resolution, gives the map of its last block. Raises InputError unless the module is
        a timm model with ``forward_intermediates``.
        """
        if not hasattr(self.module, "forward_intermediates"):
            raise InputError(
                f"{self.display_name()} gives no feature maps. Use a model of this package, or a timm model "
                "that has forward_intermediates."
            )
        module: Any = self.module
        maps: list[Tensor] = module.forward_intermediates(x, intermediates_only=True)
        if self._map_indices is None:
            # Decided once, by the first images: in tiny ones, several maps may have one pixel.
            self._map_indices = tuple({tuple(m.shape[-2:]): index for index, m in enumerate(maps)}.values())
        return [maps[index] for index in self._map_indices]

    def embed(self, x: Tensor) -> Tensor:
        """The input of the (last) classifier, (N, embed_dim): after pooling, and after dropout in training."""
        if self.num_classes == 0:
            return self.forward(x)
        inputs: list[Tensor] = []
        thread = get_ident()

        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if get_ident() == thread:  # others may use the same module
                inputs.append(args[0])

        with self.module.get_submodule(self.classifier_name).register_forward_pre_hook(keep):
            self.module(x)
        return inputs[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes): the module's output, its first element, or its "logits"."""
        output = self.module(x)
        if isinstance(output, tuple):
            output = output[0]
        elif isinstance(output, Mapping):  # as Hugging Face's classifiers
            output = output.get("logits", output)
        if not isinstance(output, Tensor):
            raise InputError(
                f"{self.display_name()} returns a {type(output).__name__}, but must return logits, a tuple that "
                "begins with them, or a mapping with 'logits'. Wrap it into a module that does."
            )
        return output


def _declared_classifiers(module: nn.Module) -> list[nn.Module]:
    """The classifiers of a timm model, by ``get_classifier`` (one of two in VOLO) and its ``pretrained_cfg``."""
    getter, stated = getattr(module, "get_classifier", None), getattr(module, "pretrained_cfg", None)
    found = getter() if callable(getter) else ()
    names = (stated.get("classifier") or ()) if isinstance(stated, Mapping) else ()
    parts = dict(module.named_modules())
    classifiers = [*found] if isinstance(found, tuple | list) else [found]
    classifiers += [parts.get(name) for name in ((names,) if isinstance(names, str) else names)]
    return [part for part in classifiers if isinstance(part, nn.Module)]


def _classifier_names(module: nn.Module, declared: Sequence[nn.Module]) -> tuple[str, ...]:
    """Names of the linear layers that give the classes: the declared ones, otherwise the last one."""
    linears = {name: m for name, m in module.named_modules() if name and isinstance(m, nn.Linear)}
    within = {part for classifier in declared for part in classifier.modules()}
    names = [name for name, linear in linears.items() if linear in within] or list(linears)[-1:]
    # A hidden layer of a classifier has another width.
    return tuple(name for name in names if linears[name].out_features == linears[names[-1]].out_features)


def wrap_model(module: nn.Module) -> WrappedModel:
    """Wrap a module; a timm model keeps its stated preprocessing, unless it cannot be followed (not square).

    A ``Network`` within the module gives its preprocessing and, with as many outputs, its class names and activation.
    """
    stated = getattr(module, "pretrained_cfg", None)
    inner = next((part for part in module.modules() if isinstance(part, Network)), None)
    preprocessing: Preprocessing | None = None if inner is None else inner.preprocessing
    if isinstance(stated, Mapping) and stated.get("mean"):
        with suppress(InputError):
            preprocessing, _ = stated_preprocessing(stated, Path(type(module).__name__))
    network = WrappedModel(module, preprocessing=preprocessing)
    if inner is not None and inner.num_classes == network.num_classes:
        network.class_names, network.activation = inner.class_names, inner.activation
    return network
