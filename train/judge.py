"""Pictures drawn by a model, and what the judges of icons and of photographs say of them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from text2layer_core import metrics, report
from text2layer_core.checkpoint import one_line
from text2layer_core.compositing import compose
from text2layer_core.distribution import (
    clip_score,
    frechet_distance,
    inception_features,
    kernel_distance,
    load_clip,
)
from text2layer_core.layers import TwoLayerImage
from text2layer_core.pipeline import Text2LayerPipeline
from text2layer_core.saliency_metrics import e_measure, f_measure, s_measure, saliency_mae
from train.check import MOST_DECIBEL
from train.data import ArrayCache, Source
from train.evaluator import IconEvaluator
from train.icons.source import IconSource
from train.synthesis.config import SaliencyConfig
from train.synthesis.saliency import open_saliency

RESAMPLES = 1000
REFERENCES_FROM = 1 << 20
_AT_ONCE = 32  # pictures, through models of others
_FREE_ALARMS = 0.01
_TRACES = (0.03, 0.05, 0.1, 0.2)  # opacities
_SPRITE_SIDE = 64
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How pictures are drawn.

    Attributes:
        count: pictures, one for each of a source's first captions.
        seed: of the first picture; picture k has seed + k.
        steps: of the sampler.
        guidance_scale: of the sampler.
        sampler: "ddim" or "dpmpp".
        batch_size: pictures at a time.
    """

    count: int
    seed: int = 0
    steps: int = 50
    guidance_scale: float = 7.5
    sampler: str = "ddim"
    batch_size: int = 16


@dataclass(frozen=True)
class Drawn:
    """What was drawn: layers (n, ...) in steps of 1/255 as files have them, and the auxiliary head's pictures."""

    layers: TwoLayerImage
    predicted_composed: Tensor | None


def draw(pipeline: Text2LayerPipeline, source: Source, drawing: Drawing, folder: Path, key: object) -> Drawn:
    """Draws a source's first captions into a folder; the same call goes on where the last one stopped.

    Args:
        pipeline: the model.
        source: whose captions and size.
        drawing: how.
        folder: of the drawn pictures.
        key: what tells this model from others (plain values): another one starts afresh.

    Returns:
        All pictures.
    """
    size, prompts = source.size, source.captions(0, drawing.count)
    shapes = {"stack": ((7, size, size), "uint8"), "predicted": ((3, size, size), "uint8")}
    cache = ArrayCache(folder, drawing.count, shapes, [key, repr(drawing), prompts])
    with tqdm(total=drawing.count, initial=cache.filled, desc="draw", unit="image", file=sys.stderr) as bar:
        while cache.filled < drawing.count:
            start = cache.filled
            block = prompts[start : start + drawing.batch_size]
            output = pipeline(block, width=size, height=size, seed=drawing.seed + start, steps=drawing.steps,
                              guidance_scale=drawing.guidance_scale, sampler=drawing.sampler)
            predicted = output.predicted_composed
            cache.store({"stack": _bytes(output.layers.stack()),
                         "predicted": _bytes(output.composed if predicted is None else predicted)})
            bar.update(len(block))
    has_head = "composed" in pipeline.model.autoencoder.config.heads
    stack, guess = (torch.from_numpy(np.array(cache.arrays[name])).float() / 255 for name in ("stack", "predicted"))
    return Drawn(TwoLayerImage.from_stack(stack), guess if has_head else None)


def code(pipeline: Text2LayerPipeline, truth: TwoLayerImage, batch_size: int) -> Drawn:
    """What a model's autoencoder makes of true layers (n, ...), as if they had been drawn."""
    height, width = truth.height, truth.width
    decoded = [pipeline.decode(pipeline.encode(truth[start : start + batch_size]), height=height, width=width)
               for start in range(0, len(truth), batch_size)]
    stack = torch.cat([part.layers.stack() for part in decoded])
    guesses = [part.predicted_composed for part in decoded if part.predicted_composed is not None]
    return Drawn(TwoLayerImage.from_stack(_steps(stack)), _steps(torch.cat(guesses)) if guesses else None)


