"""Networks of others, wrapped so that they work wherever a network is asked for: timm's, torchvision's, anyone's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from efficientnetv2.models import torchvision_wrappers
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.layers import optimize_convolutions
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.optional_deps import needed

LIBRARIES = ("timm", "torchvision")

# timm leaves stochastic depth out of networks built at rate 0, and then no schedule can raise it. So they are
# built with some, which is then set to what was asked for; only the proportions of the blocks stay. Ours.
_TO_HAVE_MODULES = 0.1

# A picture of this side has a map of another size at each stride up to 32; of smaller ones several may be one pixel.
_TELLING_PX = 64


class WrappedModel(Network):
    """A module of someone else, as a ``Network``.

    The last ``nn.Linear`` is taken for the classifier and the first ``nn.Conv2d`` for what reads the picture,
    in the order in which the module lists its parts: so it is in the networks of timm and torchvision. Where a network
    of timm says that it has several classifiers, as distilled ones have, they are all of them.

    Args:
        module: with at least one of each. It is used, not copied, and its plain convolutions learn quicker on a CPU
            (``models.layers.optimize_convolutions``).
        source: by which ``create`` makes such a module again ("timm:resnet50", "torchvision:vit_b_16@384"); None for
            a module that only its owner can make.
        preprocessing: of the module; None is ImageNet's at 224 px.

    Attributes:
        module: the one given.
        source: the one given.
        stem_name: of the convolution that reads the picture, within ``module``.
        classifier_name: of the classifier, within ``module``; without classes an ``nn.Identity`` stands there. Of
            several the last.
        classifier_names: of all classifiers, in the order of ``module``.

    Raises:
        InputError: no linear layer or no convolution, or a network of timm without its classifier.
    """

    def __init__(
        self, module: nn.Module, *, source: str | None = None, preprocessing: Preprocessing | None = None
    ) -> None:
        told = _told_classifiers(module)
        ends = [part for one in told for part in one.modules() if next(part.children(), None) is None]
        if ends and all(isinstance(one, nn.Identity) for one in ends):
            raise InputError(
                f"{source or type(module).__name__} comes without a classifier, and the last nn.Linear within it is "
                "none. When it is made, name the classes: num_classes=N."
            )
        convolutions = [(name, m) for name, m in module.named_modules() if name and isinstance(m, nn.Conv2d)]
        names = _classifier_names(module, told)
        for found, kind in (
            (convolutions, "nn.Conv2d that reads pictures"),
            (names, "nn.Linear to classify"),
        ):
            if not found:
                raise InputError(
                    f"{source or type(module).__name__} has no {kind}, so it cannot be told where it begins and "
                    "ends. Wrap it into a module that has one."
                )
        stem_name, stem = convolutions[0]
        classifier = module.get_submodule(names[-1])
        assert isinstance(classifier, nn.Linear)
        super().__init__(
            num_classes=classifier.out_features,
            in_channels=stem.in_channels,
            embed_dim=classifier.in_features,
        )
        optimize_convolutions(module)
        self.module = module
        self.source = source
        self.stem_name = stem_name
        self.classifier_name, self.classifier_names = names[-1], names
        self._last_of_size: tuple[int, ...] | None = (
            None  # among the module's maps; known when they are asked for
        )
        if preprocessing is not None:
            self.preprocessing = preprocessing.with_channels(stem.in_channels)

    def features(self, x: Tensor) -> list[Tensor]:
        """The last map of every size, from large to small; of timm's networks. The same ones of pictures of any size.

        Args:
            x: (N, in_channels, H, W) float, normalised.

        Returns:
            (N, C, H/s, W/s) each; a network without a pyramid, such as a transformer, gives the map of its last
            block alone.

        Raises:
            InputError: the module does not give its maps away; only timm's do (``forward_intermediates``).
        """
        if not hasattr(self.module, "forward_intermediates"):
            raise InputError(
                f"{self.source or type(self.module).__name__} does not give its feature maps away. Use one of our "
                "networks, or one of timm's that has forward_intermediates."
            )
        give: Callable[..., Sequence[Tensor]] = self.module.forward_intermediates  # type: ignore[assignment]
        maps = give(x, intermediates_only=True)
        if self._last_of_size is None:
            self._last_of_size = self._told_apart(maps, min(x.shape[-2:]))
        return [maps[place] for place in self._last_of_size]

    def _told_apart(self, maps: Sequence[Tensor], px: int) -> tuple[int, ...]:
        """Places of the last map of every size: of a larger picture, where this one may be too small to tell them."""
        if px < _TELLING_PX:
            from efficientnetv2.models.memory_profile import infer_shapes  # which knows this module

            with suppress(InputError):  # it takes pictures of its own size alone
                maps = infer_shapes(
                    _Maps(self.module), in_channels=self.in_channels, image_px=_TELLING_PX, images=2
                )
        return tuple({tuple(m.shape[-2:]): place for place, m in enumerate(maps)}.values())

    def embed(self, x: Tensor) -> Tensor:
        """What the classifier reads, of several the last: after pooling, and after dropout when training.

        Args:
            x: (N, in_channels, H, W) float, normalised.

        Returns:
            (N, embed_dim).
        """
        if self.num_classes == 0:
            return self.forward(x)
        seen: list[Tensor] = []
        classifier = self.module.get_submodule(self.classifier_name)
        hook = classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.module(x)
        finally:
            hook.remove()
        return seen[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Logits; the first of them where a module answers with several, those called so where it names its answers.

        Args:
            x: (N, in_channels, H, W) float, normalised.

        Returns:
            (N, num_classes), or (N, embed_dim) without a classifier.

        Raises:
            InputError: the module answers with something else.
        """
        answer = self.module(x)
        if isinstance(answer, tuple):
            answer = answer[0]
        elif isinstance(answer, Mapping):  # as Hugging Face's classifiers
            answer = answer.get("logits", answer)
        if not isinstance(answer, Tensor):
            raise InputError(
                f"{self.source or type(self.module).__name__} answers with a {type(answer).__name__}, but a network "
                "answers with a tensor (N, classes), a tuple that begins with it, or a mapping with its 'logits'. "
                "Wrap it into a module that does."
            )
        return answer


