"""The background under the object (paper, data step 3), by one small interface for all models."""

from __future__ import annotations

import inspect
import json
import math
import time
import zlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from text2layer_core.checkpoint import one_line
from train.synthesis.errors import LOAD_ERRORS, check_installed, model_errors, onnx_providers
from train.synthesis.tensors import by_size, to_bytes, to_pil, to_tensor

if TYPE_CHECKING:
    from train.synthesis.config import InpainterConfig

_PACKAGES = {"telea": ("cv2",), "lama": ("onnxruntime",)}
_MULTIPLE = 8  # sides that a latent diffusion model and LaMa take


class Inpainter(Protocol):
    """An inpainting model."""

    def __call__(self, images: Sequence[Tensor], holes: Sequence[Tensor]) -> list[Tensor]:
        """The pictures with their holes filled; those of one size may go through as one batch.

        Args:
            images: each (3, H, W) in [0, 1].
            holes: each (1, H, W), 1 where to fill, else 0.

        Returns:
            Each (3, H, W) in [0, 1]; what it shows outside the hole is not used.
        """
        ...


def open_inpainter(config: InpainterConfig) -> Inpainter:
    """Loads a model from a local path; nothing is downloaded.

    Raises:
        ValueError: its files or its package are missing, or of another kind.
    """
    check_inpainter(config)
    makers: dict[str, Any] = {"telea": _Telea, "diffusers": _Diffusers, "lama": _Lama, "wait": _Wait}
    return makers[config.backend](config)


def check_inpainter(config: InpainterConfig) -> None:
    """Raises ValueError where weights or package are not there; loads nothing."""
    check_installed(*_PACKAGES.get(config.backend, ()))
    path = Path(config.path or "").expanduser()
    if config.backend == "diffusers" and not (path / "model_index.json").is_file():
        raise ValueError(f"inpainting: path must be a folder of a diffusers pipeline, "
                         f"found no model_index.json in {path}")
    if config.backend == "lama" and not path.is_file():
        raise ValueError(f"inpainting: path must be an ONNX file of LaMa, found none at {path}")


class _Telea:
    """Telea's fast marching method (2004); needs no weights, continues colours and no texture."""

    def __init__(self, config: InpainterConfig) -> None:
        self._radius = config.radius

    def __call__(self, images: Sequence[Tensor], holes: Sequence[Tensor]) -> list[Tensor]:
        import cv2

        return [to_tensor(cv2.inpaint(to_bytes(image), to_bytes(hole), self._radius, cv2.INPAINT_TELEA))
                for image, hole in zip(images, holes, strict=True)]


