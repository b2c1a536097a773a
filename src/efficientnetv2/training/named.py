"""What a recipe's words for networks and weights mean, and which are to be had."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from efficientnetv2.arch.published import NAMES, architecture
from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.errors import InputError, count_of, did_you_mean
from efficientnetv2.models import hub, modelfile, pretrained
from efficientnetv2.models.create import create
from efficientnetv2.models.elsewhere import unknown
from efficientnetv2.models.ensemble import members_of
from efficientnetv2.models.foreign import classifiers, is_foreign
from efficientnetv2.models.interop import convert
from efficientnetv2.models.interop.read import is_model_file
from efficientnetv2.models.interop.tensors import shape_name
from efficientnetv2.models.network import Network

# Of the preprocessing that comes with weights; size and framing are the recipe's, for training draws its pictures so.
_USED = ("interpolation", "mean", "std")
# What Keras, torchvision and Ultralytics call pretrained weights: words for the best, and datasets by our tags. Ours.
_PRETRAINED = ("default", "pretrained", "true", "yes")
_DATASETS = {
    **dict.fromkeys(("imagenet", "imagenet1k", "in1k"), "in1k"),
    **dict.fromkeys(("imagenet21k", "imagenet22k", "in21k", "in22k"), "in21k"),
}

# Folder of the weights of the repository that this package runs in.
BUNDLED = Path(__file__).parents[3] / "examples/weights"


@dataclass(frozen=True)
class Found:
    """A start for a network that can be had without the user's help.

    Args:
        word: for ``load_weights``; "none" for fresh weights.
        note: which and from where, or why none.
        title: what a person calls it, beside others.
        lacking: why better ones could not be had; empty where there are none.
        bundled: whether the weights are those of the repository, which aerial images trained.
    """

    word: str
    note: str
    title: str = "random weights"
    lacking: str = ""
    bundled: bool = False


def refuse_weights_as_model(model: str | Architecture) -> None:
    """A recipe's model is a network; what names weights is for its weights.

    Raises:
        InputError: it names weights, or no network that there is.
    """
    if not isinstance(model, str) or model == "auto" or model in NAMES:
        return
    if model.endswith(".py"):
        raise InputError(
            f"--model {model}: a network of your own code trains in a loop of your own, with the same progressive "
            "learning: docs/progressive.md, examples/loops."
        )
    if (is_foreign(model) and "." in model) or Path(model).exists() or model in pretrained.names():
        raise InputError(
            f"--model {model}: that names weights, and the network comes with them. Say --weights {model}."
        )
    if not is_foreign(model):
        raise unknown(model)


def default_model(device: torch.device) -> str:
    """The network for those who name none. Ours: what trains within minutes there."""
    return "efficientnetv2_s" if device.type == "cuda" else "efficientnetv2_b0"


def stride_of(model: str | Architecture) -> int | None:
    """How many pixels, each way, a network of ours makes one number of; None of others, which have to be built for it.

    Args:
        model: as a recipe names it; not "auto".
    """
    if isinstance(model, str):
        return architecture(model).stride if model in NAMES else None
    return model.stride


def best_weights(model: str | Architecture, *, shipped: Path | None = None) -> Found:
    """The best weights for a network that can be had: by name, from the cache, from the repository.

    Args:
        model: as a recipe names it.
        shipped: as for ``starts``.
    """
    return starts(model, shipped=shipped)[0]


def starts(model: str | Architecture, *, shipped: Path | None = None) -> tuple[Found, ...]:
    """Every start for a network that can be had, what promises most first, from scratch last.

    Of published weights only the best are looked at: it is those alone that may have to be fetched.

    Args:
        model: as a recipe names it.
        shipped: folder of model files ``NAME.safetensors``; None is ``examples/weights`` of the repository that
            this package runs in.
    """
    if isinstance(model, str) and is_foreign(model):
        note = f"Weights of {model} have a tag: --weights {model.partition('@')[0]}.TAG."
        return (Found("none", f"Weights: none, training from scratch. {note}"),)
    if not isinstance(model, str) or model not in NAMES:
        return (Found("none", f"Weights: none are published for {title(model)}; training from scratch."),)
    published, reason = _published(model)
    there = [] if published is None else [published]
    file = (BUNDLED if shipped is None else shipped) / f"{model}.safetensors"
    if file.is_file():
        others = f"; others: {reason}" if published is None else "."
        there.append(
            Found(
                str(file),
                f"Weights: {file}, which come with the repository{others}",
                f"the shipped {file.name}",
                "" if published is not None else reason,
                bundled=True,
            )
        )
    return (*there, Found("none", f"Weights: none, training from scratch. {reason}".rstrip()))


def _published(model: str) -> tuple[Found | None, str]:
    """The best published weights that can be had, and what is wrong with better ones."""
    reason = ""
    for number, name in enumerate(pretrained.best(model)):
        where = "the cache" if hub.cached(name) else hub.url(name)
        if number and where != "the cache":
            continue  # the network has failed once
        try:
            hub.fetch(name)
        except InputError as error:
            reason = reason or str(error)
            continue
        if reason:
            note = f"Weights: {name}, from the cache; better ones could not be had: {reason}"
        else:
            note = f"Weights: {name}, from {where}. To train from scratch: --weights none."
        return Found(name, note, name, reason), reason
    return None, reason


def better_weights(model: str | Architecture, word: str) -> str | None:
    """The name of ImageNet weights that promise more than a run's own; None where there are none.

    Args:
        model: as a recipe names it.
        word: for the run's weights. Those of the repository were trained on aerial images, and "none" on nothing.

    Example::

        better_weights("efficientnetv2_b0", "none")  # "efficientnetv2_b0.in1k"
    """
    if not isinstance(model, str) or model not in NAMES:
        return None
    if word != "none" and Path(word).resolve().parent != BUNDLED:
        return None
    return next(iter(pretrained.best(model)), None)


def load_weights(word: str, *, num_classes: int | None = None) -> tuple[Network, tuple[str, ...]]:
    """The network that a word for weights means.

    Args:
        word: a model file or run folder; weights of timm, torchvision, Keras or the authors, recognised from the
            file; a name such as ``efficientnetv2_s.in1k``; or one of another library with a tag,
            ``timm:resnet50.a1_in1k``.
        num_classes: of the classifier that another library puts on weights of its own that come without one, or with
            several; all others keep theirs. None leaves it out of the first, and as it is in the second.

    Returns:
        The network, and what there is to say of how it was read.

    Raises:
        InputError: it is none of these, or can't be read or fetched.
    """
    path = Path(word)
    if _is_here(word):
        if members := members_of(path):
            raise InputError(
                f"--weights {word}: these are {len(members)} networks that answer together, but training begins from "
                f"one. Give one of them: --weights {members[0].parent}"
            )
        if is_model_file(path) or (path / "recipe.yaml").is_file():
            return modelfile.load(path), ()
        if path.stem in pretrained.names():  # a file of ``models --fetch``, carried here under its name
            return hub.read(path, path.stem), ()
        imported = convert.read(path, used=_USED)
        return imported.network, (f"recognised as {imported.theirs} of {imported.title}", *imported.notes)
    if is_foreign(word) and "." in word:
        come_with = classifiers(word)
        if come_with == 0:
            return create(word, num_classes=num_classes or 0), ()
        return create(word, num_classes=num_classes if come_with > 1 else None), ()
    if is_foreign(word):
        tagged = f"{word.partition('@')[0]}.TAG"
        raise InputError(
            f"--weights {word}: that is a network. Its weights have a tag, {tagged}, as its library lists them."
        )
    if "." in word and word.partition(".")[0] in NAMES:
        return hub.load(word), ()
    raise _no_weights(word)


def refuse_unknown_weights(word: str) -> None:
    """Refuse a word for weights that names none, before anything is read or fetched.

    Args:
        word: as for ``load_weights``, auto or none.

    Raises:
        InputError: there is no such file, and no weights of that name.
    """
    if word in ("auto", "none") or _is_here(word) or is_foreign(word):
        return
    if word.partition(".")[0] not in NAMES or "." not in word:
        raise _no_weights(word)
    pretrained.about(word)


def _no_weights(word: str) -> InputError:
    """The error for a word that names no weights."""
    if word in NAMES:
        tags = ", ".join(pretrained.best(word)) or "none"
        return InputError(f"--weights {word}: that is a network. Its weights: {tags}.")
    if word.casefold() in _PRETRAINED:
        return InputError(f"--weights {word}: for the best pretrained weights, write --weights auto.")
    tag = _DATASETS.get(re.sub(r"[-_]|v\d$", "", word.casefold()))
    if tag is not None:
        name = next(name for name in pretrained.names() if name.endswith(f".{tag}"))
        return InputError(
            f"--weights {word}: name the model too, such as --weights {name}. All names: effnetv2 models --pretrained"
        )
    hint = did_you_mean(word, ["auto", "none", *pretrained.names()])
    return InputError(
        f"--weights {word}: there is no such file, and no weights of that name{hint} Give a model file, "
        "weights of timm, torchvision or Keras, a name of effnetv2 models --pretrained, auto or none."
    )


def from_anywhere(word: str) -> str:
    """The word for weights that means the same from another folder.

    Args:
        word: as for ``load_weights``, auto or none.

    Returns:
        The absolute path of what lies here, links as they are, for their names say what they are; any other word as it
        is.
    """
    return os.path.abspath(word) if word not in ("auto", "none") and _is_here(word) else word


def _is_here(word: str) -> bool:
    """Whether there is a file or folder of that name, or a checkpoint of TensorFlow's, which is several files."""
    return Path(word).exists() or Path(f"{word}.index").exists()


def title(model: str | Architecture) -> str:
    """What a person calls the network that a recipe names."""
    if isinstance(model, str):
        return model
    near = shape_name(replace(model, pooling="mean"))
    if near is None:
        return f"a network of its own ({count_of(len(model.stages), 'stage')})"
    return f"{near} with {model.padding} padding and batch-norm epsilon {model.batch_norm_epsilon:g}"


def same_shape(one: str | Architecture, other: str | Architecture) -> bool:
    """Whether weights of one network fit the other; padding and epsilon go with the weights."""
    return _shape(one) == _shape(other)


def _shape(model: str | Architecture) -> Architecture | str:
    """All but padding, epsilon and pooling; of another library's the name alone, for its weights say the size."""
    if isinstance(model, str) and is_foreign(model):
        return model.partition(".")[0].partition("@")[0]
    table = architecture(model) if isinstance(model, str) else model
    return replace(table, padding="same", batch_norm_epsilon=1e-3, pooling="mean")
