"""How long and how fast to train: the section `training` of every trainer's config, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long and how fast.

    Attributes:
        images: samples to see in all.
        batch_size: samples per optimiser step, over all processes and accumulated parts.
        accumulation: parts a step is cut into.
        learning_rate: peak of the cosine schedule.
        final_learning_rate: its end, as a share of the peak.
        warmup_images: samples of linear warm-up.
        weight_decay: AdamW's, on tensors with two or more dimensions.
        beta2: AdamW's second momentum.
        grad_clip: largest norm of the gradient.
        ema_half_life: samples after which half of the EMA is new; at most a tenth of those seen. 0 switches it off.
        precision: "fp32", or "bf16" autocast.
        seed: of weights, noise and dropout.
        save_images: samples between saved states.
        sheet_images: samples between sample sheets.
        validation_images: samples between validation figures, the mean losses on the held-out split; 0 has none.
        validation_samples: held-out samples of one figure, always the first ones.
        gradient_checkpointing: keep the inputs of blocks alone and compute what is inside anew going backwards.
        ema_device: where the EMA is kept, "model" beside the model or "cpu".
        trackers: "tensorboard" (files in the run folder) and "wandb", beside log.csv; None is TensorBoard, and wandb
            where it is installed.

    Raises:
        ValueError: numbers out of range, all in one line.
    """

    images: int
    batch_size: int
    learning_rate: float
    accumulation: int = 1
    final_learning_rate: float = 0.05
    warmup_images: int = 0
    weight_decay: float = 0.0
    beta2: float = 0.99
    grad_clip: float = 1.0
    ema_half_life: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    save_images: int = 50_000
    sheet_images: int = 50_000
    validation_images: int = 0
    validation_samples: int = 256
    gradient_checkpointing: bool = False
    ema_device: Literal["model", "cpu"] = "model"
    trackers: tuple[Literal["tensorboard", "wandb"], ...] | None = None

    def __post_init__(self) -> None:
        """Collects every problem and raises once."""
        problems = [f"{name} must be above 0, got {value}" for name, value in (
            ("images", self.images), ("batch_size", self.batch_size), ("learning_rate", self.learning_rate),
            ("accumulation", self.accumulation), ("grad_clip", self.grad_clip), ("save_images", self.save_images),
            ("sheet_images", self.sheet_images), ("validation_samples", self.validation_samples)) if not value > 0]
        if self.accumulation > 0 and self.batch_size % self.accumulation:
            problems.append(f"batch_size must be a multiple of accumulation={self.accumulation}, got {self.batch_size}")
        problems += [f"{name} must not be negative, got {value}" for name, value in (
            ("warmup_images", self.warmup_images), ("weight_decay", self.weight_decay),
            ("ema_half_life", self.ema_half_life), ("final_learning_rate", self.final_learning_rate),
            ("seed", self.seed), ("validation_images", self.validation_images)) if not value >= 0]
        if not 0 <= self.beta2 < 1:
            problems.append(f"beta2 must be in [0, 1), got {self.beta2}")
        if problems:
            raise ValueError("; ".join(problems))


def learning_rate(config: TrainingConfig, images: int, start: int = 0) -> float:
    """Linear warm-up, then a cosine from the peak to its end, at a count of samples; `start` is where the run began."""
    warm = min(1.0, (images - start + config.batch_size) / max(config.warmup_images, 1))
    progress = min(1.0, images / config.images)
    cosine = config.final_learning_rate + (1 - config.final_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * warm * cosine


def ema_decay(config: TrainingConfig, images: int) -> float:
    """Decay of one step; the half-life grows with the images seen (a tenth of them) up to the configured one."""
    half_life = min(config.ema_half_life, max(images, config.batch_size) / 10)
    return 0.5 ** (config.batch_size / half_life)
