"""Our text encoder as the host's own CLIP: its classes at our size, with our tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import comfy.clip_model
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import folder_paths
import torch
from torch import Tensor

from ..text2layer_core.checkpoint import CheckpointHeader, check_keys
from ..text2layer_core.text_encoder import END_TOKEN, START_TOKEN, clip_text_config, load_tokenizer
from .host_unet import module_shapes

_CLIP_NAME = "l"  # as in Stable Diffusion v1, so that LoRAs in its keys load
_PROJECTION = "text_projection.weight"


class _Tokenizer:
    """What the host asks of a transformers tokenizer, on a tokenizer of ours."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = load_tokenizer(tokenizer_json)

    @classmethod
    def from_pretrained(cls, tokenizer_json: str) -> _Tokenizer:
        """The host's way to make one; the "path" is the JSON itself."""
        return cls(tokenizer_json)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self._tokenizer.encode(text).ids}

    def get_vocab(self) -> dict[str, int]:
        """Token -> number."""
        return self._tokenizer.get_vocab()


class _TextModel(comfy.clip_model.CLIPTextModel):
    """The host's CLIP text model; its own has CLIP's vocabulary, whatever the config says."""

    def __init__(self, config_dict: dict[str, Any], dtype: torch.dtype, device: Any, operations: Any) -> None:  # noqa: ANN401
        super().__init__(config_dict, dtype, device, operations)
        rows, width = config_dict["vocab_size"], config_dict["hidden_size"]
        self.set_input_embeddings(operations.Embedding(rows, width, dtype=dtype, device=device))


def load_clip(header: CheckpointHeader, tensors: Mapping[str, Tensor], path: str) -> comfy.sd.CLIP | None:
    """The text encoder as the host's CLIP, None where the model leaves it out.

    Args:
        header: of the checkpoint.
        tensors: of its text encoder, under the names of a CLIP file.
        path: of the checkpoint, for messages.

    Raises:
        CheckpointError: tensors that do not fit.
    """
    config = header.text_encoder
    if config is None:
        check_keys(path, {}, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
        return None
    vocabulary = _Tokenizer(header.tokenizer_json).get_vocab()
    start, end = vocabulary[START_TOKEN], vocabulary[END_TOKEN]
    model = partial(
        comfy.sd1_clip.SDClipModel,
        model_class=_TextModel,
        max_length=config.max_length,
        textmodel_json_config=clip_text_config(config, start_id=start, end_id=end),
        special_tokens={"start": start, "end": end, "pad": end},
        return_projected_pooled=False,
    )
    tokenizer = partial(
        comfy.sd1_clip.SDTokenizer,
        tokenizer_path=header.tokenizer_json,
        tokenizer_class=_Tokenizer,
        max_length=config.max_length,
        embedding_size=config.hidden_size,
    )
    target = comfy.supported_models_base.ClipTarget(
        partial(comfy.sd1_clip.SD1Tokenizer, clip_name=_CLIP_NAME, tokenizer=tokenizer),
        partial(comfy.sd1_clip.SD1ClipModel, clip_name=_CLIP_NAME, clip_model=model),
    )
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        model_options={"dtype": torch.float32},  # keeps the terminal's picture; ours are small
    )
    transformer = getattr(clip.cond_stage_model, f"clip_{_CLIP_NAME}").transformer
    expected = {key: shape for key, shape in module_shapes(transformer).items() if key != _PROJECTION}
    check_keys(path, expected, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    transformer.load_state_dict({**tensors, _PROJECTION: torch.eye(config.hidden_size)})
    return clip

