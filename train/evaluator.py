"""The icon evaluator: what a picture of icons shows, and where; trained on true scenes, judge of generated ones.

It stands in for what the paper measures photographs with: Inception's features under the Frechet distance, CLIP's
similarity of picture and caption, and the saliency model under IOU (ICON). It is never a training signal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from text2layer_core.atomic import write_tensors
from text2layer_core.checkpoint import CheckpointError, bundled_model_path, check_keys, parse_config
from text2layer_core.text_encoder import TextEncoder, TextEncoderConfig
from train.icons.captions import indefinite
from train.icons.scenes import PLACES
from train.icons.source import IconSource

EVALUATOR = "icon-evaluator.safetensors"
NOTHING = "nothing"
_FORMAT = "text2layer.evaluator"
_MOST_SCALE = 100.0


@dataclass(frozen=True, kw_only=True)
class EvaluatorConfig:
    """Size of both networks.

    Attributes:
        picture_size: pixels a side that pictures are resized to before they are embedded.
        picture_channels: of the picture tower's levels, each at half the size of the one before; the first at half of
            `picture_size`.
        embedding: features of a picture and of a text.
        text: the text tower.
        segmenter_channels: of the segmenter's levels; the first works at half of the picture's size.
    """

    text: TextEncoderConfig
    picture_size: int = 64
    picture_channels: tuple[int, ...] = (32, 48, 96, 128)
    embedding: int = 128
    segmenter_channels: tuple[int, ...] = (24, 40, 64, 96)

    def __post_init__(self) -> None:
        """Normalises what comes from JSON."""
        if isinstance(self.text, dict):
            object.__setattr__(self, "text", TextEncoderConfig(**self.text))
        for name in ("picture_channels", "segmenter_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


class _Residual(nn.Module):
    """conv-norm-relu twice with a residual path (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if before != after or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(hidden + (x if self.shortcut is None else self.shortcut(x)))


class PictureTower(nn.Module):
    """Pictures (n, 3, s, s) in [0, 1] to embeddings (n, embedding)."""

    def __init__(self, config: EvaluatorConfig) -> None:
        """A small residual network, its last level averaged over all positions."""
        super().__init__()
        widths = config.picture_channels
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        blocks: list[nn.Module] = [_Residual(widths[0], widths[0])]
        for before, after in pairwise(widths):
            blocks += [_Residual(before, after, 2), _Residual(after, after)]
        self.blocks = nn.Sequential(*blocks)
        self.projection = nn.Linear(widths[-1], config.embedding)

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 3, s, s) -> (n, embedding)."""
        return self.projection(self.blocks(self.stem(2 * pictures - 1)).mean(dim=(2, 3)))


class Segmenter(nn.Module):
    """What is salient in a picture (n, 3, H, W), H and W multiples of 16: the logits of its mask (n, 1, H, W)."""

    def __init__(self, channels: Sequence[int]) -> None:
        """A U-Net (Ronneberger et al. 2015) with a pixel-unshuffle stem."""
        super().__init__()
        self.stem = nn.Conv2d(12, channels[0], 3, 1, 1)
        self.down = nn.ModuleList([_Residual(channels[0], channels[0])])
        self.down.extend(_Residual(before, after, 2) for before, after in pairwise(channels))
        self.up = nn.ModuleList([
            _Residual(after + before, before) for before, after in pairwise(channels)
        ][::-1])
        self.head = nn.Conv2d(channels[0], 4, 3, 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 3, H, W) in [0, 1] -> (n, 1, H, W)."""
        hidden = self.stem(functional.pixel_unshuffle(2 * pictures - 1, 2))
        skips: list[Tensor] = []
        for block in self.down:
            hidden = block(hidden)
            skips.append(hidden)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            hidden = functional.interpolate(hidden, scale_factor=2.0, mode="nearest")
            hidden = block(torch.cat([hidden, skip], dim=1))
        return functional.pixel_shuffle(self.head(hidden), 2)


class ImageTextModel(nn.Module):
    """A picture and a text tower whose embeddings meet (Radford et al. 2021), and the temperature."""

    def __init__(self, config: EvaluatorConfig, tokenizer_json: str) -> None:
        """Fresh weights."""
        super().__init__()
        self.picture_size = config.picture_size
        self.picture = PictureTower(config)
        self.text = TextEncoder(config.text, tokenizer_json)
        self.text_projection = nn.Linear(config.text.hidden_size, config.embedding)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by, at most 100."""
        return self.log_scale.exp().clamp(max=_MOST_SCALE)

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """(n, 3, H, W) in [0, 1], any size -> (n, embedding) of length 1."""
        size = (self.picture_size, self.picture_size)
        if pictures.shape[-2:] != size:
            pictures = functional.interpolate(pictures, size=size, mode="bilinear", antialias=True)
        return functional.normalize(self.picture(pictures).float(), dim=1)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(n, L) tokens -> (n, embedding) of length 1, read where the last end token stands: it has seen all."""
        return functional.normalize(self.text_projection(self.text(ids)[:, -1]).float(), dim=1)


