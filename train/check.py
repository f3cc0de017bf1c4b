"""Held-out figures of a model trained on icons: `python -m train.check --model FILE [--json]`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from text2layer_core import matting_metrics, metrics
from text2layer_core.autoencoder import DecodedLayers, LatentDistribution
from text2layer_core.checkpoint import Text2LayerModel, bundled_model_path, load_checkpoint
from text2layer_core.compositing import compose
from text2layer_core.layers import TwoLayerImage
from text2layer_core.pipeline import Text2LayerPipeline
from train.commands import exit_status
from train.config import parse
from train.data import DataConfig, expand
from train.icons.source import IconSource
from train.icons.sprites import load_sprites
from train.pictures import save_grid

MOST_DECIBEL = 100.0
_BATCH = 16
_THUMBNAIL = 8
_SPREAD_PROMPTS, _SPREAD_SEEDS = 8, 4
_PROBE_SCENES, _PROBE_UNSEEN = 2000, 500
_PROBE_SIDE = 8
_SHEET_COLUMNS = 8


class LayeredCoder(Protocol):
    """What codes the stack [F, B, m]: CaT2I-AE, or a baseline in its place."""

    def encode_stack(self, stack: Tensor) -> LatentDistribution:
        """(N, 7, H, W) -> the distribution of z."""
        ...

    def decode(self, latents: Tensor) -> DecodedLayers:
        """Latents -> layers in [0, 1]."""
        ...


def thumbnail(picture: Tensor) -> Tensor:
    """A picture (N, C, H, W) shrunk eightfold and enlarged again, bicubic: what a mere blur keeps."""
    small = functional.interpolate(picture, scale_factor=1 / _THUMBNAIL, mode="bicubic", antialias=True)
    return functional.interpolate(small, size=picture.shape[-2:], mode="bicubic").clamp(0, 1)


def reconstruction_figures(prediction: TwoLayerImage, truth: TwoLayerImage) -> dict[str, Tensor]:
    """Figures of each picture (N,), in dB, shares, and alpha units x pixels (the gradient's and connectivity's / 1000).

    PSNR ends at 100 dB, so that equal pictures do not make a mean infinite; the foreground's is NaN where the truth
    shows nothing solid.
    """
    foreground = metrics.masked_psnr(prediction.foreground, truth.foreground, truth.mask)
    return {
        "composed_psnr": _psnr(compose(prediction), compose(truth)),
        "foreground_psnr": foreground.clamp(max=MOST_DECIBEL),
        "background_psnr": _psnr(prediction.background, truth.background),
        "mask_iou": metrics.iou(prediction.mask, truth.mask),
        "mask_soft_iou": metrics.soft_iou(prediction.mask, truth.mask),
        "mask_soft_band_sad": metrics.soft_band_sad(prediction.mask, truth.mask),
        "mask_sad": metrics.sad(prediction.mask, truth.mask),
        "mask_mse": matting_metrics.mse(prediction.mask, truth.mask),
        "mask_gradient": matting_metrics.gradient_error(prediction.mask, truth.mask),
        "mask_connectivity": matting_metrics.connectivity_error(prediction.mask, truth.mask),
    }


@torch.no_grad()
def check_reconstruction(
    autoencoder: LayeredCoder, source: IconSource, count: int, device: torch.device
) -> dict[str, float | None]:
    """Reconstruction of a source's first scenes: figure name -> mean over the scenes; None where none has it."""

    def figures(truth: TwoLayerImage) -> dict[str, Tensor]:
        decoded = autoencoder.decode(autoencoder.encode_stack(truth.stack()).mode())
        found = reconstruction_figures(decoded.layers, truth)
        if decoded.predicted_composed is not None:
            found["predicted_composed_psnr"] = _psnr(decoded.predicted_composed, compose(truth))
        return found

    return _mean_figures(source, count, device, figures)


