"""A CaT2I model that starts as Stable Diffusion 1.x: `python -m train.init_from_sd --sd PATH --out FILE`.

The paper trains its autoencoder and UNet from scratch; beginning with the weights that people have is ours. What
each part starts as is said at `autoencoder_from_sd` and `unet_from_sd`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from text2layer_core.autoencoder import BATCH_NORM_EPS, CaT2IAutoencoder, Head
from text2layer_core.checkpoint import CLIP_L, Text2LayerModel, save_checkpoint, unet_config
from text2layer_core.unet import build_unet
from train.sd_weights import StableDiffusion, read_sd, widen_unet

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

COVERAGE = 0.25
_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
# Photographs' mean and standard deviation in [-1, 1] (ImageNet's, red, green, blue): what SD's last layer puts out.
_MEAN = (-0.030, -0.088, -0.188)
_DEVIATION = (0.458, 0.448, 0.450)


@dataclass
class Origins:
    """Where the weights of a model come from: tensor names by kind."""

    copied: list[str] = field(default_factory=list[str])
    widened: list[str] = field(default_factory=list[str])
    new: list[str] = field(default_factory=list[str])

    def counts(self, tensors: dict[str, Tensor]) -> dict[str, dict[str, int]]:
        """Kind -> tensors and parameters; `tensors` are the model's."""
        return {kind: {"tensors": len(names), "parameters": sum(tensors[name].numel() for name in names)}
                for kind, names in (("copied", self.copied), ("widened", self.widened), ("new", self.new))}


@torch.no_grad()
def autoencoder_from_sd(
    sd: StableDiffusion, *, latent_channels: int | None = None, head_channels: int = 64, composed_head: bool = True,
    coverage: float = COVERAGE,
) -> tuple[CaT2IAutoencoder, Origins]:
    """CaT2I-AE that starts as Stable Diffusion's autoencoder of (nearly) the composed picture.

    Encoder. Its first convolution W (3 channels) becomes [c W, (1 - c) W, 0] on the stack [F, B, m]: it sees
    c F + (1 - c) B. The composed picture m F + (1 - m) B is no linear function of the stack; of all a F + b B with
    a + b = 1 this one is closest to it in mean square where c is the share of the picture that masks cover, and it is
    the composed picture itself wherever F = B. The mask enters with weight 0 and is learnt: the gradient of a zero
    weight is not zero.

    Heads of F, B and I. SD's last layer y = conv_out(features) becomes conv-bn-relu-conv without loss: the first
    convolution gives y and -y, the second subtracts the two halves, relu(y) - relu(-y) = y. BatchNorm is the identity
    in eval mode, its running statistics those of photographs, its scale and shift their inverse: so it is nearly
    the identity in training too. The other hidden channels are fresh and enter the second convolution with weight 0.
    The mask's head is fresh.

    Latent. More channels than SD's are a multiple of them: every part of z starts as SD's z, and the decoder reads the
    first; all else of the layers beside the latent is fresh.

    Args:
        sd: the weights.
        latent_channels: of z; None keeps SD's.
        head_channels: hidden width of the heads, at least 6.
        composed_head: whether to have the auxiliary head.
        coverage: c, in [0, 1].

    Returns:
        The autoencoder in float32 and eval mode, and where its tensors come from.

    Raises:
        ValueError: a number out of range.
    """
    narrow = sd.autoencoder.latent_channels
    channels = narrow if latent_channels is None else latent_channels
    problems = [] if channels >= narrow and channels % narrow == 0 else [
        f"latent channels must be a multiple of SD's {narrow}, got {channels}"]
    if head_channels < 6:
        problems.append(f"head channels must be at least 6, for SD's last layer and its negative, got {head_channels}")
    if not 0 <= coverage <= 1:
        problems.append(f"coverage must be in [0, 1], got {coverage}")
    if problems:
        raise ValueError("; ".join(problems))
    config = replace(sd.autoencoder, latent_channels=channels, head_channels=head_channels,
                     composed_head=composed_head)
    autoencoder = CaT2IAutoencoder(config)
    weights, origins = dict(sd.autoencoder_weights), Origins()
    last = weights.pop("decoder.conv_out.weight"), weights.pop("decoder.conv_out.bias")
    stem = weights["encoder.conv_in.weight"]
    weights["encoder.conv_in.weight"] = layered_stem(stem, coverage)
    origins.widened.append("encoder.conv_in.weight")
    if channels > narrow:
        wide = _widened_latent(weights, dict(autoencoder.state_dict()), narrow, channels)
        weights |= wide
        origins.widened += wide
    origins.copied += [key for key in weights if key not in origins.widened]
    autoencoder.load_state_dict(weights, strict=False)
    for name, head in autoencoder.heads.items():
        if name != "mask":
            start_head_as(cast("Head", head), *last)
            origins.widened += [f"heads.{name}.{key}" for key in head.state_dict()]
        else:
            origins.new += [f"heads.{name}.{key}" for key in head.state_dict()]
    return autoencoder.eval(), origins


