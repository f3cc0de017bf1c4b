"""Labelled samples to train a quality filter on: labels of people, or computed where the truth is exact."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from text2layer_core.compositing import blend, compose
from text2layer_core.layers import TwoLayerImage
from text2layer_core.masks import grow_mask
from text2layer_core.quality import CHANNELS
from train.baselines import UnfilteredSource
from train.data import ArrayCache, DataConfig, Source, expand, fingerprint, open_source
from train.quality_labels import QualityCriteria, inpainting_defects, mask_defects
from train.quality_samples import SampleFiles, read_labels
from train.samples import KNOWN_ABOVE
from train.synthesis.config import InpainterConfig, SaliencyConfig
from train.synthesis.inpainting import Inpainter, open_inpainter
from train.synthesis.saliency import Saliency, open_saliency

_BLOCK = 32
Finder = Callable[[int, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Index of the first sample and true stacks (n, 7, H, W) -> picture, found mask, filled background."""


@dataclass(frozen=True, kw_only=True)
class FilesConfig:
    """Samples labelled by people.

    Attributes:
        data: a folder of samples, or a glob of shards; see `SampleFiles`.
        labels: CSV, see `read_labels`; samples without a label are left out.
    """

    data: str
    labels: str


@dataclass(frozen=True, kw_only=True)
class TruthConfig:
    """Scenes whose layers are known, and what is made of them.

    Attributes:
        data: the scenes; held-out samples are those of the next seed.
        found: "backends": a saliency backend of the synthesis finds the mask and one of its inpainting backends fills
            the hole, see `backend_finder`. "defects": a share of the samples has one of `train.baselines.DEFECTS`.
        share: of samples with a defect.
        saliency: the backend, as the synthesis has it.
        inpainting: the backend, as the synthesis has it.
        threshold: what of a found mask is filled.
        dilation: pixels that the hole reaches beyond it.
        criteria: what is bad.
    """

    data: DataConfig
    found: Literal["backends", "defects"] = "backends"
    share: float = 0.5
    saliency: SaliencyConfig = field(default_factory=SaliencyConfig)
    inpainting: InpainterConfig = field(default_factory=InpainterConfig)
    threshold: float = KNOWN_ABOVE
    dilation: int = 2
    criteria: QualityCriteria = field(default_factory=QualityCriteria)

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name, value in (("share", self.share), ("threshold", self.threshold)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if self.dilation < 0:
            raise ValueError(f"dilation must not be negative, got {self.dilation}")


class LabelledPictures(Protocol):
    """Pictures as a filter sees them, and whether they are good.

    Attributes:
        key: what their content depends on, plain values.
    """

    key: object

    def __len__(self) -> int:
        """How many there are; a very large number where they have no end."""
        ...

    def block(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Pictures start, ..., start + count - 1, (n, C, side, side) in [0, 1], and labels (n,), bool."""
        ...


class FileLabels:
    """Labelled files, in an order that depends on the keys alone; the first of it are held out."""

    def __init__(self, config: FilesConfig, kind: str, side: int, held_out: int, split: str) -> None:
        """Opens them.

        Raises:
            ValueError: no samples, no labels, or too few to hold some out.
        """
        self._samples, self._kind, self._side = SampleFiles(config.data), kind, side
        labels = read_labels(expand(config.labels))
        unknown = labels.keys() - set(self._samples.keys)
        if unknown:
            raise ValueError(f"{config.labels} must label samples of {config.data}, got {sorted(unknown)[0]} "
                             f"({len(unknown)} such)")
        keys = sorted(labels, key=lambda key: hashlib.sha256(key.encode()).digest())
        if len(keys) <= held_out:
            raise ValueError(f"labels must be more than the {held_out} held out, got {len(keys)}")
        self._keys = keys[:held_out] if split == "held_out" else keys[held_out:]
        self._labels = [labels[key] for key in self._keys]
        self.key: object = [asdict(config), kind, side, self._keys, self._labels]

    def __len__(self) -> int:
        """How many there are."""
        return len(self._keys)

    def block(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """See `LabelledPictures`."""
        pictures = [_fitted(self._picture(key), self._side) for key in self._keys[start : start + count]]
        return torch.cat(pictures), torch.tensor(self._labels[start : start + count])

    def _picture(self, key: str) -> Tensor:
        if self._kind == "inpainting":
            return self._samples.picture(key, "background.png")
        image, mask = (self._samples.picture(key, part) for part in ("image.png", "mask.png"))
        if image.shape[2:] != mask.shape[2:]:
            sizes = " and ".join(f"{part.shape[3]}x{part.shape[2]}" for part in (image, mask))
            raise ValueError(f"sample {key} must have an image and a mask of one size, got {sizes}")
        return torch.cat([image, mask], dim=1)


class TruthLabels:
    """Known scenes taken apart, each judged against its truth."""

    def __init__(self, config: TruthConfig, kind: str, side: int, split: str) -> None:
        """Opens source and backends; ValueError where a backend's package is not installed."""
        data = config.data if split == "train" else replace(config.data, seed=config.data.seed + 1)
        self._source = open_source(data)
        self._kind, self._side, self._criteria = kind, side, config.criteria
        self._find = _finder(config, self._source, data.seed)
        self.key: object = [asdict(replace(config, data=data)), kind, side, fingerprint(self._source)]

    def __len__(self) -> int:
        """Without end."""
        return sys.maxsize

    def block(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """See `LabelledPictures`."""
        stack = self._source.batch(start, count).stack
        picture, mask, background = self._find(start, stack)
        if self._kind == "mask":
            defects = mask_defects(stack[:, 6:], mask, self._criteria)
            shown = torch.cat([picture, mask], dim=1)
        else:
            defects = inpainting_defects(TwoLayerImage.from_stack(stack), background, self._criteria)
            shown = background
        return _fitted(shown, self._side), torch.tensor([not row for row in defects])


class LabelledSet:
    """Labelled pictures as bytes on disk, made once.

    Attributes:
        labels: (n,), True is good.
    """

    def __init__(self, folder: Path, pictures: LabelledPictures, channels: int, side: int, count: int) -> None:
        """Fills the cache where it is not full yet, with a progress bar; at most as many as there are."""
        count = min(count, len(pictures))
        shapes = {"pictures": ((channels, side, side), "uint8"), "labels": ((), "uint8")}
        cache = ArrayCache(folder, count, shapes, pictures.key)
        with tqdm(total=count, initial=cache.filled, desc=folder.name, unit="image", file=sys.stderr) as bar:
            while cache.filled < count:
                found, labels = pictures.block(cache.filled, min(_BLOCK, count - cache.filled))
                cache.store({"pictures": (found * 255).round().byte().numpy(), "labels": labels.byte().numpy()})
                bar.update(len(labels))
        self._pictures = cache.arrays["pictures"]
        self.labels = torch.from_numpy(np.array(cache.arrays["labels"])).bool()

    def __len__(self) -> int:
        """How many there are."""
        return len(self.labels)

    def pictures(self, rows: Any) -> Tensor:  # noqa: ANN401 - what indexes an array
        """(n, C, side, side) in [0, 1]."""
        return torch.from_numpy(np.array(self._pictures[rows])).float() / 255


def open_labelled(
    files: FilesConfig | None, truth: TruthConfig | None, kind: str, side: int, held_out: int,
    split: Literal["train", "held_out"],
) -> LabelledPictures:
    """Opens whichever section is there.

    Raises:
        ValueError: both or neither is, or it does not open.
    """
    if files is not None and truth is None:
        return FileLabels(files, kind, side, held_out, split)
    if truth is not None and files is None:
        return TruthLabels(truth, kind, side, split)
    raise ValueError(f"labels must come from one of the sections files and truth, got {'both' if files else 'neither'}")


def labelled_set(folder: Path, pictures: LabelledPictures, kind: str, side: int, count: int) -> LabelledSet:
    """The cache of a kind's pictures."""
    return LabelledSet(folder, pictures, CHANNELS[kind], side, count)


def _finder(config: TruthConfig, source: Source, seed: int) -> Finder:
    if config.found == "defects":
        return _defects(UnfilteredSource(source, config.share, seed))
    return backend_finder(open_saliency(config.saliency), open_inpainter(config.inpainting), config.threshold,
                          config.dilation)


def _defects(unfiltered: UnfilteredSource) -> Finder:
    def find(start: int, stack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        foreground, background, mask = unfiltered.batch(start, len(stack)).stack.split([3, 3, 1], dim=1)
        return blend(foreground, background, mask), mask, background

    return find


def backend_finder(
    saliency: Saliency, inpainter: Inpainter, threshold: float, dilation: int
) -> Finder:
    """Takes composed scenes apart by the paper's data steps 1 to 3.

    Plainer than the synthesis: the inpainter sees the whole picture, the hole's dilation does not scale with it, and no
    seam is feathered.

    Args:
        saliency: finds the masks.
        inpainter: fills the holes.
        threshold: where the mask is above it, the picture is filled.
        dilation: pixels that the hole reaches beyond it.
    """
    def find(_start: int, stack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pictures = compose(TwoLayerImage.from_stack(stack))
        masks = torch.stack(saliency(list(pictures)))
        holes = grow_mask((masks > threshold).float(), dilation)
        filled = torch.stack(inpainter(list(pictures), list(holes)))
        return pictures, masks.clamp(0, 1), torch.where(holes > 0, filled.clamp(0, 1), pictures)

    return find


def _fitted(pictures: Tensor, side: int) -> Tensor:
    """As the filter itself brings them to its size."""
    if pictures.shape[-2:] == (side, side):
        return pictures
    return functional.interpolate(pictures, (side, side), mode="bilinear", antialias=True).clamp(0, 1)