def check_thumbnails(source: IconSource, count: int, device: torch.device) -> dict[str, float | None]:
    """The same figures of the scenes' thumbnails."""

    def figures(truth: TwoLayerImage) -> dict[str, Tensor]:
        blurred = TwoLayerImage(*(thumbnail(part) for part in (truth.foreground, truth.background, truth.mask)))
        composed = _psnr(thumbnail(compose(truth)), compose(truth))
        return reconstruction_figures(blurred, truth) | {"composed_psnr": composed}

    return _mean_figures(source, count, device, figures)


def check_autoencoder(model: Text2LayerModel, source: IconSource, count: int, device: torch.device) -> dict[str, Any]:
    """Reconstruction of held-out scenes, beside their thumbnails'.

    Args:
        model: any checkpoint.
        source: held-out scenes.
        count: how many.
        device: where to compute.

    Returns:
        Figure name -> {"model", "thumbnail"}, means over the scenes; None where no scene has that figure.
    """
    reached = check_reconstruction(model.autoencoder.to(device).eval(), source, count, device)
    blurred = check_thumbnails(source, count, device)
    return {key: {"model": value} | ({"thumbnail": blurred[key]} if key in blurred else {})
            for key, value in reached.items()}


class PlaceProbe:
    """Which place a background shows: a linear classifier on its 8x8 thumbnail, fitted on true training scenes."""

    def __init__(self, source: IconSource) -> None:
        """Fits the probe.

        Args:
            source: training scenes.
        """
        self.places = source.places
        features, labels = self._examples(source, 0, _PROBE_SCENES)
        self._mean, self._deviation = features.mean(0), features.std(0) + 1e-4
        self._linear = nn.Linear(features.shape[1], len(self.places))
        for parameter in self._linear.parameters():
            nn.init.zeros_(parameter)
        optimizer = torch.optim.LBFGS(self._linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            penalty = 1e-3 * self._linear.weight.square().sum()
            loss = functional.cross_entropy(self._linear(self._normalised(features)), labels) + penalty
            loss.backward()
            return loss

        optimizer.step(closure)  # pyright: ignore[reportArgumentType] - its stub wants a float
        unseen, answers = self._examples(source, _PROBE_SCENES, _PROBE_UNSEEN)
        self.accuracy = float((self._answer(unseen) == answers).float().mean())

    def __call__(self, background: Tensor) -> Tensor:
        """Index of the place of each background (N, 3, H, W), (N,)."""
        return self._answer(self._features(background))

    def _examples(self, source: IconSource, start: int, count: int) -> tuple[Tensor, Tensor]:
        blocks = [source.batch(i, 50).stack[:, 3:6] for i in range(start, start + count, 50)]
        return torch.cat([self._features(block) for block in blocks]), source.labels(start, count)[1]

    def _features(self, background: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(background.cpu(), _PROBE_SIDE).flatten(1)

    def _normalised(self, features: Tensor) -> Tensor:
        return (features - self._mean) / self._deviation

    @torch.no_grad()
    def _answer(self, features: Tensor) -> Tensor:
        return self._linear(self._normalised(features)).argmax(1)


def check_generation(
    pipeline: Text2LayerPipeline, train: IconSource, held_out: IconSource, count: int, *, steps: int,
    guidance_scale: float, sampler: str = "ddim", sheet: Path | None = None,
) -> dict[str, Any]:
    """Pictures of held-out prompts: do they show the thing and the place, and do the layers fit.

    Args:
        pipeline: the model.
        train: training scenes, for the place probe.
        held_out: scenes whose captions are drawn.
        count: how many prompts.
        steps: of the sampler.
        guidance_scale: of the sampler.
        sampler: "ddim" or "dpmpp".
        sheet: where to save the pictures, if anywhere.

    Returns:
        Plain figures; shares in [0, 1], dB; None where a figure needs another head, or several prompts.
    """
    prompts = held_out.captions(0, count)
    settings: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale, "sampler": sampler,
                                "width": held_out.size, "height": held_out.size}
    bank = metrics.sprite_bank(*held_out.sprites(64))
    asked, places = held_out.labels(0, count)
    probe = PlaceProbe(train)
    drawn: list[TwoLayerImage] = []
    consistency: list[Tensor] = []
    for start in tqdm(range(0, count, _BATCH), desc="generation", unit="batch", file=sys.stderr):
        output = pipeline(prompts[start : start + _BATCH], seed=start, **settings)
        drawn.append(output.layers.to("cpu"))
        if output.predicted_composed is not None:
            consistency.append(_psnr(output.predicted_composed, output.composed).cpu())
    layers = TwoLayerImage.from_stack(torch.cat([image.stack() for image in drawn]))
    truth = held_out.batch(0, count).image
    area = layers.mask.mean(dim=(1, 2, 3))
    composed = compose(layers)
    if sheet is not None:
        white = composed.new_ones(-count % _SHEET_COLUMNS, *composed.shape[1:])
        save_grid(sheet, torch.cat([composed, white]).split(_SHEET_COLUMNS))
    few = prompts[:_SPREAD_PROMPTS]
    again = torch.stack([pipeline(few, seed=1000 * (k + 1), **settings).composed.cpu() for k in range(_SPREAD_SEEDS)])
    return {
        "prompts": count, "steps": steps, "guidance_scale": guidance_scale, "sampler": sampler,
        "thing_top1": _share(metrics.nearest_sprite(layers.foreground, layers.mask, bank) == asked),
        "thing_top1_true_composites": _share(metrics.nearest_sprite(truth.foreground, truth.mask, bank) == asked),
        "thing_top1_chance": 1 / len(held_out.things),
        "place_top1": _share(probe(layers.background) == places),
        "place_top1_true_composites": probe.accuracy,
        "consistency_psnr": _finite(torch.cat(consistency).mean()) if consistency else None,
        "mask_area_within_2_and_90_percent": _share((area > 0.02) & (area < 0.9)),
        "spread_between_seeds": _spread(again.transpose(0, 1)),
        "spread_between_prompts": _spread(again),
    }


def _psnr(prediction: Tensor, target: Tensor) -> Tensor:
    return metrics.psnr(prediction, target).clamp(max=MOST_DECIBEL)


def _spread(groups: Tensor) -> float | None:
    """Mean root-mean-square difference between the pictures of each group, (groups, n, 3, H, W); None for n = 1."""
    differences = (groups.unsqueeze(1) - groups.unsqueeze(2)).square().mean(dim=(3, 4, 5)).sqrt()
    count = groups.shape[1]
    return float(differences.sum() / (len(groups) * count * (count - 1))) if count > 1 else None


def _mean_figures(
    source: IconSource, count: int, device: torch.device, figures: Callable[[TwoLayerImage], Mapping[str, Tensor]]
) -> dict[str, float | None]:
    """Means of what is said of each of a source's first scenes; None where none has that figure."""
    found: dict[str, list[Tensor]] = {}
    for start in tqdm(range(0, count, _BATCH), desc="autoencoder", unit="batch", file=sys.stderr):
        for key, values in figures(source.batch(start, min(_BATCH, count - start), device).image).items():
            found.setdefault(key, []).append(values.cpu())
    return {key: _finite(torch.cat(values).nanmean()) for key, values in found.items()}


def _finite(value: Tensor) -> float | None:
    """The number; None, JSON's null, for NaN."""
    number = float(value)
    return number if math.isfinite(number) else None


def _share(hits: Tensor) -> float:
    return float(hits.float().mean())


def format_report(report: Mapping[str, Any]) -> str:
    """The report as text, a figure a line."""
    lines = ["autoencoder (held-out scenes)" + " " * 13 + "model  thumbnail"]
    for name, values in report["autoencoder"].items():
        lines.append(f"  {name:36s}{_cell(values['model'])} {_cell(values.get('thumbnail', ''))}".rstrip())
    if "generation" in report:
        lines.append("generation (held-out prompts)")
        for name, value in report["generation"].items():
            lines.append(f"  {name:36s}{_cell(value)}")
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:10.3f}" if isinstance(value, float) else f"{'-' if value is None else value!s:>10}"


