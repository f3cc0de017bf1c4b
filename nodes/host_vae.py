"""CaT2I-AE as the host's VAE: stock nodes see the composed picture, ours see all layers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from torch import Tensor, nn

from ..text2layer_core.autoencoder import CaT2IAutoencoder, DecodedLayers, fold_batch_norm
from ..text2layer_core.checkpoint import CheckpointHeader, check_keys
from ..text2layer_core.compositing import compose
from ..text2layer_core.layers import STACK_CHANNELS, TwoLayerImage
from .convert import to_bhwc, to_nchw

_SD_WIDTH = 128
_SD_ENCODE_BYTES, _SD_DECODE_BYTES = 1767, 2178  # the host's measure of SD's autoencoder, per pixel and byte of dtype


class _FirstStage(nn.Module):
    """What the host calls: tensors in and out, every head's channels side by side."""

    def __init__(self, header: CheckpointHeader) -> None:
        super().__init__()
        self.autoencoder = CaT2IAutoencoder(header.autoencoder, comfy.ops.disable_weight_init, folded=True)

    def encode(self, stack: Tensor) -> Tensor:
        """[F, B, m] in [0, 1] (N, 7, H, W) -> the latents' mode (N, C, h, w)."""
        return self.autoencoder.encode_stack(stack).mode()

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) -> [F, B, m] and, where the model has that head, its guess of I, (N, 7 or 10, H, W)."""
        return torch.cat(list(self.autoencoder.decode_heads(latents).values()), dim=1)


class LayeredVAE(comfy.sd.VAE):
    """The host's VAE over CaT2I-AE.

    Attributes:
        stride: pixels that a picture's sides are padded to a multiple of, for the UNet of the same model.
    """

    def __init__(self, header: CheckpointHeader, tensors: Mapping[str, Tensor], path: str) -> None:
        """Fills the host's VAE with the autoencoder of a checkpoint.

        Args:
            header: of the checkpoint.
            tensors: of its autoencoder.
            path: of the checkpoint, for messages.

        Raises:
            CheckpointError: tensors that do not fit.
        """
        with _without_a_warning():
            super().__init__(sd={})
        config = header.autoencoder
        self.stride = header.stride
        self.latent_channels = config.latent_channels
        self.output_channels = STACK_CHANNELS + (3 if config.composed_head else 0)
        self.downscale_ratio = self.upscale_ratio = config.downscale
        self.process_input = lambda stack: stack
        self.process_output = lambda stack: stack.clamp_(0.0, 1.0)
        self.working_dtypes = [torch.bfloat16, torch.float32]  # SD's trunk overflows in float16
        share = config.block_out_channels[0] / _SD_WIDTH / config.patch_size**2
        cells = config.downscale**2
        size_of = comfy.model_management.dtype_size
        self.memory_used_encode = lambda shape, dtype: _SD_ENCODE_BYTES * share * shape[2] * shape[3] * size_of(dtype)
        self.memory_used_decode = lambda shape, dtype: (
            _SD_DECODE_BYTES * share * shape[2] * shape[3] * cells * size_of(dtype)
        )
        self.first_stage_model = _FirstStage(header).eval()
        self._place()
        self._load(header, tensors, path)

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Refuses: a flat picture has no layers."""
        raise ValueError(
            "pixels must be two layers and a mask for this VAE, got one flat picture: use Text2LayerEncode"
        )

    def encode_tiled(self, pixel_samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 - the host's
        """Refuses, as `encode`."""
        return self.encode(pixel_samples)

    def encode_layers(self, image: TwoLayerImage) -> Tensor:
        """Layers whose sides are multiples of `stride` -> unscaled latents (N, C, h, w)."""
        return self._one_by_one(super().encode, to_bhwc(image.stack()))

    def decode(self, samples_in: Tensor, vae_options: Mapping[str, Any] | None = None) -> Tensor:
        """Unscaled latents -> the composed picture (eq. 1), IMAGE (N, H, W, 3)."""
        return self._composed(super().decode(samples_in))

    def decode_tiled(self, samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 - the host's
        """As `decode`, with the layers put together from tiles before they are composed."""
        return self._composed(super().decode_tiled(samples, *args, **kwargs))

    def decode_layers(self, samples: Tensor) -> DecodedLayers:
        """Unscaled latents (N, C, h, w) -> layers and the auxiliary head's picture, float32."""
        return self._layers(self._one_by_one(super().decode, samples))

    def decode_tiled_(self, samples: Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 16) -> Tensor:
        """The host's three tilings averaged, for our number of channels (its own takes three for granted)."""
        tilings = ((tile_x // 2, tile_y * 2), (tile_x * 2, tile_y // 2), (tile_x, tile_y))
        height, width = samples.shape[-2:]
        steps = [comfy.utils.get_tiled_scale_steps(width, height, x, y, overlap) for x, y in tilings]
        bar = comfy.utils.ProgressBar(samples.shape[0] * sum(steps))

        def decode(tile: Tensor) -> Tensor:
            return self.first_stage_model.decode(tile.to(self.device, self.vae_dtype)).float()

        total = sum(
            comfy.utils.tiled_scale(
                samples, decode, x, y, overlap, upscale_amount=self.upscale_ratio, out_channels=self.output_channels,
                output_device=self.output_device, pbar=bar,
            )
            for x, y in tilings
        )
        return self.process_output(total / len(tilings))

    @staticmethod
    def _one_by_one(call: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """A call on each sample, with a bar; each update also looks whether the run was interrupted."""
        bar = comfy.utils.ProgressBar(len(batch))
        bar.update_absolute(0)
        found: list[Tensor] = []
        for one in batch.split(1):
            found.append(call(one))
            bar.update(1)
        return torch.cat(found)

    def _composed(self, stack: Tensor) -> Tensor:
        return to_bhwc(compose(self._layers(stack).layers))

    def _layers(self, stack: Tensor) -> DecodedLayers:
        channels = to_nchw(stack).float()
        predicted = channels[:, STACK_CHANNELS:]
        return DecodedLayers(
            TwoLayerImage.from_stack(channels[:, :STACK_CHANNELS]), predicted if predicted.shape[1] else None
        )

    def _place(self) -> None:
        """Devices, dtype and patcher as the host's own constructor sets them."""
        management = comfy.model_management
        self.device = management.vae_device()
        self.vae_dtype = management.vae_dtype(self.device, self.working_dtypes)
        self.output_device = management.intermediate_device()
        self.first_stage_model.to(self.vae_dtype)
        if hasattr(management, "archive_model_dtypes"):
            management.archive_model_dtypes(self.first_stage_model)
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        self.patcher = patcher_class(
            self.first_stage_model, load_device=self.device, offload_device=management.vae_offload_device()
        )

    def _load(self, header: CheckpointHeader, tensors: Mapping[str, Tensor], path: str) -> None:
        with torch.device("meta"):
            state = CaT2IAutoencoder(header.autoencoder).state_dict()
        expected = {key: tuple(tensor.shape) for key, tensor in state.items()}
        check_keys(path, expected, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
        weights = {key: tensor.to(self.vae_dtype) for key, tensor in fold_batch_norm(tensors).items()}
        self.first_stage_model.autoencoder.load_state_dict(weights)


def check_vae(vae: object) -> LayeredVAE:
    """The VAE, if it is ours.

    Raises:
        ValueError: it is another.
    """
    if not isinstance(vae, LayeredVAE):
        raise ValueError(f"vae must come from Load Text2Layer Model, got {type(vae).__name__}")
    return vae


@contextmanager
def _without_a_warning() -> Generator[None]:
    """The host's constructor warns that there are no weights; they come right after it."""

    def keep(record: logging.LogRecord) -> bool:
        return "No VAE weights detected" not in record.getMessage()

    logger = logging.getLogger()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
