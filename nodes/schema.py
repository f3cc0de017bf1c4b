"""Schemas that load on every supported host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from comfy_api.v0_0_2 import io

CATEGORY = "text2layer"
DEFAULT_SIDE = 128
MAX_SIDE = 4096
Layers = io.Custom("LAYERS")  # core's layer document since ComfyUI 0.31, a type of its own before

_KNOWN = {field.name for field in fields(io.Schema)}


def schema(**arguments: Any) -> io.Schema:  # noqa: ANN401 - those of io.Schema
    """An `io.Schema` in our category; arguments that this host's version does not know yet are left out."""
    arguments = {"category": CATEGORY, **arguments}
    return io.Schema(**{name: value for name, value in arguments.items() if name in _KNOWN})


def layer_sockets() -> list[io.Output]:
    """The outputs that every node with a whole picture has, in this order."""
    return [
        io.Image.Output(
            "foreground", display_name="foreground",
            tooltip="RGBA with straight alpha; colour goes on under alpha 0, so that a moved layer shows no fringe.",
        ),
        io.Image.Output("background", display_name="background", tooltip="RGB, complete behind the foreground."),
        io.Mask.Output("foreground_mask", display_name="foreground_mask", tooltip="1 where the foreground shows."),
        io.Image.Output("composed", display_name="composed", tooltip="mask * foreground + (1 - mask) * background."),
        Layers.Output(
            "layers", display_name="layers", is_output_list=True,
            tooltip="One layer document per picture, for Create Layered Image.",
        ),
    ]


def size_inputs() -> list[io.Input]:
    """Width and height in pixels, any value; by default the bundled model's."""
    return [
        io.Int.Input(side, default=DEFAULT_SIDE, min=1, max=MAX_SIDE, step=1,
                     tooltip=f"{side.capitalize()} in pixels, 1 to {MAX_SIDE}; any number, padded inside and cropped.")
        for side in ("width", "height")
    ]


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Older hosts do not check combos that arrive in a prompt.

    Raises:
        ValueError: if the value is none of the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of the {len(choices)} that the node lists, got {value!r}")


def check_finite(name: str, value: float) -> None:
    """The host's limits let NaN through.

    Raises:
        ValueError: if the value is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")


def check_score(name: str, value: float) -> None:
    """A score from 0 to 1, or -1 for none.

    Raises:
        ValueError: if it is anything else.
    """
    if value != -1 and not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], or be -1 for none, got {value}")
