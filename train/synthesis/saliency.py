"""The salient object's mask (paper, data step 1), by one small interface for all models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from text2layer_core.checkpoint import one_line
from train.synthesis.errors import LOAD_ERRORS, check_installed, model_errors, onnx_providers
from train.synthesis.tensors import by_size, to_bytes, to_pil

if TYPE_CHECKING:
    from train.synthesis.config import SaliencyConfig

_PACKAGES = {"grabcut": ("cv2",), "rembg": ("rembg", "onnxruntime")}
_BORDER = 0.04  # GrabCut: what surely is ground, a share of each side
_CENTRE = 0.5  # GrabCut: what is probably the thing, a share of each side
_SOFTEN = 1.0  # GrabCut: sigma of the cut's edge in pixels
_QUARTER = 4  # "wait" marks the middle of the picture, a fourth of each side away from the border
_OF_QUERIES = ("maskformer", "mask2former")  # take a whole picture alone: OneFormer wants a text, EoMT tiles


class Saliency(Protocol):
    """A saliency model."""

    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The mask of what a viewer sees first, of each picture; those of one size may go through as one batch.

        Args:
            images: each (3, H, W) in [0, 1].

        Returns:
            Each (1, H, W) in [0, 1], 1 on the object.
        """
        ...


def open_saliency(config: SaliencyConfig) -> Saliency:
    """Loads a model from a local path; nothing is downloaded.

    Raises:
        ValueError: its files or its package are missing, or of another kind.
    """
    check_saliency(config)
    makers: dict[str, Any] = {"grabcut": _GrabCut, "rembg": _Rembg, "transformers": _Transformers, "wait": _Wait}
    return makers[config.backend](config)


def check_saliency(config: SaliencyConfig) -> None:
    """Raises ValueError where weights or package are not there; loads nothing."""
    check_installed(*_PACKAGES.get(config.backend, ()))
    if config.backend == "rembg":
        _rembg_file(config)
    if config.backend == "transformers":
        folder = Path(config.path or "").expanduser()
        if not (folder / "config.json").is_file():
            raise ValueError("saliency: path must be a folder of a transformers model, "
                             f"found no config.json in {folder}")


class _GrabCut:
    """GrabCut (Rother et al. 2004) that begins with a border of ground and a middle of thing; needs no weights.

    A baseline that works where the object is in the middle and differs from its ground in colour; the paper uses ICON.
    The hard cut is softened by a pixel.
    """

    def __init__(self, config: SaliencyConfig) -> None:
        self._iterations = config.iterations

    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        return [self._cut(image) for image in images]

    def _cut(self, image: Tensor) -> Tensor:
        import cv2

        pixels = np.ascontiguousarray(to_bytes(image)[..., ::-1])
        height, width = pixels.shape[:2]
        labels = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
        rows, columns = (max(1, round(_BORDER * side)) for side in (height, width))
        top, left = (round((1 - _CENTRE) / 2 * side) for side in (height, width))
        labels[top : height - top, left : width - left] = cv2.GC_PR_FGD
        labels[:rows], labels[-rows:], labels[:, :columns], labels[:, -columns:] = (cv2.GC_BGD,) * 4
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(pixels, labels, (0, 0, 0, 0), *models, self._iterations, cv2.GC_INIT_WITH_MASK)
        cut = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
        return torch.from_numpy(cv2.GaussianBlur(cut, (0, 0), _SOFTEN)).clamp(0, 1)[None]


class _Rembg:
    """One of rembg's ONNX models with its own pre- and postprocessing, from a local file."""

    def __init__(self, config: SaliencyConfig) -> None:
        runtime: Any = import_module("onnxruntime")
        path = _rembg_file(config)

        class Local(_rembg_session(config.model)):
            @classmethod
            def download_models(cls, *args: object, **options: object) -> str:
                return str(path)

        providers = onnx_providers(config.device, runtime.get_available_providers())
        try:
            self._session = Local(config.model, runtime.SessionOptions(), providers=providers)
        except model_errors() as error:
            raise ValueError(f"saliency: {path} must be an ONNX model, got {one_line(error)}") from error

    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        masks = [self._session.predict(to_pil(image))[0] for image in images]
        return [torch.from_numpy(np.asarray(mask.convert("L"), dtype=np.float32) / 255)[None] for mask in masks]


