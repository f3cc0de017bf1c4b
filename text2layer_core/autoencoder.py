"""CaT2I-AE, the composition-aware two-layer autoencoder (paper, section "CaT2I-AE")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.checkpoint import checkpoint

from .layers import STACK_CHANNELS, TwoLayerImage

HEAD_CHANNELS_OUT = {"foreground": 3, "background": 3, "mask": 1, "composed": 3}
MAX_CHANNELS = 16_384
INITIAL_LOGVAR = -6.0
BATCH_NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape of a CaT2I-AE; the defaults are Stable Diffusion's KL autoencoder with heads.

    Attributes:
        latent_channels: channels of z. The paper is silent; 4 is SD's.
        block_out_channels: trunk widths, one per level; the first level works at 1 / patch_size of the picture.
        layers_per_block: residual blocks per encoder level (the decoder has one more, as SD's).
        norm_num_groups: groups of every GroupNorm.
        patch_size: pixel-unshuffle factor of the stem and pixel-shuffle factor of the heads; 1 is SD's plain stem.
        head_channels: hidden width of each conv-bn-relu-conv head. The paper is silent.
        composed_head: whether the auxiliary head for I exists; False is the paper's "no-sup" variant.
        background_decoder: whether B's head has a decoder of its own; the paper has one for all heads. What the shared
            features know of F leaves a trace in B (ours; models/README.md has the figures).
    """

    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    patch_size: int = 1
    head_channels: int = 64
    composed_head: bool = True
    background_decoder: bool = False

    def __post_init__(self) -> None:
        """Normalise sequences from JSON and YAML and check every number, all problems in one ValueError."""
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        sizes = {
            "latent_channels": self.latent_channels,
            "layers_per_block": self.layers_per_block,
            "norm_num_groups": self.norm_num_groups,
            "patch_size": self.patch_size,
            "head_channels": self.head_channels,
            **{f"block_out_channels[{i}]": width for i, width in enumerate(self.block_out_channels)},
        }
        problems = [f"{name} must be an integer from 1 to {MAX_CHANNELS}, got {size!r}"
                    for name, size in sizes.items() if type(size) is not int or not 0 < size <= MAX_CHANNELS]
        if not self.block_out_channels:
            problems.append("block_out_channels must name at least one width, got ()")
        if not problems:
            problems = [f"block_out_channels must be multiples of norm_num_groups={self.norm_num_groups}, got {width}"
                        for width in self.block_out_channels if width % self.norm_num_groups]
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along each side."""
        return self.patch_size * 2 ** (len(self.block_out_channels) - 1)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the prediction heads, in the order of their outputs."""
        return tuple(name for name in HEAD_CHANNELS_OUT if name != "composed" or self.composed_head)


AUTOENCODER_PRESETS: dict[str, AutoencoderConfig] = {"sd": AutoencoderConfig()}
"""``sd``: Stable Diffusion's trunk, heads 64 wide; the paper's."""


@dataclass(frozen=True)
class LatentDistribution:
    """Diagonal Gaussian over latents; mean and logvar are (N, C, h, w), unscaled."""

    mean: Tensor
    logvar: Tensor

    def mode(self) -> Tensor:
        """The mean, (N, C, h, w)."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw, (N, C, h, w); noise comes from the generator's device, or from the mean's without one."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean.device)


@dataclass(frozen=True)
class DecodedLayers:
    """What one latent decodes to: the layers and, where the model has that head, its own guess of I (N, 3, H, W)."""

    layers: TwoLayerImage
    predicted_composed: Tensor | None


class ResnetBlock(nn.Module):
    """norm-silu-conv twice with a residual path, as in SD's autoencoder."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, ops: Any) -> None:
        """Make the block with ops' layer classes."""
        super().__init__()
        self.norm1 = ops.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = ops.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = ops.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = ops.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = ops.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, h, w) -> (N, out, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, as in the middle of SD's autoencoder."""

    def __init__(self, channels: int, groups: int, ops: Any) -> None:
        """Make the block with ops' layer classes."""
        super().__init__()
        self.group_norm = ops.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = ops.Linear(channels, channels)
        self.to_k = ops.Linear(channels, channels)
        self.to_v = ops.Linear(channels, channels)
        self.to_out = nn.ModuleList([ops.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(tokens).unsqueeze(1) for layer in (self.to_q, self.to_k, self.to_v))
        attended = self.to_out[0](F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + attended.transpose(1, 2).reshape(x.shape)


class Chain(nn.Module):
    """Layers one after the other; with `checkpointing`, going backwards computes what is inside each of them anew."""

    checkpointing = False

    def chain(self, x: Tensor, layers: Iterable[nn.Module]) -> Tensor:
        """(N, C, h, w) through the layers."""
        for layer in layers:
            keep = not (self.checkpointing and torch.is_grad_enabled())
            x = layer(x) if keep else cast("Tensor", checkpoint(layer, x, use_reentrant=False))
        return x


class MiddleBlock(Chain):
    """resnet, attention, resnet at the lowest resolution."""

    def __init__(self, channels: int, groups: int, ops: Any) -> None:
        """Make the block with ops' layer classes."""
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, groups, ops) for _ in range(2)])
        self.attentions = nn.ModuleList([AttentionBlock(channels, groups, ops)])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape."""
        return self.chain(x, (self.resnets[0], self.attentions[0], self.resnets[1]))


class Downsample(nn.Module):
    """Stride-2 convolution, padded right and below only (SD's)."""

    def __init__(self, channels: int, ops: Any) -> None:
        """Make the layer with ops' layer classes."""
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h / 2, w / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int, ops: Any) -> None:
        """Make the layer with ops' layer classes."""
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(Chain):
    """The residual blocks of one resolution and the step to the next; keys as in diffusers' blocks."""

    def __init__(self, widths: list[int], groups: int, ops: Any, *, step: str | None) -> None:
        """Blocks widths[0] -> widths[1] -> ...; step is "downsamplers", "upsamplers" or None."""
        super().__init__()
        self.resnets = nn.ModuleList([
            ResnetBlock(before, after, groups, ops) for before, after in pairwise(widths)
        ])
        self.downsamplers = nn.ModuleList([Downsample(widths[-1], ops)] if step == "downsamplers" else [])
        self.upsamplers = nn.ModuleList([Upsample(widths[-1], ops)] if step == "upsamplers" else [])

    def forward(self, x: Tensor) -> Tensor:
        """(N, widths[0], h, w) -> (N, widths[-1], h', w')."""
        return self.chain(x, (*self.resnets, *self.downsamplers, *self.upsamplers))


