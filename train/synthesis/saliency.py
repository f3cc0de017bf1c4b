"""The salient object's mask (paper, data step 1), by one small interface for all models."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from text2layer_core.checkpoint import one_line
from train.synthesis.errors import LOAD_ERRORS, check_installed, model_errors
from train.synthesis.tensors import to_bytes, to_pil

if TYPE_CHECKING:
    from train.synthesis.config import SaliencyConfig

_PACKAGES = {"grabcut": ("cv2",), "rembg": ("rembg", "onnxruntime")}
_BORDER = 0.04  # GrabCut: what surely is ground, a share of each side
_CENTRE = 0.5  # GrabCut: what is probably the thing, a share of each side
_SOFTEN = 1.0  # GrabCut: sigma of the cut's edge in pixels
_QUARTER = 4  # "wait" marks the middle of the picture, a fourth of each side away from the border


class Saliency(Protocol):
    """A saliency model."""

    def __call__(self, image: Tensor) -> Tensor:
        """The mask of what a viewer sees first.

        Args:
            image: (3, H, W) in [0, 1].

        Returns:
            (1, H, W) in [0, 1], 1 on the object.
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

    def __call__(self, image: Tensor) -> Tensor:
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

        cuda = ["CUDAExecutionProvider"] if config.device.startswith("cuda") else []
        try:
            self._session = Local(config.model, runtime.SessionOptions(), providers=[*cuda, "CPUExecutionProvider"])
        except model_errors() as error:
            raise ValueError(f"saliency: {path} must be an ONNX model, got {one_line(error)}") from error

    def __call__(self, image: Tensor) -> Tensor:
        (mask,) = self._session.predict(to_pil(image))[:1]
        return torch.from_numpy(np.asarray(mask.convert("L"), dtype=np.float32) / 255)[None]


class _Transformers:
    """A segmentation model of transformers: one channel is taken as the mask, several as classes."""

    def __init__(self, config: SaliencyConfig) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageSegmentation, AutoModelForSemanticSegmentation

        folder = Path(config.path or "").expanduser()
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        dtype = getattr(torch, config.dtype)
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(folder, use_fast=False, **options)
            try:
                model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=dtype, **options)
            except ValueError:
                model = AutoModelForImageSegmentation.from_pretrained(folder, dtype=dtype, **options)
        except LOAD_ERRORS as error:
            raise ValueError(f"saliency: {folder} must be a segmentation model that transformers knows, "
                             f"got {one_line(error)}") from error
        self._model: Any = model.to(config.device).eval()
        self._labels, self._size, self._dtype = config.labels, config.size, dtype

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        size = {} if self._size is None else {"size": {"height": self._size, "width": self._size}}
        inputs = self._processor(images=to_pil(image), return_tensors="pt", **size)
        pixels = inputs["pixel_values"].to(self._model.device, self._dtype)
        found = self._model(pixel_values=pixels)
        logits = cast("Tensor", found.logits if hasattr(found, "logits") else found[-1]).float()
        if logits.ndim == 3:
            logits = logits[:, None]
        return _resized(self._probability(logits), image)[0].cpu()

    def _probability(self, logits: Tensor) -> Tensor:
        """(1, K, h, w) -> (1, 1, h, w): of the object, or that one of the chosen classes is there."""
        if logits.shape[1] == 1:
            return logits.sigmoid()
        shares = logits.softmax(dim=1)
        chosen = list(self._labels) or list(range(1, shares.shape[1]))
        if max(chosen) >= shares.shape[1]:
            raise ValueError(f"saliency: labels must be below the model's {shares.shape[1]} classes, got {max(chosen)}")
        return shares[:, chosen].sum(dim=1, keepdim=True)


class _Wait:
    """A stand-in for benchmarks: sleeps, as a model on a GPU leaves the CPU free; the middle is the object."""

    def __init__(self, config: SaliencyConfig) -> None:
        self._seconds = config.seconds

    def __call__(self, image: Tensor) -> Tensor:
        time.sleep(self._seconds)
        mask = torch.zeros(1, *image.shape[1:])
        top, left = (round(side / _QUARTER) for side in image.shape[1:])
        mask[:, top : image.shape[1] - top, left : image.shape[2] - left] = 1
        return mask


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


def _resized(mask: Tensor, image: Tensor) -> Tensor:
    sides = image.shape[1:]
    if mask.shape[-2:] != sides:
        mask = functional.interpolate(mask, sides, mode="bilinear", align_corners=False)
    return mask.clamp(0, 1)