class IconEvaluator(nn.Module):
    """Both networks, with the things and places that they were trained on.

    Attributes:
        config: sizes.
        things: names, as captions call them.
        places: keys of `train.icons.scenes.PLACES`.
        card: how it was trained and how well it sees; anything that JSON can hold.
    """

    def __init__(
        self, config: EvaluatorConfig, tokenizer_json: str, things: Sequence[str], places: Sequence[str],
        card: dict[str, Any] | None = None,
    ) -> None:
        """Fresh weights."""
        super().__init__()
        self.config, self.things, self.places = config, tuple(things), tuple(places)
        self.card: dict[str, Any] = dict(card or {})
        self.matcher = ImageTextModel(config, tokenizer_json)
        self.segmenter = Segmenter(config.segmenter_channels)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.matcher.log_scale.device

    def features(self, pictures: Tensor) -> Tensor:
        """What the Frechet distance compares: embeddings (n, embedding) of pictures (n, 3, H, W) in [0, 1]."""
        return self._on_device(self.matcher.embed_pictures, pictures)

    def similarity(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine of each picture (n, 3, H, W) and its caption, (n,); the CLIP score of icons."""
        return (self.features(pictures) * self._texts(captions)).sum(dim=1)

    def similarities(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine of each of n pictures with each of m captions, (n, m)."""
        return self.features(pictures) @ self._texts(captions).T

    def thing_scores(self, pictures: Tensor) -> Tensor:
        """Logits (n, things) of each thing against an empty place: above 0, the picture rather shows it."""
        *things, nothing = self._logits(pictures, thing_texts(self.things)).unbind(dim=1)
        return torch.stack(things, dim=1) - nothing[:, None]

    def place_scores(self, pictures: Tensor) -> Tensor:
        """Logits (n, places)."""
        return self._logits(pictures, place_texts(self.places))

    def segment(self, pictures: Tensor) -> Tensor:
        """The mask of what is salient in pictures (n, 3, H, W), H and W multiples of 16: (n, 1, H, W) in [0, 1]."""
        return self._on_device(lambda block: self.segmenter(block).sigmoid(), pictures)

    def _logits(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        return self.matcher.scale.detach().cpu() * self.features(pictures) @ self._texts(texts).T

    @torch.no_grad()
    def _texts(self, texts: Sequence[str]) -> Tensor:
        return self.matcher.embed_tokens(self.matcher.text.tokenize(texts).to(self.device)).cpu()

    @torch.no_grad()
    def _on_device(self, network: Any, pictures: Tensor) -> Tensor:  # noqa: ANN401 - a method of ours
        """Block by block, the result on the CPU."""
        return torch.cat([network(block.float().to(self.device)).cpu() for block in pictures.split(64)])


def thing_texts(things: Sequence[str]) -> list[str]:
    """What each thing alone is called, and last what an empty place is."""
    return [*(indefinite(name) for name in things), NOTHING]


def place_texts(places: Sequence[str]) -> list[str]:
    """What each place alone is called: its first phrase, without a colour."""
    return [" ".join(PLACES[place].phrases[0].replace("{colour}", "").split()) for place in places]


def source_vocabulary(source: IconSource) -> tuple[list[str], list[str]]:
    """Names of a source's things, and its places."""
    return [thing.name for thing in source.things], list(source.places)


def evaluator_path() -> Path:
    """The evaluator that is shipped beside the bundled model."""
    return bundled_model_path().parent / EVALUATOR


def save_evaluator(path: Path, model: IconEvaluator) -> None:
    """Writes one safetensors file: matrices in float16, the rest in float32."""
    tensors = {key: tensor.detach().cpu().contiguous().to(torch.float16 if tensor.ndim > 1 else tensor.dtype)
               for key, tensor in model.state_dict().items()}
    metadata = {
        _FORMAT: "1",
        "config": json.dumps(asdict(model.config)),
        "tokenizer": model.matcher.text.tokenizer_json,
        "vocabulary": json.dumps({"things": model.things, "places": model.places}),
        "card": json.dumps(model.card),
    }
    write_tensors(path, tensors, metadata)


def load_evaluator(path: Path | None = None, device: torch.device | str = "cpu") -> IconEvaluator:
    """Reads an evaluator, strictly, in eval mode; without a path the shipped one.

    Raises:
        CheckpointError: the file is not there, is no evaluator, or lacks a tensor.
    """
    path = evaluator_path() if path is None else path
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get(_FORMAT) != "1":
                raise CheckpointError(f"{path} must be an icon evaluator, got another file")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError as error:
        raise CheckpointError(f"the icon evaluator must be a file, found none at {path}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} must be a safetensors file: {error}") from error
    config = parse_config(EvaluatorConfig, json.loads(metadata["config"]))
    words, card = json.loads(metadata["vocabulary"]), json.loads(metadata["card"])
    model = IconEvaluator(config, metadata["tokenizer"], words["things"], words["places"], card)
    expected = model.state_dict()
    check_keys(str(path), *({key: tuple(tensor.shape) for key, tensor in each.items()} for each in (expected, state)))
    model.load_state_dict({key: tensor.to(expected[key].dtype) for key, tensor in state.items()})
    return model.eval().requires_grad_(False).to(device)
