"""Trains the icon evaluator on true scenes: `python -m train.train_evaluator --config FILE`.

It sees all pairs of thing and place, those too that a generator is never trained on: a judge that has learnt which
pairs do not occur judges exactly these wrongly. What it is checked on are other scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from text2layer_core.compositing import blend
from text2layer_core.metrics import soft_iou
from text2layer_core.text_encoder import train_tokenizer
from train.data import DataConfig, open_source
from train.engine import Objective, Part, TrainingConfig
from train.evaluator import (
    NOTHING,
    EvaluatorConfig,
    IconEvaluator,
    load_evaluator,
    place_texts,
    save_evaluator,
    source_vocabulary,
    thing_texts,
)
from train.icons.captions import SceneDescription
from train.icons.source import IconSource
from train.launch import launch
from train.pictures import save_grid

_TOKENIZER_CAPTIONS = 20_000
_SHEET_SAMPLES = 8
_EMPTY_EVERY = 8
_SHARPNESS = 6.0  # of logits: a pixel of alpha 0.6 counts as 0.92


@dataclass(frozen=True, kw_only=True)
class EvaluatorTrainingConfig:
    """The whole config file.

    Attributes:
        run: run folder, outside the checkout.
        data: icons; its size is that of the held-out figures.
        evaluator: sizes of the networks.
        networks: which of the two to train; with one alone the other stays as --init-from has it, or untrained.
        sizes: pixels a side of the batches, in turn, multiples of 16.
        cached: must stay 0: scenes are drawn afresh.
    """

    run: str
    data: DataConfig
    evaluator: EvaluatorConfig
    training: TrainingConfig
    networks: tuple[Literal["matcher", "segmenter"], ...] = ("matcher", "segmenter")
    sizes: tuple[int, ...] = (64,)
    cached: int = 0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.cached:
            raise ValueError(f"cached must be 0, got {self.cached}")
        if not self.networks or len(set(self.networks)) < len(self.networks):
            raise ValueError(f"networks must be matcher, segmenter or both, got {list(self.networks)}")
        if not self.sizes or any(size < 16 or size % 16 for size in self.sizes):
            raise ValueError(f"sizes must be multiples of 16, got {list(self.sizes)}")


@dataclass(frozen=True)
class EvaluatorBatch:
    """One part: pictures (n, 3, H, W), masks (n, 1, H, W), tokens (n, L), which thing (n,) and which place (n,).

    Every eighth picture is a bare background: its mask is 0, its thing the number of things.
    """

    pictures: Tensor
    masks: Tensor
    ids: Tensor
    things: Tensor
    places: Tensor


class MatcherObjective(nn.Module):
    """Pictures find their captions in the batch, their thing among all things and their place among all places."""

    def __init__(self, evaluator: IconEvaluator) -> None:
        """Looks at the image-text half."""
        super().__init__()
        self.matcher = evaluator.matcher
        self._names = [*thing_texts(evaluator.things), *place_texts(evaluator.places)]
        self._things = len(evaluator.things) + 1

    def forward(self, batch: EvaluatorBatch) -> dict[str, Tensor]:
        """The sum "loss", its three cross entropies, and the share of things found."""
        pictures = self.matcher.embed_pictures(batch.pictures)
        ids = self.matcher.text.tokenize(self._names).to(batch.ids.device)
        texts = self.matcher.embed_tokens(torch.cat([batch.ids, ids]))
        captions, names = texts[: len(batch.ids)], texts[len(batch.ids) :]
        logits = self.matcher.scale * pictures @ captions.T
        labels = torch.arange(len(pictures), device=pictures.device)
        caption = (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2
        scores = self.matcher.scale * pictures @ names.T
        things, places = scores[:, : self._things], scores[:, self._things :]
        thing, place = functional.cross_entropy(things, batch.things), functional.cross_entropy(places, batch.places)
        hits = (things.argmax(1) == batch.things).float().mean()
        return {"loss": caption + thing + place, "caption": caption, "thing": thing, "place": place, "top1": hits}


class SegmenterObjective(nn.Module):
    """Cross entropy, 1 - soft IoU of the mask, and 1 - soft IoU of its outline: what lies above 0.5, made sharp."""

    def __init__(self, evaluator: IconEvaluator) -> None:
        """Looks at the segmenter."""
        super().__init__()
        self.segmenter = evaluator.segmenter

    def forward(self, batch: EvaluatorBatch) -> dict[str, Tensor]:
        """The sum "loss" and both IoUs, means over pictures that show something (for the outline, above 0.5)."""
        logits = self.segmenter(batch.pictures).float()
        entropy = functional.binary_cross_entropy_with_logits(logits, batch.masks)
        largest = batch.masks.amax(dim=(1, 2, 3))
        iou = _mean_where(largest > 0, soft_iou(logits.sigmoid(), batch.masks))
        inside = (batch.masks > 0.5).float()
        outline = _mean_where(largest > 0.5, soft_iou((_SHARPNESS * logits).sigmoid(), inside))
        return {"loss": entropy + 2 - iou - outline, "iou": iou, "outline": outline}


class EvaluatorTask:
    """What `engine.fit` trains."""

    def __init__(self, config: EvaluatorTrainingConfig, sources: Sequence[IconSource]) -> None:
        """Builds the networks with the current seed; a source for each of the config's sizes."""
        self._config, self._sources = config, sources
        captions = [*sources[0].captions(0, _TOKENIZER_CAPTIONS), NOTHING, NOTHING]
        tokenizer = train_tokenizer(captions, config.evaluator.text.vocab_size)
        self.evaluator = IconEvaluator(config.evaluator, tokenizer.to_str(), *source_vocabulary(sources[0]))
        nn.utils.convert_conv2d_weight_memory_format(self.evaluator.segmenter, torch.channels_last)  # quicker on CPUs
        self._keys = [thing.key for thing in sources[0].things]
        objectives = {"matcher": MatcherObjective, "segmenter": SegmenterObjective}
        self.objectives: Sequence[Objective] = [
            Objective(name, objectives[name](self.evaluator)) for name in config.networks
        ]
        self.ema_of: nn.Module = self.evaluator

    def batch(self, part: Part, device: torch.device) -> EvaluatorBatch:
        """Samples, drawn afresh."""
        turn = part.start // self._config.training.batch_size % len(self._sources)
        source = self._sources[turn]
        samples, scenes = source.batch(part.start, part.count, device), source.scenes(part.start, part.count)
        foreground, background, masks = samples.stack.split([3, 3, 1], dim=1)
        empty = torch.tensor([(part.start + i) % _EMPTY_EVERY == 0 for i in range(part.count)], device=device)
        masks = torch.where(empty[:, None, None, None], 0, masks)
        things = torch.tensor([self._keys.index(scene.thing.key) for scene in scenes], device=device)
        captions = [_place_phrase(scene) if bare else caption
                    for bare, caption, scene in zip(empty.tolist(), samples.captions, scenes, strict=True)]
        return EvaluatorBatch(
            blend(foreground, background, masks), masks, self.evaluator.matcher.text.tokenize(captions).to(device),
            torch.where(empty, len(self._keys), things),
            torch.tensor([source.places.index(scene.place) for scene in scenes], device=device),
        )

    @torch.no_grad()
    def sheet(self, path: Path, images: int, device: torch.device) -> None:
        """Pictures, what the segmenter finds in them, and the truth."""
        batch = self.batch(Part(0, _SHEET_SAMPLES), device)
        found = self.evaluator.segment(batch.pictures)
        save_grid(path, [batch.pictures, found.expand(-1, 3, -1, -1), batch.masks.expand(-1, 3, -1, -1)])

    def export(self, path: Path, images: int) -> None:
        """Both networks in one file."""
        self.evaluator.card = {"images": images, "seed": self._config.training.seed, "data": asdict(self._config.data)}
        save_evaluator(path, self.evaluator)

    def load_weights(self, path: Path) -> int:
        """Another evaluator's weights, of the same shape."""
        other = load_evaluator(path)
        if other.config != self.evaluator.config or other.things != self.evaluator.things:
            raise ValueError(f"--init-from must hold the configured evaluator, got {path}")
        self.evaluator.load_state_dict(other.state_dict())
        self.evaluator.matcher.text.set_tokenizer(other.matcher.text.tokenizer_json)
        return int(other.card.get("images", 0))


def _mean_where(chosen: Tensor, values: Tensor) -> Tensor:
    return (chosen * values).sum() / chosen.sum().clamp_min(1)


def _place_phrase(scene: SceneDescription) -> str:
    return place_texts([scene.place])[0]


def make_task(config: EvaluatorTrainingConfig, device: torch.device) -> EvaluatorTask:
    """Opens a source for each size and builds the task."""
    sources = [open_source(replace(config.data, size=size), "all") for size in config.sizes]
    icons = [source for source in sources if isinstance(source, IconSource)]
    if len(icons) < len(sources):
        raise ValueError(f"data: source must be icons, got {config.data.source}")
    return EvaluatorTask(config, icons)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    return launch(argv, "train.train_evaluator", EvaluatorTrainingConfig, make_task)


if __name__ == "__main__":
    raise SystemExit(main())
