"""A small CLIP of the real classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor


def tiny_clip() -> tuple[CLIPModel, CLIPProcessor]:
    """The real classes: two layers of 32, pictures of 32x32, a vocabulary of letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**sizes, **ends, "vocab_size": len(tokens), "max_position_embeddings": 12},
            vision_config={**sizes, "image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
    )
    tokenizer = CLIPTokenizer(vocabulary, [], model_max_length=12)
    shape = {"height": 32, "width": 32}
    return model.eval(), CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=shape), tokenizer)
