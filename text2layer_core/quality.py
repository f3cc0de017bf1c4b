"""The learned quality filters of the data (paper, data step 4): EfficientNet with one output neuron."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from .atomic import write_tensors
from .checkpoint import CheckpointError, check_is_safetensors, check_keys, one_line, parse_config
from .layers import check_float_tensor, check_range

CHANNELS = {"mask": 4, "inpainting": 3}
"""Kind -> channels of its pictures: image and mask, or the filled background alone (the paper's inputs)."""
KINDS = tuple(CHANNELS)
_FORMAT = "text2layer.quality"
_FORMAT_VERSION = "1"
_METADATA = ("kind", "threshold", "config", "card")
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as EfficientNet's weights expect
_MASK_MEAN, _MASK_DEVIATION = 0.5, 0.25
_AT_ONCE = 32
_STEM = "embeddings.convolution.weight"


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """An EfficientNet (Tan and Le, 2019); the defaults are b0.

    Dropout and stochastic depth are off: a resumed training then computes what the uninterrupted one does.

    Attributes:
        image_size: pixels a side that pictures are brought to.
        width: times b0's channels.
        depth: times b0's blocks.
        depthwise_padding: numbers of blocks with another padding, as converted weights of b1 to b7 name them.
        batch_norm_eps: of every BatchNorm.

    Raises:
        ValueError: a number is out of range.
    """

    image_size: int = 224
    width: float = 1.0
    depth: float = 1.0
    depthwise_padding: tuple[int, ...] = ()
    batch_norm_eps: float = 1e-3

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.image_size < 32:
            raise ValueError(f"image_size must be at least 32, got {self.image_size}")
        for name, value in (("width", self.width), ("depth", self.depth), ("batch_norm_eps", self.batch_norm_eps)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, got {value}")


class QualityFilter(nn.Module):
    """A classifier of two-layer samples: the probability that one is good.

    Attributes:
        kind: "mask", for pictures (N, 4, H, W) of image and mask, or "inpainting", for filled backgrounds (N, 3, H, W).
        config: the network's size.
        threshold: samples whose score is below it are dropped.
        card: how it was trained and how well it judges; anything that JSON can hold.
    """

    def __init__(
        self, kind: str, config: QualityConfig, *, threshold: float = 0.5, card: Mapping[str, Any] | None = None
    ) -> None:
        """Fresh weights.

        Raises:
            ValueError: an unknown kind, a threshold outside [0, 1], or transformers is not installed.
        """
        super().__init__()
        if kind not in CHANNELS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
        self.kind, self.config, self.threshold = kind, config, float(threshold)
        self.card: dict[str, Any] = dict(card or {})
        self.trunk: nn.Module = _build_trunk(config, CHANNELS[kind])
        self.classifier = nn.Linear(_trunk_features(config), 1)
        extra = CHANNELS[kind] - 3
        for name, values in (("mean", (*_MEAN, _MASK_MEAN)), ("deviation", (*_DEVIATION, _MASK_DEVIATION))):
            self.register_buffer(f"_{name}", torch.tensor(values[: 3 + extra]).view(1, -1, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of "good", (N,), of pictures (N, C, H, W) in [0, 1] of any size.

        Pictures are brought to the network's square without keeping their aspect, as EfficientNet's own preparation
        does (the paper is silent): all of the picture is seen, no bar is added that could be taken for an artifact,
        and the object's share of the area, one of the criteria, stays what it is.
        """
        side = (self.config.image_size, self.config.image_size)
        if pictures.shape[-2:] != side:
            pictures = functional.interpolate(pictures, side, mode="bilinear", antialias=True)
        mean, deviation = self.get_buffer("_mean"), self.get_buffer("_deviation")
        features = self.trunk(pixel_values=(pictures - mean) / deviation).pooler_output
        return self.classifier(features)[:, 0]

    @torch.no_grad()
    def scores(self, pictures: Tensor) -> Tensor:
        """Probabilities of "good".

        Args:
            pictures: (N, 4, H, W) for "mask" (image and mask), (N, 3, H, W) for "inpainting" (the filled background);
                any size, floats in [0, 1], on any device.

        Returns:
            (N,) in [0, 1], on the pictures' device. The filter is in eval mode meanwhile.

        Raises:
            ValueError: the pictures have another shape, type or range.
        """
        check_float_tensor("pictures", pictures)
        channels = CHANNELS[self.kind]
        if pictures.ndim != 4 or pictures.shape[1] != channels or 0 in pictures.shape[2:]:
            raise ValueError(f"pictures must have shape (N, {channels}, H, W) for the {self.kind} filter, "
                             f"got {tuple(pictures.shape)}")
        if not len(pictures):
            return torch.zeros(0, device=pictures.device)
        check_range("pictures", pictures)
        weight, training = self.classifier.weight, self.training
        self.eval()
        try:
            found = [self(block.to(weight)).sigmoid().float() for block in pictures.split(_AT_ONCE)]
        finally:
            self.train(training)
        return torch.cat(found).to(pictures.device)


@dataclass(frozen=True)
class QualityDecision:
    """What becomes of a sample.

    Attributes:
        keep: both filters call it good.
        dropped_by: the kinds of filters that do not; empty if it is kept.
        reason: the same in words.
    """

    keep: bool
    dropped_by: tuple[str, ...]
    reason: str


def decide_quality(scores: Mapping[str, float], thresholds: Mapping[str, float]) -> QualityDecision:
    """Keeps a sample that every filter calls good (paper, data step 5).

    Args:
        scores: kind -> score in [0, 1]; a kind that is absent has no filter and is not asked.
        thresholds: kind -> the least score that is kept.

    Raises:
        ValueError: a kind is unknown or has no threshold, or a score is not in [0, 1].
    """
    for kind, score in scores.items():
        if kind not in CHANNELS or kind not in thresholds:
            raise ValueError(f"a score must be of a kind with a threshold ({', '.join(thresholds)}), got {kind!r}")
        if not 0 <= score <= 1:
            raise ValueError(f"the {kind} score must lie in [0, 1], got {score}")
    if not scores:
        return QualityDecision(True, (), "kept: no filter")
    dropped_by = tuple(kind for kind in KINDS if kind in scores and scores[kind] < thresholds[kind])
    said = [f"{kind} score {scores[kind]:.3f} {'below' if kind in dropped_by else 'of at least'} {thresholds[kind]:.3f}"
            for kind in KINDS if kind in scores and (kind in dropped_by or not dropped_by)]
    return QualityDecision(not dropped_by, dropped_by, f"{'dropped' if dropped_by else 'kept'}: {', '.join(said)}")


def score_samples(
    image: Tensor, mask: Tensor, background: Tensor,
    filters: Mapping[str, QualityFilter],
) -> dict[str, list[float]]:
    """Scores samples with the filters at hand.

    Args:
        image: I, (N, 3, H, W) in [0, 1].
        mask: m, (N, 1, H, W).
        background: the filled background, (N, 3, H, W).
        filters: kind -> filter; kinds may be missing.

    Returns:
        Kind -> N scores, for the kinds in `filters`.

    Raises:
        ValueError: a filter stands under another kind than its own, or shapes do not fit.
    """
    if image.shape[:1] + image.shape[2:] != mask.shape[:1] + mask.shape[2:]:
        raise ValueError(f"mask must match image {tuple(image.shape)} in count and size, got {tuple(mask.shape)}")
    found: dict[str, list[float]] = {}
    for kind, each in filters.items():
        if each.kind != kind:
            raise ValueError(f"the {kind} filter must be of kind {kind}, got one of kind {each.kind}")
        pictures = torch.cat([image, mask], dim=1) if kind == "mask" else background
        found[kind] = each.scores(pictures).tolist()
    return found


def widen_stem(weight: Tensor, channels: int) -> Tensor:
    """A first convolution (out, 3, k, k) for more input channels, (out, channels, k, k).

    Each new channel starts as the mean of the three colours' kernels (the paper is silent). Zeros would leave the
    picture's features as they were, but where only the last layer is trained they would stay zeros: the filter would
    never see the mask. With the mean a mask is seen as a grey picture is, by edges that the network knows.
    """
    new = weight.mean(dim=1, keepdim=True).expand(-1, channels - weight.shape[1], -1, -1)
    return torch.cat([weight, new], dim=1)


def pretrained_quality_filter(kind: str, folder: str | Path, *, image_size: int | None = None) -> QualityFilter:
    """A filter on the weights of a transformers EfficientNet folder (config.json, model.safetensors), last layer fresh.

    Nothing is downloaded, no pickle is read.

    Args:
        kind: see `QualityFilter`.
        folder: of the ImageNet weights, any of b0 to b7.
        image_size: pixels a side; None is the folder's own.

    Raises:
        ValueError: transformers is not installed, or the folder holds no EfficientNet.
    """
    folder = Path(folder)
    _need_transformers()
    if not ((folder / "config.json").is_file() and (folder / "model.safetensors").is_file()):
        raise ValueError(f"an EfficientNet folder must hold config.json and model.safetensors, got {folder}")
    from transformers import AutoConfig, EfficientNetModel

    found: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    if found.model_type != "efficientnet":
        raise ValueError(f"an EfficientNet folder must hold a model of type efficientnet, got {found.model_type}")
    config = QualityConfig(
        image_size=image_size or found.image_size, width=found.width_coefficient, depth=found.depth_coefficient,
        depthwise_padding=tuple(found.depthwise_padding), batch_norm_eps=found.batch_norm_eps,
    )
    try:
        loaded: Any = EfficientNetModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / 'model.safetensors'} is truncated or damaged: {one_line(error)}") from error
    made = QualityFilter(kind, config)
    state = dict(loaded.state_dict())
    state[_STEM] = widen_stem(state[_STEM], CHANNELS[kind])
    expected = made.trunk.state_dict()
    check_keys(str(folder), *({key: tuple(value.shape) for key, value in each.items()} for each in (expected, state)))
    made.trunk.load_state_dict(state)
    return made


def save_quality_filter(path: str | Path, model: QualityFilter) -> None:
    """Writes one safetensors file, all weights in float32, to a temporary name first.

    Raises:
        ValueError: a weight is not finite, or the card cannot be written as JSON.
        OSError: the file cannot be written; what was there before stays.
    """
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in model.state_dict().items()}
    broken = [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ValueError(f"every weight must be finite, got others in {', '.join(broken)}")
    try:
        card = json.dumps(model.card, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"card must hold only what JSON can: {error}") from error
    values = (model.kind, repr(model.threshold), json.dumps(asdict(model.config), sort_keys=True), card)
    metadata = {_FORMAT: _FORMAT_VERSION}
    metadata |= {f"{_FORMAT}.{name}": value for name, value in zip(_METADATA, values, strict=True)}
    write_tensors(path, tensors, metadata)


def load_quality_filter(
    path: str | Path, device: str | torch.device = "cpu", *, kind: str | None = None
) -> QualityFilter:
    """Reads a file of `save_quality_filter`, strictly, in eval mode and frozen.

    Args:
        path: of the file.
        device: where it goes.
        kind: that it must be of; None takes either.

    Raises:
        CheckpointError: there is no such file, or it is truncated, pickled, of another kind or version, or lacks a
            tensor.
        ValueError: transformers is not installed, or the filter is of the other kind.
    """
    path = Path(path)
    _need_transformers()
    check_is_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            model = _from_metadata(path, metadata)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {one_line(error)}") from error
    expected = model.state_dict()
    check_keys(str(path), *({key: tuple(value.shape) for key, value in each.items()} for each in (expected, state)))
    if kind not in (None, model.kind):
        raise ValueError(f"the {kind} filter must be of kind {kind}, got one of kind {model.kind} in {path}")
    model.load_state_dict(state)
    return model.eval().requires_grad_(False).to(device)


def _from_metadata(path: Path, metadata: Mapping[str, str]) -> QualityFilter:
    version = metadata.get(_FORMAT)
    if version is None:
        raise CheckpointError(f"{path} is no quality filter: its metadata has no {_FORMAT}")
    if version != _FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version!r}, this version reads {_FORMAT_VERSION!r}")
    try:
        kind, threshold, config, card = (metadata[f"{_FORMAT}.{name}"] for name in _METADATA)
        return QualityFilter(
            kind, parse_config(QualityConfig, json.loads(config)), threshold=float(threshold), card=json.loads(card)
        )
    except KeyError as error:
        raise CheckpointError(f"{path} has no {error} in its metadata") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} has damaged metadata: {one_line(error)}") from error


def _trunk_features(config: QualityConfig) -> int:
    """Channels of the trunk's last convolution: 1280 times the width, to a multiple of 8 as the network rounds."""
    wanted = 1280 * config.width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def _build_trunk(config: QualityConfig, channels: int) -> nn.Module:
    """Transformers' network with fresh weights, a first convolution of three channels widened as `widen_stem` says.

    Its BatchNorm momentum is PyTorch's 0.1: transformers' default 0.99 is Keras's, which PyTorch reads the other way
    round (the running statistics would be the last batch's). Weights start as the network's authors start them;
    transformers draws the norms' scales from a normal of deviation 0.02, and a fresh network's features die out.
    """
    _need_transformers()
    from transformers import EfficientNetConfig, EfficientNetModel

    made: Any = EfficientNetConfig(
        num_channels=3, image_size=config.image_size, width_coefficient=config.width, depth_coefficient=config.depth,
        depthwise_padding=list(config.depthwise_padding), hidden_dim=_trunk_features(config),
        batch_norm_eps=config.batch_norm_eps, batch_norm_momentum=0.1, dropout_rate=0.0, drop_connect_rate=0.0,
    )
    trunk: Any = EfficientNetModel(made)
    _initialise(trunk)
    if channels != 3:
        stem = trunk.embeddings.convolution
        wide = nn.Conv2d(channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False)
        with torch.no_grad():
            wide.weight.copy_(widen_stem(stem.weight, channels))
        trunk.embeddings.convolution = wide
    trunk.pooler = _MeanPool()
    return trunk


@torch.no_grad()
def _initialise(trunk: nn.Module) -> None:
    """Normal weights of variance 2 / fan-out, zero biases, norms of scale 1 (Tan and Le's code)."""
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            module.weight.normal_(0, math.sqrt(2 / fan_out))
            if module.bias is not None:
                module.bias.zero_()


class _MeanPool(nn.Module):
    """The mean over all positions, whatever the map's size; transformers' own pools windows of `hidden_dim` pixels."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3), keepdim=True)


def _need_transformers() -> None:
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("quality filters need the package transformers, got an environment without it")
