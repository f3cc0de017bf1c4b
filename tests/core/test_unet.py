"""Expected values: Stable Diffusion v1's published UNet configuration and parameter count."""

import dataclasses
import re
from typing import Any

import pytest
import torch

from text2layer_core.unet import UNET_PRESETS, UNetConfig, build_unet

TINY = UNetConfig(
    in_channels=6,
    block_out_channels=(32, 64),
    layers_per_block=1,
    attention_levels=(False, True),
    num_heads=4,
    cross_attention_dim=24,
)

SD_V1 = {  # unet/config.json of Stable Diffusion v1-4
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "act_fn": "silu",
}


def test_the_sd_preset_is_stable_diffusion_v1() -> None:
    with torch.device("meta"):
        unet = build_unet(UNET_PRESETS["sd"])
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    assert {key: unet.config[key] for key in SD_V1} == SD_V1


def test_output_has_the_latents_shape_and_reads_text_and_timestep() -> None:
    torch.manual_seed(0)
    unet = build_unet(TINY).eval()
    latents, text = torch.randn(2, 6, 8, 12), torch.randn(2, 5, 24)
    with torch.no_grad():
        output = unet(latents, 3, encoder_hidden_states=text).sample
        assert output.shape == latents.shape
        assert not torch.allclose(output, unet(latents, 400, encoder_hidden_states=text).sample)
        assert not torch.allclose(output, unet(latents, 3, encoder_hidden_states=text.flip(0)).sample)


def test_attention_sits_in_the_levels_named_and_in_the_middle() -> None:
    with torch.device("meta"):
        keys = build_unet(TINY).state_dict()
    for part, attends in [
        ("down_blocks.0", False),
        ("down_blocks.1", True),
        ("mid_block", True),
        ("up_blocks.0", True),
        ("up_blocks.1", False),
    ]:
        assert any(key.startswith(f"{part}.attentions.") for key in keys) is attends


@pytest.mark.parametrize("heads", [1, 4])
def test_heads_are_a_number_not_a_width(heads: int) -> None:
    unet = build_unet(dataclasses.replace(TINY, num_heads=heads))
    assert unet.mid_block.attentions[0].transformer_blocks[0].attn1.heads == heads


def test_a_single_level_builds() -> None:
    config = dataclasses.replace(TINY, block_out_channels=(32,), attention_levels=(True,))
    assert build_unet(config)(torch.zeros(1, 6, 4, 4), 0, torch.zeros(1, 2, 24)).sample.shape == (1, 6, 4, 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"layers_per_block": 0}, "layers_per_block must be at least 1, got 0"),
        ({"num_heads": -1}, "num_heads must be at least 1, got -1"),
        ({"cross_attention_dim": 0}, "cross_attention_dim must be at least 1, got 0"),
        ({"block_out_channels": ()}, "block_out_channels must name at least one level, got ()"),
        (
            {"attention_levels": (True,)},
            "attention_levels must have 2 entries to match block_out_channels, got 1",
        ),
        (
            {"block_out_channels": (32, 48)},
            "block_out_channels must be multiples of 32 and of num_heads=4, got 48",
        ),
        ({"block_out_channels": (64, 96)}, "block_out_channels must be multiples of the first, got 96 after 64"),
        ({"num_heads": 3}, "block_out_channels must be multiples of 32 and of num_heads=3, got 32"),
        ({"block_out_channels": (0, 32)}, "block_out_channels must be multiples of 32 and of num_heads=4, got 0"),
    ],
)
def test_wrong_configurations_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dataclasses.replace(TINY, **values)
