"""What reference implementations were given and the tests give ours: made from seeds, by numpy alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FEATURE_SETS = {  # name -> samples, samples of the reference, dimensions
    "many": (400, 300, 24),
    "equal": (200, 200, 24),
    "few": (20, 16, 24),
}
PICTURE_SIZES = {"small": (48, 65), "same": (299, 299), "wide": (331, 500)}  # height, width
STACK_SIZES = {"same": (3, 3), "split": (4, 3), "joined": (3, 5), "apart": (5, 5)}  # layers predicted, true
SAMPLED = (slice(3, None, 61), slice(5, None, 61))  # the pixels of a resized picture that are recorded


def recorded(name: str) -> dict[str, Any]:
    """The figures of NAME.json."""
    return json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))["figures"]


def features(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features, (N, D) and (N', D) float64, the second set shifted and wider."""
    count, reference_count, dimensions = FEATURE_SETS[name]
    random = np.random.default_rng(dimensions + count)
    mixing = random.normal(size=(dimensions, dimensions)) / dimensions**0.5
    first = random.normal(size=(count, dimensions)) @ mixing
    second = 0.3 + random.normal(size=(reference_count, dimensions)) @ (1.2 * mixing + 0.2 * np.eye(dimensions))
    return first, second


def picture(name: str) -> np.ndarray:
    """Waves, an edge and noise, (H, W, 3) uint8."""
    height, width = PICTURE_SIZES[name]
    random = np.random.default_rng(height)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 3), np.cos(y / 5), np.sin((x + y) / 7)], axis=-1)
    values = 128 + 70 * waves + 60 * (x > width / 3)[..., None] + random.normal(0, 25, (height, width, 3))
    return values.clip(0, 255).astype(np.uint8)


def saliency_maps() -> tuple[np.ndarray, np.ndarray]:
    """Maps and truths, (9, H, W) uint8 each: good, shifted, noisy, inverted, flat; truth empty, full, one pixel."""
    random = np.random.default_rng(7)
    height, width = 37, 52
    thing = _blob(height, width, 15, 20, 9) | _blob(height, width, 24, 38, 6)
    soft = 0.8 * thing + 0.2 * random.random((height, width))
    shifted = np.roll(soft, (3, -5), (0, 1))
    noise = random.random((height, width))
    pixel = np.zeros_like(thing)
    pixel[10, 40] = True
    maps = [soft, shifted, 0.5 * soft + 0.5 * noise, 1 - soft, np.full_like(soft, 0.4), soft, soft, noise, thing]
    things = [thing] * 5 + [np.zeros_like(thing), np.ones_like(thing), pixel, thing]
    return (255 * np.stack(maps)).astype(np.uint8), 255 * np.stack(things).astype(np.uint8)


def mattes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted and true mattes, (4, H, W) in [0, 1] in k / 255, and where they are judged, bool."""
    random = np.random.default_rng(11)
    height, width = 45, 60
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - 21, x - 26) + 2 * np.sin(np.arctan2(y - 21, x - 26) * 5)
    truth = np.clip((17 - distance) / 8, 0, 1)
    island = np.clip((4 - np.hypot(y - 8, x - 52)) / 3, 0, 1)
    predictions = [
        np.clip(truth + 0.1 * random.normal(size=truth.shape) * ((truth > 0) & (truth < 1)), 0, 1),
        np.maximum(truth, 0.8 * island),
        np.where(np.abs(x - 30) < 3, 0.3, 1) * truth,
        np.zeros_like(truth),
    ]
    truths = [truth, truth, np.maximum(truth, island), truth]
    unknown = np.broadcast_to((truth > 0.02) & (truth < 0.98), (4, height, width))
    return (255 * np.stack(predictions)).round() / 255, (255 * np.stack(truths)).round() / 255, unknown


def stacks(name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predicted and true layers, bottom first, (H, W, 4) uint8: an opaque ground and discs over it."""
    random = np.random.default_rng(len(name))
    predicted_count, true_count = STACK_SIZES[name]
    count = max(predicted_count, true_count)
    discs = [_disc_layer(random, number) for number in range(count)]
    noisy = [np.clip(disc + random.integers(-9, 10, disc.shape), 0, 255) * (disc[..., 3:] > 0) for disc in discs]
    if name == "apart":
        noisy = noisy[::-1]
    predicted = [layer.astype(np.uint8) for layer in noisy]
    return _shortened(predicted, predicted_count), _shortened([disc.astype(np.uint8) for disc in discs], true_count)


def _blob(height: int, width: int, row: int, column: int, radius: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (y - row) ** 2 + (x - column) ** 2 < radius**2


def _disc_layer(random: np.random.Generator, number: int) -> np.ndarray:
    side = 48
    y, x = np.mgrid[:side, :side]
    distance = np.hypot(y - 18 - 4 * number, x - 16 - 5 * number)
    alpha = np.clip((13 - distance) / 3, 0, 1) if number else np.ones_like(distance)
    colour = np.broadcast_to(random.integers(0, 256, 3), (side, side, 3)) * (alpha > 0)[..., None]
    return np.concatenate([colour, (255 * alpha).round()[..., None]], axis=-1).astype(int)


def _shortened(layers: list[np.ndarray], count: int) -> list[np.ndarray]:
    """The layers without those just above the ground that are too many, as if these were never found."""
    return layers[:1] + layers[len(layers) - count + 1 :]