class _Diffusers:
    """Any pipeline of AutoPipelineForInpainting (SD, SDXL, ...), and Flux Fill; the prompt is empty, as in the paper.

    The filling begins with noise alone (strength 1), so that nothing of the object guides it.
    """

    def __init__(self, config: InpainterConfig) -> None:
        from diffusers.pipelines.auto_pipeline import AutoPipelineForInpainting
        from diffusers.pipelines.flux.pipeline_flux_fill import FluxFillPipeline

        path = Path(config.path or "").expanduser()
        try:
            kind = json.loads((path / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
            maker: Any = FluxFillPipeline if kind == FluxFillPipeline.__name__ else AutoPipelineForInpainting
            pipeline = maker.from_pretrained(path, local_files_only=True, dtype=getattr(torch, config.dtype))
        except LOAD_ERRORS as error:
            raise ValueError(f"inpainting: {path} must be an inpainting pipeline that diffusers knows, "
                             f"got {one_line(error)}") from error
        self._pipeline: Any = pipeline.to(config.device)
        self._pipeline.set_progress_bar_config(disable=True)
        parameters = inspect.signature(pipeline.__call__).parameters
        self._options = {"strength": 1.0} if "strength" in parameters else {}
        self._config = config

    def __call__(self, images: Sequence[Tensor], holes: Sequence[Tensor]) -> list[Tensor]:
        """The noise depends on the seed and the picture alone, not on what is filled with it or was before it."""
        small = [_sized(image[None], hole[None], self._config.size) for image, hole in zip(images, holes, strict=True)]
        filled: dict[int, Tensor] = {}
        for group in by_size([picture for picture, _ in small]):
            found = self._run([small[index] for index in group], [self._noise(images[index]) for index in group])
            filled |= zip(group, found, strict=True)
        return [_back(filled[index][None], image) for index, image in enumerate(images)]

    def _noise(self, image: Tensor) -> torch.Generator:
        return torch.Generator("cpu").manual_seed(zlib.crc32(to_bytes(image).tobytes(), self._config.seed))

    def _run(self, small: Sequence[tuple[Tensor, Tensor]], noise: list[torch.Generator]) -> Tensor:
        """Of pictures and holes of one size, (N, 3, h, w)."""
        height, width = small[0][0].shape[2:]
        return self._pipeline(
            prompt=[""] * len(small), image=[to_pil(picture[0]) for picture, _ in small],
            mask_image=[to_pil(hole[0].expand(3, -1, -1)) for _, hole in small], width=width, height=height,
            num_inference_steps=self._config.steps, guidance_scale=self._config.guidance_scale, generator=noise,
            output_type="pt", **self._options).images.float().cpu()


class _Lama:
    """LaMa (Suvorov et al. 2022) as ONNX, inputs image and mask; the output's range, [0, 1] or [0, 255], is found."""

    def __init__(self, config: InpainterConfig) -> None:
        runtime: Any = import_module("onnxruntime")
        path = Path(config.path or "").expanduser()
        providers = onnx_providers(config.device, runtime.get_available_providers())
        try:
            self._session: Any = runtime.InferenceSession(str(path), providers=providers)
        except model_errors() as error:
            raise ValueError(f"inpainting: {path} must be an ONNX model, got {one_line(error)}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 2 or sorted(entry.shape[1] for entry in inputs) != [1, 3]:
            shapes = ", ".join(f"{entry.name} {entry.shape}" for entry in inputs)
            raise ValueError(f"inpainting: {path} must take a picture of 3 channels and a mask of 1, takes {shapes}")
        self._image, self._mask = sorted(inputs, key=lambda entry: -entry.shape[1])

    def __call__(self, images: Sequence[Tensor], holes: Sequence[Tensor]) -> list[Tensor]:
        return [self._fill(image, hole) for image, hole in zip(images, holes, strict=True)]

    def _fill(self, image: Tensor, hole: Tensor) -> Tensor:
        fixed = [side for side in self._image.shape[2:] if isinstance(side, int)]
        if fixed:
            sides = (fixed[0], fixed[-1])
            small, small_hole = _scaled(image[None], sides), (_scaled(hole[None], sides) > 0).float()
        else:
            small, small_hole = _sized(image[None], hole[None], None)
        (found,) = self._session.run(None, {self._image.name: small.numpy(), self._mask.name: small_hole.numpy()})[:1]
        filled = torch.from_numpy(found).float()
        return _back(filled / 255 if float(filled.max()) > 2 else filled, image)


class _Wait:
    """A stand-in for benchmarks: sleeps, as a model on a GPU leaves the CPU free; fills with the mean colour."""

    def __init__(self, config: InpainterConfig) -> None:
        self._seconds = config.seconds

    def __call__(self, images: Sequence[Tensor], holes: Sequence[Tensor]) -> list[Tensor]:
        time.sleep(self._seconds * len(images))
        return [torch.where(hole > 0, image.mean(dim=(1, 2), keepdim=True), image)
                for image, hole in zip(images, holes, strict=True)]


def _sized(image: Tensor, hole: Tensor, longest: int | None) -> tuple[Tensor, Tensor]:
    """Picture and hole at sides that are multiples of 8, the longer one `longest`; the hole never shrinks."""
    height, width = image.shape[-2:]
    scale = 1.0 if longest is None else longest / max(height, width)
    sides = (_MULTIPLE * math.ceil(height * scale / _MULTIPLE), _MULTIPLE * math.ceil(width * scale / _MULTIPLE))
    return _scaled(image, sides), (_scaled(hole, sides) > 0).float()


def _scaled(values: Tensor, sides: tuple[int, int]) -> Tensor:
    if values.shape[-2:] == sides:
        return values
    return functional.interpolate(values, sides, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _back(filled: Tensor, image: Tensor) -> Tensor:
    return _scaled(filled, (image.shape[1], image.shape[2]))[0].clamp(0, 1)
