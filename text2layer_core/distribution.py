"""How far a set of pictures is from a reference set, and from its captions (paper, "Results": FID and CLIP score).

No weights come with this module: the networks are the caller's. The distances work on any features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from .checkpoint import one_line
from .layers import check_float_tensor, check_range

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import CLIPModel, CLIPProcessor

INCEPTION_SIDE = 299
_AT_ONCE = 32  # pictures through CLIP
_KERNEL_ROWS = 2048  # of a kernel matrix at once: 50,000 pictures would need 20 GB


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features: FID, where they are Inception's.

    |m - m'|^2 + tr C + tr C' - 2 tr (C C')^(1/2) (Heusel et al. 2017, eq. 6), with unbiased covariances as `np.cov`.
    With centred features X, C = X^T X / (N - 1); the last trace is then the nuclear norm of X X'^T / sqrt((N - 1)
    (N' - 1)). No covariance is formed and no square root of a singular matrix taken, so that fewer samples than
    dimensions are no special case, though the distance is then far too large: FID wants thousands of samples.

    Args:
        features: (N, D) floats, N at least 2.
        reference: (N', D) floats, N' at least 2.

    Returns:
        The distance, computed in float64; at least 0 up to rounding.

    Raises:
        ValueError: no floats, or shapes that do not belong together.
    """
    features, reference = _check_features(features, reference)
    shift = features.mean(dim=0) - reference.mean(dim=0)
    first, second = _covariance_root(features), _covariance_root(reference)
    overlap = torch.linalg.matrix_norm(first @ second.T, "nuc")
    return float(shift.square().sum() + first.square().sum() + second.square().sum() - 2 * overlap)


