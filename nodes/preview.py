"""What a node shows of layers: four pictures each, and how well the model's own picture agrees."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io, ui
from server import PromptServer
from torch import Tensor

from ..text2layer_core.compositing import compose
from ..text2layer_core.layers import TwoLayerImage
from ..text2layer_core.metrics import consistency_psnr
from .convert import to_bhwc


def layers_preview(
    layers: TwoLayerImage, predicted: Tensor | None, cls: type[io.ComfyNode], text: str | None = None
) -> dict[str, Any]:
    """The node's picture strip: composed, foreground, background, mask of each picture, and a line of text.

    Without a text of the caller's own it is the consistency of the model's predicted picture.
    """
    composed = compose(layers)
    saved: list[Any] = []
    for index in range(len(layers)):
        one = layers[index]
        for picture in (composed[index : index + 1], one.rgba, one.background, one.mask.expand(-1, 3, -1, -1)):
            saved += ui.PreviewImage(to_bhwc(picture), cls=cls).values
    text = _consistency(predicted, composed) if text is None else text
    PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)
    return {"images": saved, "text": (text,)}


def _consistency(predicted: Tensor | None, composed: Tensor) -> str:
    if predicted is None:
        return "consistency: this model has no auxiliary head"
    decibels = ", ".join(f"{value:.1f}" for value in consistency_psnr(predicted, composed).tolist())
    return f"consistency: {decibels} dB"
