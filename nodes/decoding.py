"""A latent becomes a node's outputs and what it shows."""

from __future__ import annotations

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..text2layer_core.compositing import compose
from .convert import SIZE, layer_outputs
from .host_vae import LayeredVAE
from .preview import layers_preview


def decode(latent: dict, vae: LayeredVAE, cls: type[io.ComfyNode]) -> io.NodeOutput:
    """The outputs and the preview of a latent, cropped to the size that it remembers."""
    samples = latent["samples"]
    if samples.ndim != 4 or samples.shape[1] != vae.latent_channels:
        raise ValueError(
            f"samples must have the VAE's {vae.latent_channels} channels, got a latent of shape {tuple(samples.shape)}"
        )
    decoded = vae.decode_layers(samples)
    width, height = visible_size(samples, latent.get(SIZE), vae)
    layers = decoded.layers.crop(height, width)
    predicted = None if decoded.predicted_composed is None else decoded.predicted_composed[..., :height, :width]
    composed = compose(layers)
    return io.NodeOutput(*layer_outputs(layers, composed), ui=layers_preview(layers, composed, predicted, cls))


def visible_size(samples: Tensor, size: tuple[int, int] | None, vae: LayeredVAE) -> tuple[int, int]:
    """Width and height to crop to: the size that the latent remembers, if it is still that latent's."""
    height, width = (cells * vae.downscale_ratio for cells in samples.shape[-2:])
    if size is not None and all(
        -(-wanted // vae.stride) * vae.stride == found for wanted, found in zip(size, (width, height), strict=True)
    ):
        return size
    return width, height
