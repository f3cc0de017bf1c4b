"""What a node shows of layers: four pictures each, and how well the model's own picture agrees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.utils
from comfy_api.v0_0_2 import io, ui
from server import PromptServer
from torch import Tensor

from .convert import to_bhwc

if TYPE_CHECKING:
    from ..text2layer_core.layers import TwoLayerImage


def layers_preview(
    layers: TwoLayerImage, composed: Tensor, predicted: Tensor | None, cls: type[io.ComfyNode], text: str | None = None
) -> dict[str, Any]:
    """The node's picture strip: composed, foreground, background, mask of each picture, and a line of text.

    Without a text of the caller's own it is the consistency of the model's predicted picture.
    """
    saved: list[Any] = []
    bar = comfy.utils.ProgressBar(len(layers))  # each update also looks whether the run was interrupted
    for index in range(len(layers)):
        one = layers[index]
        for picture in (composed[index : index + 1], one.rgba, one.background, one.mask.expand(-1, 3, -1, -1)):
            saved += ui.PreviewImage(to_bhwc(picture), cls=cls).values
        bar.update(1)
    text = _consistency(predicted, composed) if text is None else text
    PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)
    return {"images": saved, "text": (text,)}


def _consistency(predicted: Tensor | None, composed: Tensor) -> str:
    from ..text2layer_core.metrics import consistency_psnr

    if predicted is None:
        return "consistency: this model has no auxiliary head"
    decibels = ", ".join(f"{value:.1f}" for value in consistency_psnr(predicted, composed).tolist())
    return f"consistency: {decibels} dB"