def layered_stem(stem: Tensor, coverage: float) -> Tensor:
    """A first convolution of pictures for the stack [F, B, m]: (out, 3 n, k, k) -> (out, 7 n, k, k).

    F counts by the mask's mean coverage and B by the rest, the mask not at all; see `autoencoder_from_sd`.
    """
    return torch.cat([coverage * stem, (1 - coverage) * stem, torch.zeros_like(stem[:, : stem.shape[1] // 3])], dim=1)


def _widened_latent(
    weights: dict[str, Tensor], fresh: dict[str, Tensor], narrow: int, channels: int
) -> dict[str, Tensor]:
    """The layers beside z for more channels; `fresh` are the wide model's first weights."""
    parts = channels // narrow
    wide = {key: fresh[key].clone() for key in (
        "encoder.conv_out.weight", "encoder.conv_out.bias", "quant_conv.weight", "quant_conv.bias",
        "post_quant_conv.weight", "post_quant_conv.bias", "decoder.conv_in.weight")}
    for kind in ("weight", "bias"):
        wide[f"encoder.conv_out.{kind}"][: 2 * narrow] = weights[f"encoder.conv_out.{kind}"]
        mean, logvar = weights[f"quant_conv.{kind}"].chunk(2)
        repeated = torch.cat([mean] * parts + [logvar] * parts)
        if kind == "bias":
            wide["quant_conv.bias"] = repeated
        else:
            wide["quant_conv.weight"].zero_()[:, : 2 * narrow] = repeated
    wide["post_quant_conv.weight"][:narrow] = 0
    wide["post_quant_conv.weight"][:narrow, :narrow] = weights["post_quant_conv.weight"]
    wide["post_quant_conv.bias"][:narrow] = weights["post_quant_conv.bias"]
    wide["decoder.conv_in.weight"].zero_()[:, :narrow] = weights["decoder.conv_in.weight"]
    return wide


@torch.no_grad()
def start_head_as(head: Head, weight: Tensor, bias: Tensor) -> None:
    """Makes a conv-bn-relu-conv head compute one 3x3 convolution, exactly in eval mode; see `autoencoder_from_sd`.

    Args:
        head: of 3 channels out, at least 6 hidden, patch size 1.
        weight: (3, in, 3, 3).
        bias: (3,).
    """
    rows = slice(0, 6)
    mean = torch.tensor(_MEAN)
    mean, deviation = torch.cat([mean, -mean]), torch.tensor(_DEVIATION * 2)
    norm, first, second = cast("nn.BatchNorm2d", head.norm), head.conv1, head.conv2
    first.weight[rows] = torch.cat([weight, -weight])
    first.bias[rows] = torch.cat([bias, -bias])
    for buffer, values in ((norm.running_mean, mean), (norm.running_var, deviation**2)):
        cast("Tensor", buffer)[rows] = values
    norm.weight[rows] = (deviation**2 + BATCH_NORM_EPS).sqrt()
    norm.bias[rows] = mean
    second.weight.zero_()
    second.bias.zero_()
    for channel in range(3):
        second.weight[channel, channel, 1, 1] = 1
        second.weight[channel, channel + 3, 1, 1] = -1


@torch.no_grad()
def unet_from_sd(
    narrow: UNet2DConditionModel, latent_channels: int
) -> tuple[UNet2DConditionModel, Origins]:
    """SD's UNet itself where the latent has its channels; else widened as `widen_unet` does.

    Returns:
        The UNet in its own dtype and eval mode, and where its tensors come from.
    """
    origins = Origins(copied=list(narrow.state_dict()))
    config = unet_config(narrow)
    if latent_channels == config.in_channels:
        return narrow, origins
    with torch.device("meta"):
        wide = build_unet(replace(config, in_channels=latent_channels))
    # diffusers' own `to` warns at every dtype
    nn.Module.to(wide, dtype=next(narrow.parameters()).dtype)
    nn.Module.to_empty(wide, device="cpu")
    widen_unet(wide, narrow)
    origins.widened = ["conv_in.weight", "conv_out.weight", "conv_out.bias"]
    origins.copied = [key for key in origins.copied if key not in origins.widened]
    return wide.eval(), origins


def cat2i_from_sd(
    sd: StableDiffusion, *, latent_channels: int | None = None, head_channels: int = 64, composed_head: bool = True,
    coverage: float = COVERAGE,
) -> tuple[Text2LayerModel, dict[str, Any]]:
    """The whole model without text encoder (CLIP-L by name), and the report.

    Args:
        sd: with its UNet.
        latent_channels: see `autoencoder_from_sd`, as the others.
        head_channels: hidden width of the heads.
        composed_head: whether to have the auxiliary head.
        coverage: share of a picture that masks cover.

    Returns:
        The model, and part -> kind -> counts and, but for copied ones, names of tensors (plain values).

    Raises:
        ValueError: a number out of range, or no UNet.
    """
    if sd.unet is None:
        raise ValueError("sd must be read with its UNet, got none")
    autoencoder, first = autoencoder_from_sd(
        sd, latent_channels=latent_channels, head_channels=head_channels, composed_head=composed_head,
        coverage=coverage)
    unet, second = unet_from_sd(sd.unet, autoencoder.config.latent_channels)
    report: dict[str, Any] = {
        name: origins.counts(dict(part.state_dict())) | {"names": {"widened": origins.widened, "new": origins.new}}
        for name, part, origins in (("autoencoder", autoencoder, first), ("unet", unet, second))
    }
    card = {"stage": "initialised from Stable Diffusion", "images": 0, "coverage": coverage}
    return Text2LayerModel(autoencoder, unet, None, sd.schedule, card, CLIP_L), report


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """What was copied, widened and new, a line each."""
    for part, kinds in report.items():
        for kind in ("copied", "widened", "new"):
            counts = kinds[kind]
            names = kinds["names"].get(kind, [])
            groups = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
            yield (f"{part}: {kind} {counts['tensors']} tensors, {counts['parameters'] / 1e6:.3f} M values"
                   + (f" ({', '.join(groups)})" if groups else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 and one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m train.init_from_sd", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sd", type=Path, required=True, help="diffusers folder or .safetensors file of SD 1.x")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--latent-channels", type=int, help="of z, a multiple of SD's (default: SD's)")
    parser.add_argument("--head-channels", type=int, default=64, help="hidden width of the heads (default: 64)")
    parser.add_argument("--no-composed-head", action="store_true", help="without the auxiliary head (no-sup)")
    parser.add_argument("--coverage", type=float, default=COVERAGE,
                        help=f"share of a picture that masks cover, the foreground's weight in the encoder's first "
                             f"layer (default: {COVERAGE})")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="fp16", help="on disk (default: fp16)")
    arguments = parser.parse_args(argv)
    try:
        dtype = _DTYPES[arguments.dtype]
        model, report = cat2i_from_sd(
            read_sd(arguments.sd, dtype), latent_channels=arguments.latent_channels,
            head_channels=arguments.head_channels, composed_head=not arguments.no_composed_head,
            coverage=arguments.coverage)
        save_checkpoint(arguments.out, model, dtype)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(report_lines(report)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