def check_arguments(arguments: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Raises one ValueError that lists every number out of range, before any work.

    Args:
        arguments: with cfg, device, and all names of `least`.
        least: name -> the smallest number that it may be.
    """
    problems = [f"--{name} must be at least {number}, got {getattr(arguments, name)}"
                for name, number in least.items() if getattr(arguments, name) < number]
    if arguments.cfg is not None and not (math.isfinite(arguments.cfg) and arguments.cfg >= 0):
        problems.append(f"--cfg must be finite and at least 0, got {arguments.cfg}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        problems.append("--device must be one that this machine has, got cuda")
    if problems:
        raise ValueError("; ".join(problems))


def open_icons(model: Text2LayerModel, split: str, sprites: Path | None) -> IconSource:
    """The icon scenes that a model's card names; `sprites` is another place of their cache.

    Raises:
        ValueError: the card names no icons, or the cache is not there.
    """
    if "data" not in model.card:
        raise ValueError("--model must carry the section data in its card, got a card without one")
    data = parse(model.card["data"], DataConfig, "card: data")
    if data.icons is None:
        raise ValueError(f"--model must be trained on icons, got the source {data.source}")
    cache = load_sprites(sprites or expand(data.icons.cache))
    return IconSource(cache, data.icons, data.size, data.seed, split)


def images_seen(card: Mapping[str, Any]) -> dict[str, Any]:
    """Images that the model was trained on, and its decoder, where that went on alone: they tell states apart."""
    decoder = card.get("autoencoder") or {}
    return {"model": card.get("images"), "decoder": decoder.get("images")}


def run_check(arguments: argparse.Namespace) -> dict[str, Any]:
    """Computes the report; ValueError on a model or data that do not fit."""
    check_arguments(arguments, {"scenes": 1, "prompts": 0, "steps": 1})
    device = torch.device(arguments.device)
    model = load_checkpoint(arguments.model or bundled_model_path(), device=device)
    train, held_out = (open_icons(model, split, arguments.sprites) for split in ("train", "held_out"))
    pipeline = Text2LayerPipeline(model, device) if model.unet is not None and arguments.prompts else None
    report: dict[str, Any] = {"images": images_seen(model.card),
                              "autoencoder": check_autoencoder(model, held_out, arguments.scenes, device)}
    if pipeline is not None:
        guidance = arguments.cfg if arguments.cfg is not None else model.guidance_scale
        report["generation"] = check_generation(
            pipeline, train, held_out, arguments.prompts, steps=arguments.steps,
            guidance_scale=guidance, sampler=arguments.sampler, sheet=arguments.sheet,
        )
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, 2 on bad input, 130 when it was stopped, both with one line."""
    parser = argparse.ArgumentParser(prog="python -m train.check", description=__doc__)
    parser.add_argument("--model", type=Path, help="checkpoint (default: the bundled one)")
    parser.add_argument("--sprites", type=Path, help="sprite cache (default: the one that the model's card names)")
    parser.add_argument("--scenes", type=int, default=512, help="held-out scenes for the autoencoder")
    parser.add_argument("--prompts", type=int, default=64, help="held-out prompts to draw; 0 skips the generation")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, help="guidance (default: the one in the model's card)")
    parser.add_argument("--sampler", default="ddim", choices=["ddim", "dpmpp"])
    parser.add_argument("--sheet", type=Path, help="PNG of the drawn pictures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    arguments = parser.parse_args(argv)

    def work() -> None:
        report = run_check(arguments)
        print(json.dumps(report, allow_nan=False) if arguments.json else format_report(report))

    return exit_status(work, "stopped")


if __name__ == "__main__":
    raise SystemExit(main())
