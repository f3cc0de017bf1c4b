"""The model that the pack carries: its size, its precision, its card, and the figures that it must reach."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from text2layer_core.checkpoint import CheckpointHeader, bundled_model_path, load_checkpoint, read_header
from train.evaluate import model_digest
from train.judge import Interval

CARD = Path(__file__).parents[2] / "models" / "README.md"
EVALUATION = CARD.with_name("evaluation.json")
RECONSTRUCTION = {
    "composed, PSNR dB": "composed_psnr", "foreground where m > 0.5, PSNR dB": "foreground_psnr",
    "background, PSNR dB": "background_psnr", "mask, soft IoU": "mask_soft_iou",
    "mask, SAD in the soft band, pixels": "mask_soft_band_sad",
}
EVALUATED = {
    "thing, top-1 by text": "thing_top1", "thing, top-1 by the nearest sprite": "thing_top1_nearest_sprite",
    "place, top-1 by text": "place_top1", "side, where the prompt names one": "side",
    "IOU against the saliency reference": "iou_saliency", "soft IOU against it": "soft_iou_saliency",
    "MAE against it": "mae_saliency", "S measure": "s_measure", "E measure": "e_measure", "F measure": "f_measure",
    "consistency, dB": "consistency_psnr", "foreground leakage into the background": "leakage",
    "the same of another thing": "leakage_other_thing", "fringe, 1/255": "fringe", "ghost": "ghost",
    "similarity of picture and caption": "similarity", "Frechet distance, evaluator's features": "frechet_distance",
    "mask: area": "area", "mask: softness": "softness", "mask: components": "components",
}
MOST_BYTES = 40_000_000
LEAST_THINGS, LEAST_PLACES = 60, 8


@pytest.fixture(scope="module")
def header() -> CheckpointHeader:
    return read_header(bundled_model_path())


def words(section: str, start: str, end: str) -> list[str]:
    """The words of a list between two marks, without its line breaks and its full stop."""
    found = section.split(start)[1].split(end)[0]
    return [" ".join(word.split()) for word in found.strip().rstrip(".").split(",")]


def test_the_file_is_small_and_in_half_precision() -> None:
    """One-dimensional tensors, BatchNorm's statistics among them, in full precision; counters are integers."""
    path = bundled_model_path()
    assert path.stat().st_size <= MOST_BYTES
    with safe_open(path, "pt") as handle:
        tensors = [handle.get_tensor(key) for key in handle.keys()]  # noqa: SIM118
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floating if tensor.ndim > 1} == {torch.float16}
    assert {tensor.dtype for tensor in floating if tensor.ndim <= 1} == {torch.float32}


def test_the_card_names_what_the_model_was_trained_on(header: CheckpointHeader) -> None:
    """As many things as the file says, the same places but for a word more ("wooden floor"), licence and seed."""
    icons = header.card["data"]["icons"]
    card = CARD.read_text(encoding="utf-8")
    section = card.split("## Things and places")[1].split("\n## ")[0]
    things = words(section, "\n\n", "\n\n")
    places = words(section, "At these places:", "\n\n")
    assert len(set(things)) == len(things) == len(icons["things"]) >= LEAST_THINGS
    assert len(places) == len(icons["places"]) >= LEAST_PLACES
    assert all(place.endswith(key) for place, key in zip(places, icons["places"], strict=True))
    assert header.card["licences"]["weights"] == "Apache-2.0"
    assert {"images", "seed", "hardware", "resolution", "guidance_scale", "latent_rgb"} <= header.card.keys()
    assert re.search(rf"^\| seed \| {header.card['seed']} \|$", card, re.MULTILINE)


def test_the_figures_reach_what_is_asked_of_a_model_trained_on_a_cpu(header: CheckpointHeader) -> None:
    """`train.check`'s figures as the file carries them: against the thumbnails', and the generation's own limits."""
    figures: dict[str, Any] = header.card["figures"]
    reached = {name: values["model"] for name, values in figures["autoencoder"].items()}
    blurred = {name: values["thumbnail"] for name, values in figures["autoencoder"].items() if "thumbnail" in values}
    assert reached["composed_psnr"] >= blurred["composed_psnr"] + 1
    assert reached["foreground_psnr"] >= blurred["foreground_psnr"] + 3
    assert reached["background_psnr"] >= min(blurred["background_psnr"], 30)
    assert reached["mask_soft_iou"] >= 0.97
    assert reached["mask_soft_band_sad"] <= blurred["mask_soft_band_sad"] / 2
    drawn = figures["generation"]
    assert (drawn["prompts"], drawn["steps"]) == (64, 50)
    assert drawn["guidance_scale"] == header.card["guidance_scale"]
    assert drawn["thing_top1"] >= 0.8
    assert drawn["place_top1"] >= 0.95
    assert drawn["consistency_psnr"] >= 33
    assert drawn["mask_area_within_2_and_90_percent"] >= 0.95
    seen = figures["images"]
    assert (seen["model"] if isinstance(seen, dict) else seen) == header.card["images"], "figures of another state"


def test_the_card_prints_the_files_figures(header: CheckpointHeader) -> None:
    """Those of `train.check` are in the file itself."""
    card, figures = CARD.read_text(encoding="utf-8"), header.card["figures"]
    for title, key in RECONSTRUCTION.items():
        reached, blurred = figures["autoencoder"][key]["model"], figures["autoencoder"][key]["thumbnail"]
        assert f"| {title} | {reached:.3f} | {blurred:.3f} |" in card
    drawn = figures["generation"]
    for title, key in (("thing, top-1 by the nearest sprite", "thing_top1"),
                       ("place, top-1 by a linear probe", "place_top1")):
        assert f"| {title} | {drawn[key]:.3f} | {drawn[f'{key}_true_composites']:.3f} |" in card


def test_the_card_prints_the_evaluation_of_these_very_weights() -> None:
    """`train.evaluate`'s report beside it, row by row: the model, its autoencoder, true layers."""
    card, report = CARD.read_text(encoding="utf-8"), json.loads(EVALUATION.read_text(encoding="utf-8"))
    assert report["weights"] == model_digest(load_checkpoint(bundled_model_path()))
    assert (report["count"], report["steps"], report["sampler"], report["split"]) == (512, 50, "ddim", "held_out")
    for title, key in EVALUATED.items():
        cells = [str(Interval(**report[who][key])) if key in report[who] else ""
                 for who in ("model", "autoencoder", "truth")]
        assert f"| {title} | {' | '.join(cells)} |".replace("  ", " ") in card
