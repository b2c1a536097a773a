"""Losses, for one label or several per image, and the terms of each class in them where classes are imbalanced."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from efficientnetv2.data.records import Ints
from efficientnetv2.data.sampler import class_fractions, image_weights
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.transforms.pipeline import soft_labels
from efficientnetv2.utils.random_key import Floats

# Tolerance for equal class frequencies: far above rounding, far below the effect of one image. Ours.
_ROUNDING = 1e-9


def cross_entropy(logits: Tensor, labels: Tensor, *, offsets: Tensor | None = None) -> Tensor:
    """Mean over images of the cross-entropy of (N, K) logits against (N, K) label distributions, a scalar in nats.

    Smoothing, mixing and class weights are in the labels already (``transforms.pipeline``): rows sum to 1, or to the
    weight of their image. ``offsets`` (K,) are added to the logits.
    """
    adjusted = logits.float() if offsets is None else logits.float() + offsets
    return functional.cross_entropy(adjusted, labels)


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over images of the sum over classes of binary cross-entropies against (N, K) labels, a scalar in nats.

    The sum over classes keeps the gradient of a logit at probability minus target, as in ``cross_entropy``, so the same
    learning rate and gradient clipping suit both. A mean would divide it by K.

    Source: timm's ``BinaryCrossEntropy`` with ``sum_classes``; arXiv:2009.14119's code sums over classes too.
    """
    each = functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
    return each.sum(dim=1).mean()


@dataclass(frozen=True, eq=False)
class ClassTerms:
    """Terms per class in training, (K,) each. None treats all classes alike."""

    weights: Tensor | None = None  # In the loss
    offsets: Tensor | None = None  # Logit adjustment, added to the logits in the training loss
    towards: Tensor | None = None  # Distribution that label smoothing mixes in. None is uniform.
    stronger: Tensor | None = None  # Factors of RandAugment's magnitude, always on the CPU

    def to(self, device: torch.device) -> ClassTerms:
        """The same with the terms of the loss on a device."""
        weights, offsets, towards = (
            None if term is None else term.to(device) for term in (self.weights, self.offsets, self.towards)
        )
        return ClassTerms(weights, offsets, towards, self.stronger)

    def targets(self, counted: Tensor, smoothing: float) -> Tensor:
        """Targets of the loss: (N, K) float32. Rows sum to the weight of their image. See ``soft_labels``."""
        return soft_labels(counted, smoothing, weights=self.weights, towards=self.towards)


NO_CLASS_TERMS = ClassTerms()


def class_terms(targets: Ints, num_classes: int, recipe: Recipe) -> ClassTerms:
    """The terms of a recipe for the class frequencies of the training images.

    Weights are scaled to a mean of 1 over the drawn images, so that the loss, and the learning rate with
    it, keep their scale. (The paper scales them to a mean of 1 over classes.) ``targets`` are (N,) classes, or (N, M)
    labels of each image, padded with -1. Sampling uses the first label; in the loss each label counts by its share in
    the target of its image.

    Source: Weights: arXiv:1901.05555, equations 2 and 3. Offsets: arXiv:2007.07314, equation 10: temperature times the
        log frequency of each class in training, here after class-balanced sampling. Ours: with offsets, label smoothing
        goes to the classes by their frequency, as uniform smoothing would give rare classes more than their share; and
        stronger augmentation of images that are repeated.
    """
    labels = targets.reshape(len(targets), -1)
    labels = labels[labels[:, 0] >= 0]  # of the images that have any
    firsts = np.bincount(labels[:, 0], minlength=num_classes)
    sizes = np.bincount(labels[labels >= 0], minlength=num_classes)
    counts, drawn = _class_shares(labels, firsts, sizes, recipe)
    weights = offsets = towards = stronger = None
    if recipe.class_weights is not None:
        each = image_weights(counts, recipe.class_weights, recipe.effective_beta)
        weights = _tensor(each / (each * drawn).sum())
    if recipe.logit_adjustment is not None:
        # A class without images gets no offset.
        logarithms = np.log(drawn, out=np.zeros_like(drawn), where=drawn > 0)
        offsets = _tensor(recipe.logit_adjustment * logarithms)
        powers = drawn**recipe.logit_adjustment
        towards = _tensor(powers / powers.sum())
    if recipe.minority_randaugment_scale != 1:
        often = class_fractions(firsts, recipe.class_sampling, recipe.effective_beta, sizes)
        repeated = often > firsts / firsts.sum() * (1 + _ROUNDING)
        stronger = _tensor(np.where(repeated, recipe.minority_randaugment_scale, 1.0))
    return ClassTerms(weights, offsets, towards, stronger)


def _class_shares(labels: Ints, firsts: Ints, sizes: Ints, recipe: Recipe) -> tuple[Floats, Floats]:
    """Images (K,) and drawn fraction (K,) of each class; ``firsts`` counts the first labels, ``sizes`` all labels."""
    if labels.shape[1] == 1:
        drawn = class_fractions(firsts, recipe.class_sampling, recipe.effective_beta)
        return firsts.astype(np.float64), drawn
    is_label = labels >= 0
    share = is_label / is_label.sum(axis=1, keepdims=True)
    often = np.ones(len(labels))
    if recipe.class_sampling is not None:
        often = image_weights(sizes, recipe.class_sampling, recipe.effective_beta)[labels[:, 0]]
    each, most = labels[is_label], len(firsts)
    counts = np.bincount(each, weights=share[is_label], minlength=most)
    weighted = np.bincount(each, weights=(share * often[:, None])[is_label], minlength=most)
    return counts.astype(np.float64), np.asarray(weighted / weighted.sum(), dtype=np.float64)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
