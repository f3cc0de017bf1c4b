"""A tiny model with Stable Diffusion's four levels, random weights."""

from __future__ import annotations

import torch

from text2layer_core.autoencoder import AutoencoderConfig, CaT2IAutoencoder
from text2layer_core.checkpoint import Text2LayerModel
from text2layer_core.schedule import ScheduleConfig
from text2layer_core.text_encoder import TextEncoder, TextEncoderConfig, train_tokenizer
from text2layer_core.unet import UNetConfig, build_unet

CAPTIONS = ["a red fox on a beach", "a glass teapot on a wooden floor", "a small owl at night", "a red fox on snow"]


def four_level_model() -> Text2LayerModel:
    """Attention in all levels but the last, two blocks a level, as in Stable Diffusion v1; stride 32."""
    torch.manual_seed(0)
    autoencoder = CaT2IAutoencoder(
        AutoencoderConfig(
            latent_channels=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, patch_size=2,
            head_channels=8,
        )
    )
    with torch.no_grad():
        autoencoder(torch.rand(2, 7, 16, 16))  # one training pass gives BatchNorm statistics that are not 0 and 1
    unet = build_unet(
        UNetConfig(
            in_channels=8, block_out_channels=(32, 64, 64, 96), layers_per_block=2,
            attention_levels=(True, True, True, False), num_heads=4, cross_attention_dim=32,
        )
    )
    tokenizer = train_tokenizer(CAPTIONS, 560)
    text_encoder = TextEncoder(
        TextEncoderConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2,
            max_length=16,
        ),
        tokenizer.to_str(),
    )
    for part in (autoencoder, unet, text_encoder):
        part.eval()
    return Text2LayerModel(autoencoder, unet, text_encoder, ScheduleConfig(latent_scale=0.7), {"resolution": 64})
