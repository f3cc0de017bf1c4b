"""Trains a quality filter (paper, data step 4): `python -m train.train_quality --config FILE`.

The run folder holds the filter (`model.safetensors`), its figures on held-out samples (`report.json`) and the ROC
(`roc.png`); they are made anew whenever the state is saved.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from text2layer_core.atomic import write_text
from text2layer_core.quality import (
    QualityConfig,
    QualityFilter,
    load_quality_filter,
    pretrained_quality_filter,
    save_quality_filter,
)
from train.data import expand
from train.engine import Objective, Part, TrainingConfig
from train.launch import launch
from train.pictures import save_grid
from train.quality_report import draw_roc, quality_figures
from train.quality_sets import FilesConfig, LabelledSet, TruthConfig, labelled_set, open_labelled
from train.samples import epoch_rows

_SHEET_SAMPLES = 8
_FLIP_STREAM = 4


@dataclass(frozen=True, kw_only=True)
class QualityTrainingConfig:
    """The whole config file; its defaults are the paper's numbers.

    Attributes:
        run: run folder, outside the checkout.
        kind: "mask" or "inpainting".
        network: its size; with `pretrained` only image_size counts.
        pretrained: folder of EfficientNet's ImageNet weights as transformers has them; None starts from nothing.
        trained: "last": the last layer alone, the trunk as it is (its BatchNorm too); "all": everything.
        files: labels of people; or
        truth: labels computed where the layers are known.
        cached: training samples at most; an epoch has as many as there are.
        held_out: samples that the figures are of.
        flip: mirror every second picture an epoch, drawn for each.
        beta: of the F measure that chooses the threshold, see `best_threshold`.
    """

    run: str
    kind: Literal["mask", "inpainting"]
    training: TrainingConfig
    network: QualityConfig = field(default_factory=QualityConfig)
    pretrained: str | None = None
    trained: Literal["last", "all"] = "last"
    files: FilesConfig | None = None
    truth: TruthConfig | None = None
    cached: int = 5000
    held_out: int = 1000
    flip: bool = True
    beta: float = 0.5

    def __post_init__(self) -> None:
        """Checks what no section checks."""
        for name, value, least in (("cached", self.cached, 1), ("held_out", self.held_out, 4)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, got {self.beta}")
        if (self.files is None) == (self.truth is None):
            raise ValueError("labels must come from one of the sections files and truth, "
                             f"got {'neither' if self.files is None else 'both'}")


@dataclass(frozen=True)
class QualityBatch:
    """One part: pictures (n, C, side, side) and labels (n,), 1 is good."""

    pictures: Tensor
    labels: Tensor


class QualityObjective(nn.Module):
    """Cross entropy of good and bad."""

    def __init__(self, model: QualityFilter, trained: str) -> None:
        """Freezes the trunk where only the last layer is trained."""
        super().__init__()
        self.filter, self._frozen = model, trained == "last"
        if self._frozen:
            model.trunk.requires_grad_(False)

    def forward(self, batch: QualityBatch) -> dict[str, Tensor]:
        """The "loss", and the share judged rightly at 0.5."""
        if self._frozen:
            self.filter.trunk.eval()
        logits = self.filter(batch.pictures).float()
        right = ((logits >= 0) == (batch.labels > 0.5)).float().mean()
        return {"loss": functional.binary_cross_entropy_with_logits(logits, batch.labels), "right": right}


class QualityTask:
    """What `engine.fit` trains.

    Attributes:
        report: the figures of the last export; None before it.
    """

    def __init__(self, config: QualityTrainingConfig) -> None:
        """Builds the network with the current seed and fills the cache of training samples."""
        self._config = config
        self.report: dict[str, Any] | None = None
        self.filter = _network(config)
        self._side = self.filter.config.image_size
        self._train = self._labelled("train", config.cached)
        self._held_out = self._labelled("held_out", config.held_out)
        labels = self._held_out.labels.numpy()
        quality_figures(np.zeros(len(labels)), labels, config.beta)  # fails now, not at the end, if they are all alike
        self.objectives: Sequence[Objective] = (Objective("filter", QualityObjective(self.filter, config.trained)),)
        self.ema_of: nn.Module = self.filter

    def batch(self, part: Part, device: torch.device) -> QualityBatch:
        """Samples in a new order every epoch, mirrored by their index."""
        seed = self._config.training.seed
        rows = epoch_rows(seed, part.start, part.count, len(self._train))
        pictures = self._train.pictures(rows)
        if self._config.flip:
            flips = [np.random.default_rng((seed, _FLIP_STREAM, index)).random() < 0.5
                     for index in range(part.start, part.start + part.count)]
            pictures = torch.where(torch.tensor(flips)[:, None, None, None], pictures.flip(3), pictures)
        return QualityBatch(pictures.to(device), self._train.labels[torch.from_numpy(rows)].float().to(device))

    def sheet(self, path: Path, images: int, device: torch.device) -> None:
        """Held-out samples that score highest and lowest, the mask below its picture."""
        scores = self._scores()
        order = np.argsort(-scores)
        rows: list[Tensor] = []
        for chosen in (order[:_SHEET_SAMPLES], order[-_SHEET_SAMPLES:]):
            pictures = self._held_out.pictures(np.sort(chosen))
            rows += [part if part.shape[1] == 3 else part.expand(-1, 3, -1, -1)
                     for part in (pictures[:, :3], pictures[:, 3:]) if part.shape[1]]
        save_grid(path, rows)

    def export(self, path: Path, images: int) -> None:
        """The filter with the threshold that held-out samples choose, its report and its ROC."""
        config = self._config
        scores, labels = self._scores(), self._held_out.labels.numpy()
        threshold, figures = quality_figures(scores, labels, config.beta)
        self.report = {"kind": config.kind, "images": images, "epochs": images / len(self._train),
                       "training_samples": len(self._train), **figures}
        self.filter.threshold = threshold
        source = config.truth or config.files
        self.filter.card = {**self.report, "seed": config.training.seed, "trained": config.trained,
                            "pretrained": config.pretrained is not None, "labels": asdict(source) if source else None}
        save_quality_filter(path, self.filter)
        draw_roc(path.with_name("roc.png"), scores, labels, threshold, f"{config.kind} filter, {images} images")
        text = json.dumps(self.report, indent=2) + "\n"
        write_text(path.with_name("report.json"), text)

    def load_weights(self, path: Path) -> int:
        """Another filter's weights, of the same kind and size."""
        other = load_quality_filter(path)
        if (other.kind, other.config) != (self.filter.kind, self.filter.config):
            raise ValueError(f"--init-from must hold a {self.filter.kind} filter of the configured size, got {path}")
        self.filter.load_state_dict(other.state_dict())
        return int(other.card.get("images", 0))

    def _scores(self) -> NDArray[np.float64]:
        """Of the held-out samples, by the present weights."""
        scores = [self.filter.scores(self._held_out.pictures(slice(start, start + 64)))
                  for start in range(0, len(self._held_out), 64)]
        return torch.cat(scores).double().numpy()

    def _labelled(self, split: Literal["train", "held_out"], count: int) -> LabelledSet:
        config = self._config
        pictures = open_labelled(config.files, config.truth, config.kind, self._side, config.held_out, split)
        return labelled_set(expand(config.run) / f"cache-{split}", pictures, config.kind, self._side, count)


def make_task(config: QualityTrainingConfig, device: torch.device) -> QualityTask:
    """Opens the labels and builds the task."""
    return QualityTask(config)


def _network(config: QualityTrainingConfig) -> QualityFilter:
    if config.pretrained is None:
        return QualityFilter(config.kind, config.network)
    return pretrained_quality_filter(
        config.kind, expand(config.pretrained), image_size=config.network.image_size
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; prints the figures at the end."""
    tasks: list[QualityTask] = []

    def make(config: QualityTrainingConfig, device: torch.device) -> QualityTask:
        tasks.append(make_task(config, device))
        return tasks[-1]

    status = launch(argv, "train.train_quality", QualityTrainingConfig, make)
    if status == 0 and tasks[-1].report is not None:
        print(json.dumps(tasks[-1].report))
    return status


if __name__ == "__main__":
    raise SystemExit(main())
