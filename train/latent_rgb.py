"""Fits the factors of ComfyUI's live preview to a model's latents: `python -m train.latent_rgb --model FILE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from text2layer_core import metrics
from text2layer_core.checkpoint import Text2LayerModel, load_checkpoint, save_checkpoint
from text2layer_core.compositing import compose
from train.check import open_icons
from train.samples import LayeredBatch

CARD_KEY = "latent_rgb"
_SCENES, _UNSEEN = 256, 64


@torch.no_grad()
def preview_pairs(model: Text2LayerModel, batch: LayeredBatch) -> tuple[Tensor, Tensor]:
    """Scaled latents with a one appended (cells, C + 1), and the composed picture's mean colours, (cells, 3)."""
    latents = model.autoencoder.encode(batch.image).mode() * model.schedule.latent_scale
    colours = functional.avg_pool2d(compose(batch.image), model.autoencoder.config.downscale)
    cells = latents.movedim(1, -1).flatten(0, 2)
    return torch.cat([cells, torch.ones_like(cells[:, :1])], 1), colours.movedim(1, -1).flatten(0, 2)


def fit_latent_rgb(latents: Tensor, colours: Tensor) -> dict[str, list[list[float]] | list[float]]:
    """Least squares from latents to colours in [-1, 1], as ComfyUI's latent formats hold them.

    Args:
        latents: (cells, C + 1), as `preview_pairs` gives them.
        colours: (cells, 3) in [0, 1].

    Returns:
        "factors", C rows of three, and "bias", three numbers.
    """
    solution = torch.linalg.lstsq(latents.double(), colours.double() * 2 - 1).solution
    rows = [[round(value, 5) for value in row] for row in solution.tolist()]
    return {"factors": rows[:-1], "bias": rows[-1]}


def preview_psnr(latents: Tensor, colours: Tensor, fitted: dict[str, list[list[float]] | list[float]]) -> float:
    """PSNR in dB of the preview's colours, clamped as the host clamps them, against the true ones."""
    weights = torch.cat([torch.tensor(fitted["factors"]), torch.tensor(fitted["bias"])[None]])
    preview = ((latents @ weights + 1) / 2).clamp(0, 1)
    return float(metrics.psnr(preview.T[None, ..., None], colours.T[None, ..., None]))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command: the model's card gets the factors, in place; 0, or 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m train.latent_rgb", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint trained on icons; its card is completed")
    parser.add_argument("--sprites", type=Path, help="sprite cache (default: the one that the model's card names)")
    arguments = parser.parse_args(argv)
    try:
        model = load_checkpoint(arguments.model)
        source = open_icons(model, "train", arguments.sprites)
        fitted = fit_latent_rgb(*preview_pairs(model, source.batch(0, _SCENES)))
        model.card[CARD_KEY] = fitted
        save_checkpoint(arguments.model, model)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    psnr = preview_psnr(*preview_pairs(model, source.batch(_SCENES, _UNSEEN)), fitted)
    print(f"preview against composed, {_UNSEEN} other scenes: {psnr:.1f} dB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