def _steps(pictures: Tensor) -> Tensor:
    """In steps of 1/255, as files have them."""
    return torch.from_numpy(_bytes(pictures)).float() / 255


def _bytes(pictures: Tensor) -> np.ndarray[Any, Any]:
    return (pictures.clamp(0, 1) * 255).round().byte().cpu().numpy()


def layer_figures(drawn: Drawn) -> dict[str, Tensor]:
    """The figures of `report.layer_figures` (n,): what layers say of themselves; NaN where there is none."""
    rows = report.layer_figures(drawn.layers, predicted_composed=drawn.predicted_composed)
    columns = {name: [math.nan if row[name] is None else row[name] for row in rows] for name in rows[0]}
    found = {name: torch.tensor(values).nan_to_num(math.nan, MOST_DECIBEL) for name, values in columns.items()}
    return {name: values for name, values in found.items() if not values.isnan().all()}


class Judge(Protocol):
    """What tells good pictures from bad ones."""

    def figures(self, drawn: Drawn) -> dict[str, Tensor]:
        """Figures of each picture (n,), NaN where there is none."""
        ...

    def distances(self, composed: Tensor) -> dict[str, Interval]:
        """Distances of a set of pictures (n, 3, H, W) to true ones."""
        ...


class PhotographJudge:
    """The paper's own judges, networks from files: Inception under FID (clean-fid's resizing) and CLIP's similarity."""

    def __init__(
        self, source: Source, references: int, *, inception: Path | None, clip: Path | None, saliency: str | None,
        device: torch.device, first: int,
    ) -> None:
        """Loads what is given; without a file its figures are left out.

        Args:
            source: of the prompts.
            references: true pictures that the Frechet distance compares with.
            inception: TorchScript file, `inception-2015-12-05.pt` for published figures.
            clip: transformers folder of a CLIP model, ViT-L/14 in the paper.
            saliency: the reference that masks are compared with, as the paper's IOU (ICON): a transformers folder of a
                segmentation model, or "grabcut", which needs no weights.
            device: where to compute.
            first: index of the first reference.

        Raises:
            ValueError: a file is not there or holds something else, or the source is known to hold too few samples.
        """
        least = first + (references if inception is not None else 0)
        if isinstance(source, Sized) and len(source) < least:
            raise ValueError(f"the held-out samples must be at least {least} (--count, and --references for "
                             f"--inception), got {len(source)}")
        self._source, self._clip, self._saliency = source, None, None
        if saliency is not None:
            self._saliency = open_saliency(
                SaliencyConfig() if saliency == "grabcut"
                else SaliencyConfig(backend="transformers", path=saliency, device=device.type))
        self._network: Callable[[Tensor], Tensor] | None = None
        if clip is not None:
            self._clip = load_clip(clip, device)
        if inception is not None:
            self._network = _load_inception(inception, device)
            blocks = (source.batch(first + k, 1).image for k in range(references))
            self._references = inception_features(self._network, (compose(block)[0] for block in blocks))

    def figures(self, drawn: Drawn) -> dict[str, Tensor]:
        """`layer_figures`, CLIP's cosine of picture and caption, the mask's agreement with the saliency reference."""
        found = layer_figures(drawn)
        if self._saliency is not None:
            seen = torch.cat([torch.stack(self._saliency(list(block)))
                              for block in compose(drawn.layers).split(_AT_ONCE)])
            found = {**agreement(drawn.layers.mask, seen), **found}
        if self._clip is not None:
            composed = compose(drawn.layers)
            scores = clip_score(*self._clip, composed, self._source.captions(0, len(composed)))
            found = {"similarity": scores.cpu(), **found}
        return found

    def distances(self, composed: Tensor) -> dict[str, Interval]:
        """FID and KID."""
        return {} if self._network is None else _distances(
            inception_features(self._network, composed), self._references)


