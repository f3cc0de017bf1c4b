"""The stages between input and writer, each a function of a table of samples; models are loaded once a worker."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from train.synthesis.tensors import to_bytes, to_tensor

if TYPE_CHECKING:
    from train.synthesis.config import FiltersConfig, SynthesisConfig

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
        for sample in samples:
            if sample.alive:
                sample.began = time.time()
                self._find(sample)
        return to_table(samples)

    def _find(self, sample: Sample) -> None:
        image = to_tensor(sample.array("image"))
        if self._model is not None:
            model = self._model
            found = self._guard.run(sample, lambda: to_bytes(model(image)))
            if found is None:
                return
            sample.parts["mask"] = found
        mask = sample.array("mask")
        sample.facts |= asdict(mask_figures(mask))
        sample.dropped = mask_verdict(mask, self._filters)
        if sample.alive and self._filter is not None:
            picture = torch.cat([image, to_tensor(mask)])[None]
            _judge(sample, "mask", self._filter, picture.to(self._filters.device), self._filters.mask_threshold)


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
        for sample in samples:
            if sample.alive:
                self._fill(sample)
        return to_table(samples)

    def _fill(self, sample: Sample) -> None:
        if "background" not in sample.parts:
            found = self._guard.run(sample, lambda: self._inpainted(sample))
            if found is None:
                return
            sample.parts["background"] = found
        if self._filter is not None:
            picture = to_tensor(sample.array("background"))[None]
            _judge(sample, "inpainting", self._filter, picture.to(self._filters.device),
                   self._filters.inpainting_threshold)
        if sample.alive and self._clip is not None:
            scores = clip_score(*self._clip, [to_tensor(sample.array("image"))], [sample.caption or ""])
            sample.facts["clip_score"] = round(float(scores[0]), 5)

    def _inpainted(self, sample: Sample) -> np.ndarray:
        """(H, W, 3) uint8, bit-equal to the picture outside the hole."""
        if self._model is None:
            raise ValueError("a layered sample must have its background")
        image, hole, blend = (to_tensor(sample.array(part)) for part in ("image", "hole", "blend"))
        x, y = sample.window
        window = image[:, y : y + hole.shape[1], x : x + hole.shape[2]]
        filled = self._model(window.contiguous(), (hole > 0).float())
        return to_bytes(paste_back(image[None], filled[None], blend[None], x, y)[0])


class _Guard:
    """A model that fails on a picture drops it; one that fails on picture after picture stops the run."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._in_a_row = 0

    def run(self, sample: Sample, work: Callable[[], np.ndarray]) -> np.ndarray | None:
        try:
            found = work()
        except model_errors() as error:
            self._in_a_row += 1
            if self._in_a_row >= _MOST_FAILURES:
                raise RuntimeError(f"{self._stage} failed on {self._in_a_row} pictures in a row, "
                                   f"the last time with: {one_line(error)}") from error
            sample.dropped = f"{self._stage}_failed"
            return None
        self._in_a_row = 0
        return found


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
    if sample.dropped or sample.index < config.sheet:
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


def _judge(sample: Sample, kind: str, model: Any, picture: Tensor, threshold: float | None) -> None:  # noqa: ANN401
    score = float(model.scores(picture)[0])
    sample.facts[f"{kind}_score"] = round(score, 5)
    if score < (model.threshold if threshold is None else threshold):
        sample.dropped = f"{kind}_score"


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