class Encoder(nn.Module):
    """SD's encoder, its input widened to the stack [F, B, m]."""

    def __init__(self, config: AutoencoderConfig, ops: Any, in_channels: int = STACK_CHANNELS) -> None:
        """Make the encoder with ops' layer classes."""
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = ops.Conv2d(in_channels * config.patch_size**2, widths[0], 3, padding=1)
        last = len(widths) - 1
        self.down_blocks = nn.ModuleList([
            Level([widths[max(i - 1, 0)], *[width] * config.layers_per_block], groups, ops,
                  step="downsamplers" if i < last else None)
            for i, width in enumerate(widths)
        ])
        self.mid_block = MiddleBlock(widths[-1], groups, ops)
        self.conv_norm_out = ops.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = ops.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in p^2, H / p, W / p) -> moments (N, 2C, h, w)."""
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """SD's decoder without its last layer: the trunk that heads share."""

    def __init__(self, config: AutoencoderConfig, ops: Any) -> None:
        """Make the trunk with ops' layer classes."""
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = ops.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MiddleBlock(widths[0], groups, ops)
        last = len(widths) - 1
        self.up_blocks = nn.ModuleList([
            Level([widths[max(i - 1, 0)], *[width] * (config.layers_per_block + 1)], groups, ops,
                  step="upsamplers" if i < last else None)
            for i, width in enumerate(widths)
        ])
        self.conv_norm_out = ops.GroupNorm(groups, widths[-1], eps=1e-6)

    def forward(self, z: Tensor) -> Tensor:
        """(N, C, h, w) -> features (N, widths[0], H / p, W / p)."""
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return F.silu(self.conv_norm_out(x))


