"""The stages between input and writer, each a function of a table of samples; models are loaded once a worker."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from text2layer_core.checkpoint import one_line
from text2layer_core.decompose import paste_back
from text2layer_core.distribution import check_clip, clip_score, load_clip
from text2layer_core.foreground import estimate_foreground
from text2layer_core.layers import TwoLayerImage
from text2layer_core.report import layer_thumbnails
from train.synthesis.errors import model_errors
from train.synthesis.images import Refused, decode_picture
from train.synthesis.inpainting import open_inpainter
from train.synthesis.inputs import read, read_caption, read_origin
from train.synthesis.layers import hole_verdict, inpaint_crop, mask_figures, mask_verdict
from train.synthesis.rows import Sample, Table, from_table, to_table
from train.synthesis.saliency import open_saliency
from train.synthesis.tensors import by_size, to_bytes, to_tensor

if TYPE_CHECKING:
    from train.synthesis.config import FiltersConfig, SynthesisConfig
    from train.synthesis.inpainting import Inpainter

THUMBNAIL = 112  # pixels of the longer side in the report
_MOST_FAILURES = 16  # of a model, one after the other: then it is not the pictures' fault


def check_filters(config: FiltersConfig) -> None:
    """Raises ValueError where a classifier or CLIP is not there; loads nothing."""
    for kind, path in (("mask", config.mask), ("inpainting", config.inpainting)):
        if path is not None and not Path(path).expanduser().is_file():
            raise ValueError(f"filters: {kind} must be a classifier's safetensors file, found none at {path}")
    if config.clip is not None:
        check_clip(Path(config.clip).expanduser())


def decode(table: Table, config: SynthesisConfig) -> Table:
    """Reads pictures and captions; samples that cannot be read get a cause."""
    torch.set_num_threads(1)
    return to_table([_read(sample, config) for sample in from_table(table)])


def cut(table: Table, config: SynthesisConfig) -> Table:
    """The hole, its verdict and the window, on the CPU, so that the inpainting worker has nothing else to do."""
    torch.set_num_threads(1)
    samples = from_table(table)
    for sample in samples:
        if sample.alive and "background" not in sample.parts:
            source: dict[str, Any] = sample.facts["source"]
            image = to_tensor(sample.array("image"))
            crop = inpaint_crop(image, to_tensor(sample.array("mask")), config.layers,
                                min(source["width"], source["height"]), jpeg=source["format"] in ("JPEG", "MPO"))
            sample.dropped = hole_verdict(crop.hole, image)
            if sample.alive:
                sample.parts |= {"hole": to_bytes(crop.hole[0]), "blend": to_bytes(crop.blend[0])}
                sample.window = (crop.x, crop.y)
    return to_table(samples)


def encode(table: Table, config: SynthesisConfig) -> Table:
    """PNGs of what is kept, and small pictures for the report; of dropped samples the small picture alone."""
    torch.set_num_threads(1)
    return to_table([_encoded(sample, config) for sample in from_table(table)])


class FindMask:
    """The saliency worker: mask, its verdict, and the mask classifier's score."""

    def __init__(self, config: SynthesisConfig) -> None:
        self._model = open_saliency(config.saliency) if config.input.kind != "layered" else None
        self._filters = config.filters
        self._filter = _open_filter(config.filters.mask, config.filters, "mask")
        self._guard = _Guard("saliency")

    def __call__(self, table: Table) -> Table:
        """A table with masks."""
        samples = from_table(table)
        for sample in (alive := _alive(samples)):
            sample.began = time.time()
        model = self._model
        if model is not None:
            self._guard.run(alive, "mask", lambda some: model([to_tensor(sample.array("image")) for sample in some]))
        for sample in _alive(alive):
            mask = sample.array("mask")
            sample.facts |= asdict(mask_figures(mask))
            sample.dropped = mask_verdict(mask, self._filters)
        if self._filter is not None:
            _judge(_alive(alive), ("image", "mask"), self._filter, self._filters.mask_threshold, self._filters.device)
        return to_table(samples)


class FillHole:
    """The inpainting worker: background, the inpainting classifier's score, and CLIP's of picture and caption."""

    def __init__(self, config: SynthesisConfig) -> None:
        self._model = open_inpainter(config.inpainting) if config.input.kind != "layered" else None
        self._filters = config.filters
        self._filter = _open_filter(config.filters.inpainting, config.filters, "inpainting")
        clip = config.filters.clip
        self._clip = None if clip is None else load_clip(Path(clip).expanduser(), config.filters.device)
        self._guard = _Guard("inpainting")

    def __call__(self, table: Table) -> Table:
        """A table with backgrounds."""
        samples = from_table(table)
        if self._model is not None:
            self._guard.run(_alive(samples), "background", self._inpainted)
        if self._filter is not None:
            _judge(_alive(samples), ("background",), self._filter, self._filters.inpainting_threshold,
                   self._filters.device)
        if self._clip is not None and (alive := _alive(samples)):
            pictures = [to_tensor(sample.array("image")) for sample in alive]
            scores = clip_score(*self._clip, pictures, [sample.caption or "" for sample in alive])
            for sample, score in zip(alive, scores.tolist(), strict=True):
                sample.facts["clip_score"] = round(score, 5)
        return to_table(samples)

    def _inpainted(self, samples: Sequence[Sample]) -> list[Tensor]:
        """Each (3, H, W), equal to the picture outside the hole."""
        images, holes, blends = ([to_tensor(sample.array(part)) for sample in samples]
                                 for part in ("image", "hole", "blend"))
        windows = [image[:, y : y + hole.shape[1], x : x + hole.shape[2]].contiguous()
                   for image, hole, (x, y) in zip(images, holes, (sample.window for sample in samples), strict=True)]
        filled = cast("Inpainter", self._model)(windows, [(hole > 0).float() for hole in holes])
        return [paste_back(image[None], patch[None], blend[None], *sample.window)[0]
                for sample, image, patch, blend in zip(samples, images, filled, blends, strict=True)]


