"""A whole model at tiny size, random weights, for the tests that need every part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from text2layer_core.checkpoint import Text2LayerModel

CAPTIONS = ["a red fox on a beach", "a glass teapot on a wooden floor", "a small owl at night", "a red fox on snow"]


@pytest.fixture
def tiny_model() -> Text2LayerModel:
    """Stride 4 (patch 2, two levels), a UNet of two levels: sizes are padded to multiples of 8."""
    from text2layer_core.autoencoder import AutoencoderConfig, CaT2IAutoencoder
    from text2layer_core.checkpoint import Text2LayerModel
    from text2layer_core.schedule import ScheduleConfig
    from text2layer_core.text_encoder import TextEncoder, TextEncoderConfig, train_tokenizer
    from text2layer_core.unet import UNetConfig, build_unet

    torch.manual_seed(0)
    autoencoder = CaT2IAutoencoder(
        AutoencoderConfig(
            latent_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            patch_size=2,
            head_channels=8,
        )
    )
    with torch.no_grad():
        autoencoder(torch.rand(2, 7, 16, 16))  # one training pass gives BatchNorm statistics that are not 0 and 1
    unet = build_unet(
        UNetConfig(
            in_channels=4,
            block_out_channels=(32, 64),
            layers_per_block=1,
            attention_levels=(False, True),
            num_heads=2,
            cross_attention_dim=32,
        )
    )
    tokenizer = train_tokenizer(CAPTIONS, 560)
    text_encoder = TextEncoder(
        TextEncoderConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            intermediate_size=64,
            num_layers=2,
            num_heads=2,
            max_length=16,
        ),
        tokenizer.to_str(),
    )
    card = {"resolution": 32, "steps": 3, "data": "icons"}
    for part in (autoencoder, unet, text_encoder):
        part.eval()
    return Text2LayerModel(autoencoder, unet, text_encoder, ScheduleConfig(prediction_type="v_prediction"), card)