class Head(nn.Module):
    """conv-bn-relu-conv (paper), then pixel shuffle where the model has a patch stem."""

    def __init__(
        self, in_channels: int, hidden: int, out_channels: int, patch_size: int, ops: Any, *, folded: bool = False
    ) -> None:
        """Make the head with ops' layer classes; folded leaves its BatchNorm out, see `fold_batch_norm`."""
        super().__init__()
        self.patch_size = patch_size
        self.conv1 = ops.Conv2d(in_channels, hidden, 3, padding=1)
        self.norm = nn.Identity() if folded else nn.BatchNorm2d(hidden, eps=BATCH_NORM_EPS)
        self.conv2 = ops.Conv2d(hidden, out_channels * patch_size**2, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in, h, w) -> (N, out, h p, w p)."""
        return F.pixel_shuffle(self.conv2(F.relu(self.norm(self.conv1(features)))), self.patch_size)


class CaT2IAutoencoder(nn.Module):
    """Two layers and their mask in one latent; SD's autoencoder with a wider input and one head per output.

    The only place that knows [-1, 1]: everything outside is in [0, 1], stored sRGB values, straight alpha.
    """

    def __init__(self, config: AutoencoderConfig, ops: Any = nn, *, folded: bool = False) -> None:
        """Make the model.

        Args:
            config: its shape.
            ops: namespace of Conv2d, Linear and GroupNorm; torch.nn, or the host's casting classes.
            folded: for inference alone: no BatchNorm and no first weights, which come from `fold_batch_norm`.
        """
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, ops)
        self.quant_conv = ops.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = ops.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config, ops)
        if config.background_decoder:
            self.background_decoder = Decoder(config, ops)
        width, hidden, patch = config.block_out_channels[0], config.head_channels, config.patch_size
        self.heads = nn.ModuleDict({
            name: Head(width, hidden, HEAD_CHANNELS_OUT[name], patch, ops, folded=folded) for name in config.heads
        })
        if not folded:
            self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Starts residual branches at zero and the posterior narrow: ours, far quicker in the first 10,000 images."""
        for module in self.modules():
            if isinstance(module, ResnetBlock):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, AttentionBlock):
                nn.init.zeros_(module.get_parameter("to_out.0.weight"))
        self.quant_conv.bias[self.config.latent_channels :] = INITIAL_LOGVAR

    def checkpoint_blocks(self) -> None:
        """Less memory in training, more time: see `Chain`."""
        for module in self.modules():
            if isinstance(module, Chain):
                module.checkpointing = True

    def encode_stack(self, stack: Tensor) -> LatentDistribution:
        """Encode the stack [F, B, m].

        Args:
            stack: (N, 7, H, W) in [0, 1]; H and W multiples of config.downscale.

        Returns:
            The distribution of z, (N, C, H / downscale, W / downscale), unscaled.

        Raises:
            ValueError: for another number of channels or sizes that are no multiples of the stride.
        """
        stride = self.config.downscale
        if stack.ndim != 4 or stack.shape[1] != STACK_CHANNELS:
            raise ValueError(f"stack must have shape (N, {STACK_CHANNELS}, H, W), got {tuple(stack.shape)}")
        if stack.shape[2] % stride or stack.shape[3] % stride:
            raise ValueError(f"height and width must be multiples of {stride}, got {stack.shape[2]}x{stack.shape[3]}")
        moments = self.quant_conv(self.encoder(F.pixel_unshuffle(stack * 2 - 1, self.config.patch_size)))
        mean, logvar = moments.chunk(2, dim=1)
        return LatentDistribution(mean, logvar.clamp(-30.0, 20.0))

    def decode_heads(self, latents: Tensor) -> dict[str, Tensor]:
        """Decode z without clamping, for losses and for the host.

        Args:
            latents: (N, C, h, w), unscaled.

        Returns:
            Head name -> (N, 3 or 1, H, W); [0, 1] is the range of truth, predictions may leave it.

        Raises:
            ValueError: for another number of channels.
        """
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"latents must have shape (N, {self.config.latent_channels}, h, w), got {tuple(latents.shape)}"
            )
        z = self.post_quant_conv(latents)
        outputs: dict[str, Tensor] = {}
        if self.config.background_decoder:  # first, so that its features are gone before the others' are computed
            outputs["background"] = self.heads["background"](self.background_decoder(z))
        features = self.decoder(z)
        outputs |= {name: head(features) for name, head in self.heads.items() if name not in outputs}
        return {name: (outputs[name] + 1) / 2 for name in self.heads}

    def encode(self, image: TwoLayerImage) -> LatentDistribution:
        """Encode two layers; sizes must be multiples of config.downscale, see `encode_stack`."""
        return self.encode_stack(image.stack())

    def decode(self, latents: Tensor) -> DecodedLayers:
        """Decode unscaled latents (N, C, h, w) to layers clamped to [0, 1]; see `decode_heads`."""
        outputs = {name: output.clamp(0, 1) for name, output in self.decode_heads(latents).items()}
        layers = TwoLayerImage(outputs["foreground"], outputs["background"], outputs["mask"])
        return DecodedLayers(layers, outputs.get("composed"))

    def forward(
        self, stack: Tensor, draw: Callable[[LatentDistribution], Tensor] = LatentDistribution.sample
    ) -> tuple[LatentDistribution, dict[str, Tensor]]:
        """One training pass: stack (N, 7, H, W) in [0, 1] -> its distribution and the heads' outputs of one draw."""
        distribution = self.encode_stack(stack)
        return distribution, self.decode_heads(draw(distribution))


def with_background_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the same model with `background_decoder`, which starts as the shared one: B stays the same.

    Args:
        state: of a `CaT2IAutoencoder` without it, or a part of one.

    Returns:
        A new dict; both decoders have the same tensors, to be copied into a model.
    """
    return dict(state) | {f"background_{key}": tensor for key, tensor in state.items() if key.startswith("decoder.")}


def fold_batch_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a model made with `folded`: each head's BatchNorm becomes part of the convolution before it.

    Args:
        state: of a `CaT2IAutoencoder`.

    Returns:
        A new dict; the tensors that change are computed in float32, the others are the same objects.
    """
    folded = {key: tensor for key, tensor in state.items() if ".norm." not in key or not key.startswith("heads.")}
    for prefix in sorted({key.rpartition("norm.")[0] for key in state if key not in folded}):
        norm = {key.removeprefix(prefix + "norm."): tensor for key, tensor in state.items()
                if key.startswith(prefix + "norm.")}
        weight, bias = f"{prefix}conv1.weight", f"{prefix}conv1.bias"
        fused = fuse_conv_bn_weights(
            state[weight].float(), state[bias].float(), norm["running_mean"].float(), norm["running_var"].float(),
            BATCH_NORM_EPS, norm["weight"].float(), norm["bias"].float(),
        )
        folded |= {name: parameter.detach() for name, parameter in zip((weight, bias), fused, strict=True)}
    return folded
