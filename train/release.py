"""Puts a trained model in its place, its card completed: `python -m train.release --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from text2layer_core.checkpoint import Text2LayerModel, load_checkpoint, save_checkpoint
from train.check import images_seen
from train.commands import exit_status

LICENCES = {
    "weights": "Apache-2.0",
    "@iconify-json/fluent-emoji": "MIT, Microsoft Corporation (Fluent Emoji)",
    "@iconify-json/noto": "Apache-2.0, Google Inc (Noto Emoji)",
    "emojilib": "MIT, Mu-An Chiou",
}


def take_decoder(model: Text2LayerModel, finer: Text2LayerModel) -> None:
    """Replaces the autoencoder by one that encodes the same and decodes better.

    Raises:
        ValueError: the encoders differ, so the UNet would not fit.
    """
    ours, theirs = model.autoencoder.state_dict(), finer.autoencoder.state_dict()
    encoder = [key for key in ours if key.startswith(("encoder.", "quant_conv."))]
    config = replace(finer.autoencoder.config, background_decoder=model.autoencoder.config.background_decoder)
    if config != model.autoencoder.config or not all(torch.equal(ours[key], theirs[key]) for key in encoder):
        raise ValueError("--autoencoder must have the model's own encoder (train it with frozen_encoder), got another")
    model.autoencoder = finer.autoencoder
    model.card["autoencoder"] = finer.card


def read_report(path: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """What `python -m train.check --json` printed for the model with this card.

    Raises:
        ValueError: the file holds no JSON object, or one of another model.
        OSError: it cannot be read.
    """
    try:
        report: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--report must be JSON, got {path}: {error}") from error
    if not isinstance(report, dict):
        raise ValueError(f"--report must hold a JSON object, got {path}")
    figures = cast("dict[str, Any]", report)
    if figures.get("images") != images_seen(card):
        raise ValueError(f"--report must be of this model, trained on {images_seen(card)} images, "
                         f"got one of {figures.get('images')}")
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, 2 on bad input, 130 when it was stopped, both with one line."""
    parser = argparse.ArgumentParser(prog="python -m train.release", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="export of train_diffusion (model.safetensors)")
    parser.add_argument("--report", type=Path,
                        help="what `python -m train.check --json` printed (without it the card has no figures)")
    parser.add_argument("--autoencoder", type=Path,
                        help="export of train_autoencoder with frozen_encoder, to decode with")
    parser.add_argument("--name", default="text2layer-mini")
    parser.add_argument("--hardware", required=True, help='what it was trained on ("two CPU cores, 2 hours")')
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    return exit_status(lambda: release(arguments), "stopped")


def release(arguments: argparse.Namespace) -> None:
    """Completes the card and writes the file; ValueError or OSError where something does not fit."""
    model = load_checkpoint(arguments.model)
    if arguments.autoencoder is not None:
        take_decoder(model, load_checkpoint(arguments.autoencoder))
    model.card |= {"name": arguments.name, "hardware": arguments.hardware, "licences": LICENCES}
    if arguments.report is not None:
        model.card["figures"] = read_report(arguments.report, model.card)
    save_checkpoint(arguments.out, model)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