def _covariance_root(features: Tensor) -> Tensor:
    """R of at most D rows with R^T R the unbiased covariance of (N, D)."""
    centred = (features - features.mean(dim=0)) / (len(features) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R if centred.shape[0] > centred.shape[1] else centred


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """Squared maximum mean discrepancy of two sets of features: KID, where they are Inception's.

    The unbiased estimate with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, section 4) over the full sets.
    clean-fid prints the mean of 100 such estimates, each from up to 1000 random features of either set: the same
    number where the sets have one size of at most 1000, else the same expectation with noise of its own.

    Args:
        features: (N, D) floats, N at least 2.
        reference: (N', D) floats, N' at least 2.

    Returns:
        The distance, computed in float64; below 0 by chance where the distributions are alike.

    Raises:
        ValueError: no floats, or shapes that do not belong together.
    """
    features, reference = _check_features(features, reference)
    return _mean_of_pairs(features) + _mean_of_pairs(reference) - 2 * _mean_kernel(features, reference)


def _kernel(products: Tensor, dimensions: int) -> Tensor:
    return (products / dimensions + 1) ** 3


def _mean_kernel(first: Tensor, second: Tensor) -> float:
    total = sum(float(_kernel(rows @ second.T, rows.shape[1]).sum()) for rows in first.split(_KERNEL_ROWS))
    return total / (len(first) * len(second))


def _mean_of_pairs(features: Tensor) -> float:
    """The mean kernel of two different samples of (N, D)."""
    count, dimensions = features.shape
    itself = float(_kernel(features.square().sum(dim=1), dimensions).mean())
    return (count * _mean_kernel(features, features) - itself) / (count - 1)


def _check_features(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64."""
    for name, value in (("features", features), ("reference", reference)):
        check_float_tensor(name, value)
        if value.ndim != 2 or len(value) < 2:
            raise ValueError(f"{name} must have shape (N, D) with N at least 2, got {tuple(value.shape)}")
    if features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features must have the {reference.shape[1]} dimensions of reference, got {features.shape[1]}"
        )
    return features.double(), reference.double()


def resize_for_inception(picture: Tensor) -> Tensor:
    """A picture as clean-fid's mode "clean" shows it to Inception.

    Brought to 8 bit as a saved PNG would be, then resized by PIL's antialiased bicubic filter, channel by channel in
    float32, and clipped but not rounded (Parmar et al. 2022).

    Args:
        picture: (3, H, W) in [0, 1].

    Returns:
        (3, 299, 299) float32 in [0, 255], on the picture's device.

    Raises:
        ValueError: no such picture.
    """
    import numpy as np
    from PIL import Image

    _check_picture(picture)
    channels = _eight_bit(picture).float().numpy()
    size = (INCEPTION_SIDE, INCEPTION_SIDE)
    resized = [np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BICUBIC)) for each in channels]
    return torch.from_numpy(np.stack(resized)).clamp(0, 255).to(picture.device)


def inception_features(
    network: Callable[[Tensor], Tensor], pictures: Iterable[Tensor], *, batch_size: int = 32
) -> Tensor:
    """The features that `frechet_distance` and `kernel_distance` compare.

    Published figures rest on inception-2015-12-05.pt. Its module, loaded by `torch.jit.load(path).eval()`, gives the
    features that clean-fid uses by `network = lambda shown: module.layers((shown - 128) / 128)`.

    Args:
        network: takes (B, 3, 299, 299) float32 in [0, 255] to (B, D) or (B, D, 1, 1).
        pictures: each (3, H, W) in [0, 1], of any size, on the network's device.
        batch_size: pictures shown to the network at once.

    Returns:
        (N, D), as the network gives them.

    Raises:
        ValueError: no picture, or one of another kind.
    """
    shown = map(resize_for_inception, pictures)
    found: list[Tensor] = []
    while batch := list(islice(shown, batch_size)):
        with torch.no_grad():
            found.append(network(torch.stack(batch)).flatten(1))
    if not found:
        raise ValueError("pictures must be at least 1, got 0")
    return torch.cat(found)


def clip_score(
    model: CLIPModel, processor: CLIPProcessor, pictures: Sequence[Tensor] | Tensor, captions: Sequence[str]
) -> Tensor:
    """Cosine of each picture's CLIP embedding and its caption's, (N,), on the model's device.

    Papers that print CLIP scores around 30 print 100 times the mean; CLIPScore (Hessel et al. 2021, eq. 1) is 2.5
    times the cosine, not below 0. Captions longer than the text model takes are cut.

    Args:
        model: in eval mode.
        processor: the model's own; sees pictures of 8 bit, as it would see saved PNGs.
        pictures: N times (3, H, W) in [0, 1].
        captions: N texts.

    Raises:
        ValueError: no picture, one of another kind, or another number of captions.
    """
    if len(pictures) != len(captions) or not len(pictures):
        raise ValueError(f"pictures and captions must be as many, at least 1, got {len(pictures)} and {len(captions)}")
    options: dict[str, Any] = {"return_tensors": "pt", "padding": True, "truncation": True}
    scores: list[Tensor] = []
    for start in range(0, len(captions), _AT_ONCE):
        images = [_pil(each) for each in pictures[start : start + _AT_ONCE]]
        inputs = processor(text=list(captions[start : start + _AT_ONCE]), images=images, **options)
        with torch.no_grad():
            found = model(**inputs.to(model.device))
        scores.append(torch.cosine_similarity(found.image_embeds, found.text_embeds))
    return torch.cat(scores)


def load_clip(folder: str | Path, device: str | torch.device = "cpu") -> tuple[CLIPModel, CLIPProcessor]:
    """What `clip_score` takes, from a transformers folder (ViT-L/14 in the paper); nothing is downloaded.

    Raises:
        ValueError: the folder holds no CLIP model, or a damaged one.
    """
    check_clip(folder)
    from transformers import CLIPModel, CLIPProcessor

    try:
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
        processor: Any = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"clip must be a folder with a CLIP model, got {folder}: {one_line(error)}") from error
    return model.eval().to(device), processor


def check_clip(folder: str | Path) -> None:
    """Raises ValueError where `load_clip` would find nothing; loads nothing."""
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"clip must be a folder with a CLIP model, found no config.json in {folder}")


def _pil(picture: Tensor) -> Image:
    from PIL import Image

    _check_picture(picture)
    return Image.fromarray(_eight_bit(picture).permute(1, 2, 0).contiguous().numpy())


def _eight_bit(picture: Tensor) -> Tensor:
    return (255 * picture.detach().float()).round().to("cpu", torch.uint8)


def _check_picture(picture: Tensor) -> None:
    check_float_tensor("picture", picture)
    if picture.ndim != 3 or picture.shape[0] != 3 or picture.numel() == 0:
        raise ValueError(f"picture must have shape (3, H, W), none of them 0, got {tuple(picture.shape)}")
    check_range("picture", picture)