class _Guard:
    """A model that fails on a picture drops it; one that fails on picture after picture stops the run.

    A batch that fails is tried again one by one, so that the picture at fault alone is dropped.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._in_a_row = 0

    def run(self, samples: Sequence[Sample], part: str, work: Callable[[Sequence[Sample]], list[Tensor]]) -> None:
        """Adds what the model makes of each sample to its parts."""
        if not samples:
            return
        try:
            found = [to_bytes(picture) for picture in work(samples)]
        except model_errors() as error:
            if len(samples) > 1:
                for sample in samples:
                    self.run([sample], part, work)
                return
            self._in_a_row += 1
            if self._in_a_row >= _MOST_FAILURES:
                raise RuntimeError(f"{self._stage} failed on {self._in_a_row} pictures in a row, "
                                   f"the last time with: {one_line(error)}") from error
            samples[0].dropped = f"{self._stage}_failed"
            return
        self._in_a_row = 0
        for sample, pixels in zip(samples, found, strict=True):
            sample.parts[part] = pixels


def _alive(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.alive]


def _read(sample: Sample, config: SynthesisConfig) -> Sample:
    if sample.refused:
        return sample
    try:
        picture = decode_picture(read(sample, "picture"), config.picture)
        sample.parts["image"] = picture.pixels
        for part in ("mask", "background", "foreground"):
            if part in sample.pieces:
                layer = decode_picture(read(sample, part), config.picture)
                if (layer.width, layer.height) != (picture.width, picture.height):
                    raise Refused("sizes_differ")
                sample.parts[part] = np.ascontiguousarray(layer.pixels[..., 0]) if part == "mask" else layer.pixels
        sample.caption = read_caption(sample)
    except Refused as error:
        sample.refused = error.cause
        sample.parts.clear()
        return sample
    sample.converted = list(picture.converted)
    sample.facts = {"source": {"name": sample.name, "width": picture.width, "height": picture.height,
                               "format": picture.format, "record": read_origin(sample)}}
    return sample


def _encoded(sample: Sample, config: SynthesisConfig) -> Sample:
    if sample.refused:
        return sample
    parts = {name: sample.array(name) for name in ("image", "mask", "background", "foreground")
             if name in sample.parts}
    sample.parts = {}
    if config.sheet:  # the writer keeps the shard's first ones
        sample.parts["thumbnail"] = _thumbnail(parts)
    if not sample.dropped:
        if config.layers.foreground == "estimated" and "foreground" not in parts:
            image, mask = (to_tensor(parts[name])[None] for name in ("image", "mask"))
            parts["foreground"] = to_bytes(estimate_foreground(image, mask)[0][0])
        level = config.engine.compress_level
        sample.parts |= {name: _file(pixels, "PNG", compress_level=level) for name, pixels in parts.items()}
    return sample


def _open_filter(path: str | None, config: FiltersConfig, kind: str) -> Any:  # noqa: ANN401 - QualityFilter
    if path is None:
        return None
    from text2layer_core.quality import load_quality_filter

    return load_quality_filter(Path(path).expanduser(), config.device, kind=kind)


def _judge(
    samples: Sequence[Sample], parts: Sequence[str], model: Any, threshold: float | None, device: str  # noqa: ANN401
) -> None:
    """Scores samples by some of their parts; those of one size go through as one batch."""
    pictures = [torch.cat([to_tensor(sample.array(part)) for part in parts]) for sample in samples]
    for group in by_size(pictures):
        scores = model.scores(torch.stack([pictures[index] for index in group]).to(device))
        for index, score in zip(group, scores.tolist(), strict=True):
            samples[index].facts[f"{model.kind}_score"] = round(score, 5)
            if score < (model.threshold if threshold is None else threshold):
                samples[index].dropped = f"{model.kind}_score"


def _thumbnail(parts: dict[str, np.ndarray]) -> bytes:
    """A strip: composed, foreground on a checkerboard, background, mask; of a dropped sample what there is."""
    image = to_tensor(parts["image"])[None]
    if "mask" not in parts:
        return _file(_small(parts["image"]), "JPEG", quality=80)
    mask = to_tensor(parts["mask"])[None]
    background = to_tensor(parts["background"])[None] if "background" in parts else image
    strip = to_bytes(layer_thumbnails(TwoLayerImage(image, background, mask), THUMBNAIL)[0])
    return _file(strip, "JPEG", quality=80)


def _small(pixels: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(image)


def _file(pixels: np.ndarray, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