def agreement(mask: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Of drawn masks with what a saliency model sees; E and F are their means over the thresholds."""
    return {
        "iou_saliency": metrics.iou(mask, reference),
        "soft_iou_saliency": metrics.soft_iou(mask, reference),
        "mae_saliency": saliency_mae(mask, reference),
        "s_measure": s_measure(mask, reference),
        "e_measure": e_measure(mask, reference).mean,
        "f_measure": f_measure(mask, reference).mean,
    }


def on_named_side(mask: Tensor, captions: Sequence[str]) -> Tensor:
    """Whether the centre of a mask (n, 1, H, W) is left or right of the middle, as its caption says, (n,).

    NaN where the caption names no side, or the mask is empty.
    """
    columns = mask.sum(dim=(1, 2))
    centre = (columns * torch.linspace(-1, 1, mask.shape[-1])).sum(dim=1) / columns.sum(dim=1)
    signs = torch.tensor([("right" in words) - ("left" in words) for words in map(_WORD.findall, captions)])
    return torch.where((signs == 0) | centre.isnan(), torch.nan, (centre * signs > 0).float())


def _load_inception(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    if not path.is_file():
        raise ValueError(f"--inception must be a TorchScript file, found none at {path}")
    try:
        layers = torch.jit.load(str(path), map_location=device).eval().layers
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"--inception must be a TorchScript file with Inception's layers, got {path}: "
                         f"{one_line(error)[:200]}") from error
    return lambda shown: layers((shown.to(device) - 128) / 128)  # as clean-fid does


def check_words(evaluator: IconEvaluator, source: IconSource) -> None:
    """Raises ValueError where the evaluator was not trained on one of the source's things or places."""
    unknown = [thing.name for thing in source.things if thing.name not in evaluator.things]
    unknown += [place for place in source.places if place not in evaluator.places]
    if unknown:
        raise ValueError(f"the evaluator must know every thing and place, got {', '.join(unknown)}")


class IconJudge:
    """An evaluator with what it needs of the truth: a reference set, a vocabulary, and a threshold.

    Attributes:
        threshold: the thing's score above which a background counts as holding it: at most 1 % of the references' do.
    """

    def __init__(
        self, evaluator: IconEvaluator, source: IconSource, references: int, first: int = REFERENCES_FROM
    ) -> None:
        """Looks at true scenes.

        Args:
            evaluator: the networks.
            source: of the prompts; things and places must be among the evaluator's.
            references: true scenes that the Frechet distance compares with.
            first: index of the first of them, beyond the scenes whose captions are drawn.

        Raises:
            ValueError: the evaluator was not trained on one of the source's things or places.
        """
        check_words(evaluator, source)
        self.evaluator, self._source = evaluator, source
        self._things = torch.tensor([evaluator.things.index(thing.name) for thing in source.things])
        self._places = torch.tensor([evaluator.places.index(place) for place in source.places])
        self._bank = metrics.sprite_bank(*source.sprites(_SPRITE_SIDE))
        features: list[Tensor] = []
        scores: list[Tensor] = []
        for start in tqdm(range(0, references, 64), desc="references", unit="batch", file=sys.stderr):
            image = source.batch(first + start, min(64, references - start)).image
            features.append(evaluator.features(compose(image)))
            asked, _ = source.labels(first + start, len(image.mask))
            scores.append(self._thing_scores(image.background).gather(1, asked[:, None])[:, 0])
        self.references = torch.cat(features)
        self.threshold = float(torch.cat(scores).quantile(1 - _FREE_ALARMS, interpolation="higher"))

    def figures(self, drawn: Drawn) -> dict[str, Tensor]:
        """Figures of each picture (n,), in shares, dB, 1/255 or the evaluator's cosines; NaN where there is none.

        Beside `leakage` stands the same of the next thing in the vocabulary, which nobody asked for: a background that
        only looks uncommon to the evaluator scores as much there, and so does a faint trace of any thing.
        """
        layers, composed = drawn.layers, compose(drawn.layers)
        captions, (things, places) = self._source.captions(0, len(composed)), self._source.labels(0, len(composed))
        left = self._thing_scores(layers.background) > self.threshold
        return {
            "similarity": self.evaluator.similarity(composed, captions),
            "thing_top1": (self._thing_scores(composed).argmax(1) == things).float(),
            "place_top1": (self.evaluator.place_scores(composed)[:, self._places].argmax(1) == places).float(),
            "thing_top1_nearest_sprite": (
                metrics.nearest_sprite(layers.foreground, layers.mask, self._bank) == things).float(),
            "side": on_named_side(layers.mask, captions),
            **agreement(layers.mask, self.evaluator.segment(composed)),
            "leakage": left.gather(1, things[:, None])[:, 0].float(),
            "leakage_other_thing": left.gather(1, (things[:, None] + 1) % left.shape[1])[:, 0].float(),
            **layer_figures(drawn),
        }

    def traces(self, truth: TwoLayerImage) -> dict[str, Interval]:
        """How faint a thing `leakage` sees: its share where the true thing is laid over true backgrounds, by opacity.

        Args:
            truth: the layers of the source's first n scenes.
        """
        things, _ = self._source.labels(0, len(truth))
        found: dict[str, Interval] = {}
        for opacity in _TRACES:
            traced = compose(replace(truth, mask=opacity * truth.mask))
            scores = self._thing_scores(traced).gather(1, things[:, None])[:, 0]
            found[str(opacity)] = mean_interval((scores > self.threshold).float())
        return found

    def by_word(self, figures: Mapping[str, Tensor]) -> dict[str, dict[str, dict[str, float]]]:
        """The means of `figures` over the pictures of each thing and of each place in the prompts."""
        labels = self._source.labels(0, len(next(iter(figures.values()))))
        words = ([thing.name for thing in self._source.things], self._source.places)
        return {
            kind: {
                names[word]: {"pictures": int((asked == word).sum()),
                              **{name: float(values[asked == word].nanmean()) for name, values in figures.items()}}
                for word in asked.unique().tolist()
            }
            for kind, names, asked in zip(("by_thing", "by_place"), words, labels, strict=True)
        }

    def distances(self, composed: Tensor) -> dict[str, Interval]:
        """Frechet and kernel distance of composed pictures (n, 3, H, W) to the references."""
        return _distances(self.evaluator.features(composed), self.references)

    def _thing_scores(self, pictures: Tensor) -> Tensor:
        return self.evaluator.thing_scores(pictures)[:, self._things]


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """The figure and half of the interval's width: 3 decimals, or as many, up to 6, as show two digits of it."""
        half, digits = (self.high - self.low) / 2, 3
        if 0 < half < 1:
            digits = min(max(1 - math.floor(math.log10(half)), 3), 6)
        return f"{self.value:.{digits}f} ± {half:.{digits}f}"


def mean_interval(values: Tensor, seed: int = 0) -> Interval:
    """The mean over pictures (n,), NaN left out, between the 2.5 % and 97.5 % points of bootstrapped means."""
    values = values[values.isfinite()].double()
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    rows = torch.randint(len(values), (RESAMPLES, len(values)), generator=torch.Generator().manual_seed(seed))
    means = values[rows].mean(dim=1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return Interval(float(values.mean()), low, high)


def resampled_distance(
    features: Tensor, references: Tensor, distance: Callable[[Tensor, Tensor], float], seed: int = 0, groups: int = 10
) -> Interval:
    """A distance of two sets with an interval by the delete-a-group jackknife (Wolter 2007, chapter 4).

    A bootstrap draws pictures twice, which moves these distances themselves; leaving groups out hardly does.

    Args:
        features: (n, D) of what is judged.
        references: (m, D).
        distance: of two sets.
        seed: of the groups.
        groups: how many.

    Returns:
        The distance of all features, plus and minus 1.96 standard errors.
    """
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    left = [distance(features[torch.cat([part for j, part in enumerate(order.chunk(groups)) if j != i])], references)
            for i in range(groups)]
    mean = sum(left) / groups
    error = ((groups - 1) / groups * sum((value - mean) ** 2 for value in left)) ** 0.5
    value = distance(features, references)
    return Interval(value, value - 1.96 * error, value + 1.96 * error)


def _distances(features: Tensor, references: Tensor) -> dict[str, Interval]:
    return {
        "frechet_distance": resampled_distance(features, references, frechet_distance),
        "kernel_distance": resampled_distance(features, references, kernel_distance),
    }


def intervals(figures: Mapping[str, Tensor]) -> dict[str, Interval]:
    """The means of figures with their intervals."""
    return {name: mean_interval(values) for name, values in figures.items()}