class _Maps(nn.Module):
    """Answers with all maps of a network of timm."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> list[Tensor]:
        """Of pictures (N, C, H, W)."""
        give: Callable[..., list[Tensor]] = self.module.forward_intermediates  # type: ignore[assignment]
        return give(x, intermediates_only=True)


def _told_classifiers(module: nn.Module) -> list[nn.Module]:
    """What a network of timm says its classifiers are, by itself and in what is stated of it; none of other modules.

    By itself a network may tell one of two (VOLO); nothing is stated of one that timm has not made by name.
    """
    tell, stated = getattr(module, "get_classifier", None), getattr(module, "pretrained_cfg", None)
    told = tell() if callable(tell) else ()
    names = (stated.get("classifier") or ()) if isinstance(stated, Mapping) else ()
    parts = dict(module.named_modules())
    found = [*told] if isinstance(told, tuple | list) else [told]
    found += [parts.get(name) for name in ((names,) if isinstance(names, str) else names)]
    return [one for one in found if isinstance(one, nn.Module)]


def _classifier_names(module: nn.Module, told: Sequence[nn.Module]) -> tuple[str, ...]:
    """Names of the linear layers that give the classes: those in what is told, else the last; none where none is."""
    linears = {name: m for name, m in module.named_modules() if name and isinstance(m, nn.Linear)}
    within = {part for one in told for part in one.modules()}
    names = [name for name, linear in linears.items() if linear in within] or list(linears)[-1:]
    # A hidden layer of a classifier has another width.
    return tuple(name for name in names if linears[name].out_features == linears[names[-1]].out_features)


def is_library_model(model: str) -> bool:
    """Whether a word names a network of another library: "timm:resnet50"."""
    return model.partition(":")[0] in LIBRARIES and ":" in model


def wrap_model(module: nn.Module) -> WrappedModel:
    """A module that somebody has made, as a network; of timm's with the preprocessing that is stated of it.

    Args:
        module: see ``WrappedModel``. A stated preprocessing that cannot be followed, such as one for images that are
            not square, is ignored.
    """
    stated = getattr(module, "pretrained_cfg", None)
    preprocessing: Preprocessing | None = None
    if isinstance(stated, Mapping) and stated.get("mean"):
        from efficientnetv2.models.conversion.timm import stated_preprocessing

        with suppress(InputError):
            preprocessing, _ = stated_preprocessing(stated, Path(type(module).__name__))
    return WrappedModel(module, preprocessing=preprocessing)


def classifier_count(model: str) -> int:
    """How many classifiers a network of another library comes with, by what its library states of its weights.

    Args:
        model: as of ``build``.

    Returns:
        0 where it was trained to embed, several where it was distilled; 1 of torchvision's, and of what there is not.
    """
    library, _, word = model.partition(":")
    if library != "timm":
        return 1
    timm = needed("timm", "timm", f"the network '{model}'")
    try:
        config = timm.get_pretrained_cfg(word)
    except RuntimeError:  # no such tag: who builds it says so
        return 1
    if config is None:
        return 1
    if not config.num_classes:
        return 0
    return len(config.classifier) if isinstance(config.classifier, tuple | list) else 1


def build(
    model: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
) -> WrappedModel:
    """A network of timm or torchvision.

    Args:
        model: "timm:NAME" or "torchvision:NAME" with fresh weights; with a tag ("timm:resnet50.a1_in1k",
            "torchvision:resnet50.IMAGENET1K_V2") the pretrained ones of that library, fetched by it.
            torchvision's vision transformers are built for one size of picture: that of the tag; of fresh ones the
            size stands behind the name ("torchvision:vit_b_16@384"), 224 px where none does.
        num_classes: of the classifier, as far as the library can build it; ``models.adapt.adapt`` does the rest. Of
            what comes without a classifier 0 makes one of a single class, so that it is known which to take away.
        in_channels: of the picture, likewise.

    Raises:
        InputError: no such network, tag or size (names the nearest), the library is not installed, the weights
            cannot be fetched; or the network comes without a classifier and no classes are named.
    """
    library, _, word = model.partition(":")
    name, _, tag = word.partition(".")
    if library == "timm":
        module, preprocessing = _timm(name, tag, num_classes=num_classes, in_channels=in_channels)
    else:
        module, preprocessing, name = torchvision_wrappers.build(name, tag, num_classes=num_classes)
    return WrappedModel(module, source=f"{library}:{name}", preprocessing=preprocessing)


def _timm(
    name: str, tag: str, *, num_classes: int | None, in_channels: int | None
) -> tuple[nn.Module, Preprocessing | None]:
    timm = needed("timm", "timm", f"the network 'timm:{name}'")
    from efficientnetv2.models.conversion.timm import stated_preprocessing
    from efficientnetv2.models.library_weights import (
        reading,
        timm_file,
    )  # brings a client of the network along

    if not timm.is_model(name):
        raise InputError(f"timm has no network '{name}'{did_you_mean(name, timm.list_models())}")
    whole = f"{name}.{tag}" if tag else name
    if tag and whole not in (tags := timm.list_pretrained(f"{name}.*")):
        raise InputError(
            f"timm has no weights '{whole}'{did_you_mean(whole, tags)} Known: {', '.join(tags) or 'none'}."
        )
    stated = classifier_count(f"timm:{whole}")
    if num_classes == 0 and stated == 0:
        num_classes = 1
    # Weights without one classifier are loaded as published, every tensor asked for; then timm puts on what they lack.
    put_on = num_classes if tag and stated != 1 else None
    words: dict[str, Any] = {"pretrained": bool(tag)}
    words |= {"num_classes": num_classes} if num_classes and num_classes > 0 and not put_on else {}
    words |= {"in_chans": in_channels} if in_channels and in_channels > 0 else {}
    path = timm_file(timm.get_pretrained_cfg(whole).to_dict(), whole) if tag else None
    if path:  # its repositories hold tensors by timm's names, whatever format the first publisher used
        words["pretrained_cfg_overlay"] = {"file": str(path), "custom_load": False}
    with reading(f"timm:{whole}", path):
        try:
            module = timm.create_model(whole, **words, drop_path_rate=_TO_HAVE_MODULES)
        except TypeError:  # a network without stochastic depth
            module = timm.create_model(whole, **words)
    if put_on:
        module.reset_classifier(put_on)
    apply_regularization(module, drop_path=0.0)
    config = module.pretrained_cfg
    return module, stated_preprocessing(config, Path(f"timm:{name}"))[0] if config.get("mean") else None