class _Transformers:
    """A segmentation model of transformers: one channel is taken as the mask, several as classes.

    Semantic models give each pixel's classes, universal ones (MaskFormer and its kin) masks and the classes of those.
    """

    def __init__(self, config: SaliencyConfig) -> None:
        from transformers import (
            AutoConfig,
            AutoImageProcessor,
            AutoModelForSemanticSegmentation,
            AutoModelForUniversalSegmentation,
        )

        folder = Path(config.path or "").expanduser()
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        dtype = getattr(torch, config.dtype)
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(folder, use_fast=False, **options)
            kind = AutoConfig.from_pretrained(folder, **options).model_type
            maker = AutoModelForUniversalSegmentation if kind in _OF_QUERIES else AutoModelForSemanticSegmentation
            model: Any = maker.from_pretrained(folder, dtype=dtype, **options)
        except LOAD_ERRORS as error:
            raise ValueError(f"saliency: {folder} must be a segmentation model that transformers knows, "
                             f"got {one_line(error)}") from error
        if maker is AutoModelForUniversalSegmentation and model.config.num_labels > 1 and not config.labels:
            raise ValueError(f"saliency: labels must name the classes that are things, as {kind}'s begin with one, "
                             "got none")
        self._model: Any = model.to(config.device).eval()
        self._labels, self._size, self._dtype = config.labels, config.size, dtype

    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        masks: dict[int, Tensor] = {}
        for group in by_size(images):
            masks |= zip(group, self._masks([images[index] for index in group]), strict=True)
        return [masks[index] for index in range(len(images))]

    @torch.no_grad()
    def _masks(self, images: Sequence[Tensor]) -> Tensor:
        """Of pictures of one size, (N, 1, H, W)."""
        size = {} if self._size is None else {"size": {"height": self._size, "width": self._size}}
        inputs = self._processor(images=[to_pil(image) for image in images], return_tensors="pt", **size)
        pixels = inputs["pixel_values"].to(self._model.device, self._dtype)
        if len(pixels) != len(images):
            raise ValueError(f"saliency: the image processor must give one input for each picture, "
                             f"got {len(pixels)} for {len(images)}")
        mask = self._of_things(_class_shares(self._model(pixel_values=pixels)))
        return _scaled(mask, images[0].shape[1:]).cpu()

    def _of_things(self, shares: Tensor) -> Tensor:
        """(N, K, h, w) -> (N, 1, h, w): the only class, or all that count as things."""
        classes = shares.shape[1]
        chosen = list(self._labels) or list(range(min(1, classes - 1), classes))
        if max(chosen) >= classes:
            raise ValueError(f"saliency: labels must be below the model's {classes} classes, got {max(chosen)}")
        return shares[:, chosen].sum(dim=1, keepdim=True)


def _class_shares(found: Any) -> Tensor:  # noqa: ANN401 - any model's output
    """Probabilities of the classes in each pixel, (N, K, h, w), float32; of a single class that it is there."""
    if not hasattr(found, "masks_queries_logits"):
        logits: Tensor = found.logits.float()
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
    classes = found.class_queries_logits.float().softmax(dim=-1)[..., :-1]  # the last says that a query found nothing
    votes = torch.einsum("nqk,nqhw->nkhw", classes, found.masks_queries_logits.float().sigmoid())
    return votes / votes.sum(dim=1, keepdim=True).clamp_min(1)


class _Wait:
    """A stand-in for benchmarks: sleeps, as a model on a GPU leaves the CPU free; the middle is the object."""

    def __init__(self, config: SaliencyConfig) -> None:
        self._seconds = config.seconds

    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        time.sleep(self._seconds * len(images))
        masks = [torch.zeros(1, *image.shape[1:]) for image in images]
        for mask in masks:
            top, left = (round(side / _QUARTER) for side in mask.shape[1:])
            mask[:, top : mask.shape[1] - top, left : mask.shape[2] - left] = 1
        return masks


def _rembg_file(config: SaliencyConfig) -> Path:
    """The file itself, or the one in a folder as rembg lays its models out."""
    path = Path(config.path or "").expanduser()
    names = (f"{config.model}.onnx", f"models/{config.model}/{config.model}.onnx")
    for file in [path] if path.is_file() else [path / name for name in names]:
        if file.is_file():
            return file
    raise ValueError(f"saliency: path must be an ONNX file or a folder with {config.model}.onnx, found none at {path}")


def _rembg_session(name: str) -> type[Any]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that rembg loads
        from rembg.sessions import sessions_class

    found = {session.name(): session for session in sessions_class if session.is_local()}
    if name not in found:
        raise ValueError(f"saliency: model must be one of rembg's, {', '.join(sorted(found))}, got {name}")
    return found[name]


def _scaled(mask: Tensor, sides: Sequence[int]) -> Tensor:
    if mask.shape[-2:] != tuple(sides):
        mask = functional.interpolate(mask, tuple(sides), mode="bilinear", align_corners=False)
    return mask.clamp(0, 1)
