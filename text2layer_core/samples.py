"""Two-layer samples as files: what the synthesis writes and the trainers read, one set of files a sample."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .atomic import write_files
from .blending import BlendMode
from .compositing import compose, pad_foreground
from .composition import compose_stack
from .layers import TwoLayerImage
from .png import write_png

if TYPE_CHECKING:
    from torch import Tensor

    from .atomic import Writer
    from .stack import LayerStack


def two_layers_of_stack(stack: LayerStack) -> TwoLayerImage:
    """A document as two layers: the lowest visible layer is the background, all above it the foreground.

    Args:
        stack: a batch of any size.

    Returns:
        Foreground (its colour goes on where the mask is 0), background and mask of the canvas's size.

    Raises:
        ValueError: fewer than two layers are visible, the lowest one leaves a part of the canvas open, or a layer above
            it has another blend mode than normal, which no mask can express.
    """
    shown = [layer for layer in stack if layer.visible and layer.opacity]
    if len(shown) < 2:
        raise ValueError(f"layers must hold a background and something above it, got {len(shown)} visible")
    modes = [layer for layer in shown[1:] if BlendMode(layer.blend_mode) != BlendMode.NORMAL]
    if modes:
        raise ValueError(f'layers above the background must have the blend mode normal, got '
                         f'{BlendMode(modes[0].blend_mode).value} of "{modes[0].name}"')
    lowest = replace(shown[0], blend_mode=BlendMode.NORMAL)
    background, above = (compose_stack(replace(stack, layers=tuple(layers))) for layers in ([lowest], shown[1:]))
    if not bool((background[:, 3:] >= 1).all()):
        raise ValueError(f'the lowest layer must cover the whole canvas, and "{lowest.name}" does not')
    mask = above[:, 3:]
    return TwoLayerImage(pad_foreground(above[:, :3], mask), background[:, :3], mask)


def check_key(key: str) -> None:
    """Raises ValueError unless a sample can have that name: WebDataset ends a key at its first dot."""
    if not re.fullmatch(r"[^./\\]+", key):
        raise ValueError(f"a sample's name must not be empty nor hold . / or \\, got {key!r}")


def write_sample(
    folder: str | Path, key: str, image: TwoLayerImage, caption: str, *, composed: Tensor | None = None,
    facts: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Writes one sample: all of its files, or none.

    KEY.image.png (the composed picture), KEY.foreground.png (true colour, going on where the mask is 0),
    KEY.background.png, KEY.mask.png (8 bits), KEY.txt (the caption), and with facts KEY.json.

    Args:
        folder: made where it is not there.
        key: the files' name, without a dot.
        image: a batch of one.
        caption: one text, its line breaks and outer blanks taken out; not empty.
        composed: the picture that the layers were made of, (1, 3, H, W) in [0, 1]; None composes them.
        facts: scores and where it comes from; anything that JSON can hold.

    Returns:
        The files.

    Raises:
        ValueError: a batch of another size, no caption, a key that is none or taken, or a picture of another shape.
        OSError: a file cannot be written; nothing is left of the set then.
    """
    folder = Path(folder)
    check_key(key)
    if len(image) != 1:
        raise ValueError(f"image must hold one sample, got {len(image)}")
    text = " ".join(caption.split())
    if not text:
        raise ValueError("caption must not be empty")
    picture = compose(image) if composed is None else composed
    if picture.shape != image.background.shape:
        raise ValueError(f"composed must have shape {tuple(image.background.shape)}, got {tuple(picture.shape)}")
    taken = sorted(path.name for path in folder.glob(f"{_escaped(key)}.*"))
    if taken:
        raise ValueError(f"a sample's name must be new in its folder, found {taken[0]}")
    pictures = {"image": picture, "foreground": image.foreground, "background": image.background, "mask": image.mask}
    writers: dict[Path, Writer] = {
        folder / f"{key}.{name}.png": partial(write_png, picture=part[0].to(torch.float32).clamp(0, 1))
        for name, part in pictures.items()
    }
    writers[folder / f"{key}.txt"] = partial(_write_text, text=text + "\n")
    if facts is not None:
        writers[folder / f"{key}.json"] = partial(_write_text, text=json.dumps(facts, ensure_ascii=False) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    return write_files(writers)


def _escaped(key: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", key)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
