"""Diffusers folders both ways, and Stable Diffusion's autoencoder weights under each of their names."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from text2layer_core.autoencoder import AUTOENCODER_PRESETS, AutoencoderConfig, CaT2IAutoencoder
from text2layer_core.checkpoint import CLIP_L, CheckpointError, Text2LayerModel
from text2layer_core.conversion import from_diffusers, ldm_key, load_sd_autoencoder, to_diffusers

if TYPE_CHECKING:
    from torch import Tensor, nn

LEVELS = 3
WIDTHS = (8, 16, 24)


def _assert_same_state(actual: nn.Module | None, expected: nn.Module | None) -> None:
    assert actual is not None
    assert expected is not None
    states = (actual.state_dict(), expected.state_dict())
    assert states[0].keys() == states[1].keys()
    for key, tensor in states[1].items():
        assert torch.equal(states[0][key], tensor), key


@pytest.fixture
def folder(tiny_model: Text2LayerModel, tmp_path: Path) -> Path:
    """The tiny model as a diffusers folder."""
    path = tmp_path / "tiny"
    to_diffusers(tiny_model, path)
    return path


def test_folder_round_trip_is_bit_equal(tiny_model: Text2LayerModel, folder: Path) -> None:
    loaded = from_diffusers(folder)
    _assert_same_state(loaded.autoencoder, tiny_model.autoencoder)
    _assert_same_state(loaded.unet, tiny_model.unet)
    _assert_same_state(loaded.text_encoder, tiny_model.text_encoder)
    assert loaded.autoencoder.config == tiny_model.autoencoder.config
    assert loaded.schedule == tiny_model.schedule
    assert loaded.card == tiny_model.card
    assert loaded.external_text_encoder is None
    assert loaded.text_encoder is not None
    assert tiny_model.text_encoder is not None
    assert loaded.text_encoder.config == tiny_model.text_encoder.config
    assert loaded.text_encoder.tokenizer_json == tiny_model.text_encoder.tokenizer_json
    assert all(parameter.requires_grad for parameter in loaded.text_encoder.parameters())
    assert not loaded.autoencoder.training
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_diffusers_and_transformers_open_the_folder(tiny_model: Text2LayerModel, folder: Path) -> None:
    _assert_same_state(UNet2DConditionModel.from_pretrained(folder / "unet"), tiny_model.unet)
    encoder = tiny_model.text_encoder
    assert encoder is not None
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    prompts = ["a red fox on a beach", "", "a glass teapot"]
    ids = tokenizer(prompts, padding="max_length", truncation=True, max_length=16, return_tensors="pt").input_ids
    assert torch.equal(ids, encoder.tokenize(prompts))
    with torch.no_grad():
        torch.testing.assert_close(clip(ids).last_hidden_state, encoder.encode(prompts))
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    assert scheduler.config["prediction_type"] == "v_prediction"
    assert scheduler.config["steps_offset"] == 1
    assert scheduler.config["timestep_spacing"] == "leading"
    assert not scheduler.config["clip_sample"]
    assert not scheduler.config["set_alpha_to_one"]


def test_a_whole_diffusers_unet_folder_is_taken(tiny_model: Text2LayerModel, folder: Path) -> None:
    """Written by diffusers itself, with fields such as sample_size that ours leaves alone."""
    values = json.loads((folder / "unet" / "config.json").read_text())
    torch.manual_seed(1)
    other = UNet2DConditionModel.from_config({**values, "sample_size": 64})
    other.save_pretrained(folder / "unet")
    _assert_same_state(from_diffusers(folder).unet, other)


def test_autoencoder_alone_and_external_text_encoder(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    to_diffusers(Text2LayerModel(tiny_model.autoencoder, None, None, tiny_model.schedule, {}), tmp_path / "alone")
    loaded = from_diffusers(tmp_path / "alone")
    assert loaded.unet is None
    assert loaded.text_encoder is None
    assert not (tmp_path / "alone" / "unet").exists()
    to_diffusers(replace(tiny_model, external_text_encoder=CLIP_L), tmp_path / "external")
    assert from_diffusers(tmp_path / "external").external_text_encoder == CLIP_L


def test_folder_must_be_new_or_empty(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    to_diffusers(tiny_model, tmp_path)  # empty
    with pytest.raises(ValueError, match=f"^folder must be new or empty, got {re.escape(str(tmp_path))}$"):
        to_diffusers(tiny_model, tmp_path)


def test_a_failing_write_leaves_nothing(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    tiny_model.card["bad"] = tmp_path
    with pytest.raises(ValueError, match=r"^card must hold only what JSON can: "):
        to_diffusers(tiny_model, tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["text2layer.json", "autoencoder/config.json", "scheduler/scheduler_config.json"])
def test_missing_and_damaged_json(folder: Path, file: str) -> None:
    path = folder / file
    for content, message in (("[]", "is damaged: not a JSON object"), ("{", "is damaged: Expecting")):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))} {message}"):
            from_diffusers(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"^cannot read {re.escape(str(path))}: No such file"):
        from_diffusers(folder)


def test_missing_folder_and_weights(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^no such folder: .*nowhere$"):
        from_diffusers(folder / "nowhere")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"^no such model: .*unet/diffusion_pytorch_model.safetensors$"):
        from_diffusers(folder)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("autoencoder/diffusion_pytorch_model.safetensors", "quant_conv.bias"),
        ("unet/diffusion_pytorch_model.safetensors", "conv_in.bias"),
        ("text_encoder/model.safetensors", "text_model.final_layer_norm.bias"),
    ],
)
def test_every_part_is_strict(folder: Path, file: str, key: str) -> None:
    path = folder / file
    tensors = load_file(path)
    del tensors[key]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        from_diffusers(folder)
    assert str(caught.value) == f"{path} does not fit its config; missing (1): {key}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))} is truncated or damaged: "):
        from_diffusers(folder)


def test_a_unet_of_another_kind(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "act_fn": "mish", "center_input_sample": True}))
    expected = r"must hold a UNet of Stable Diffusion v1's kind, it differs in \['act_fn', 'center_input_sample'\]$"
    with pytest.raises(CheckpointError, match=expected):
        from_diffusers(folder)


def test_missing_and_unknown_fields_in_configs(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "beta_schedule": "cosine"}))
    with pytest.raises(CheckpointError, match="is damaged: beta_schedule must be one of"):
        from_diffusers(folder)
    del values["beta_end"]
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"has no 'beta_end' in its configs$"):
        from_diffusers(folder)
    path = folder / "autoencoder" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "depth": 1}))
    with pytest.raises(CheckpointError, match=r"damaged config.json: AutoencoderConfig has no fields \['depth'\]"):
        from_diffusers(folder)
    del values["scaling_factor"]
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"has no 'scaling_factor' in its config.json$"):
        from_diffusers(folder)


def _kl(**changes: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * LEVELS,
        "up_block_types": ("UpDecoderBlock2D",) * LEVELS,
        "block_out_channels": WIDTHS,
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    return AutoencoderKL(**{**arguments, **changes}).eval()


@pytest.fixture
def sd() -> AutoencoderKL:
    """Stable Diffusion's autoencoder as diffusers has it, small."""
    return _kl()


@pytest.fixture
def cat2i() -> CaT2IAutoencoder:
    """Ours with the same trunk."""
    config = AutoencoderConfig(block_out_channels=WIDTHS, norm_num_groups=4, head_channels=8)
    return CaT2IAutoencoder(config).eval()


def _ldm_state(sd: AutoencoderKL) -> dict[str, Tensor]:
    """The same weights as the original code stores them, its attention made of 1x1 convolutions."""
    state = {ldm_key(key, LEVELS): tensor for key, tensor in sd.state_dict().items()}
    return {
        key: tensor[:, :, None, None] if ".attn_1." in key and tensor.ndim == 2 else tensor
        for key, tensor in state.items()
    }


def _assert_equal_trunks(sd: AutoencoderKL, cat2i: CaT2IAutoencoder) -> None:
    """Latents and the decoders' last common activations, with the same weights, within 1e-4."""
    load_sd_autoencoder(cat2i, sd.state_dict())
    stride = cat2i.config.downscale
    stack = torch.rand(2, 7, 8 * stride, 6 * stride)
    latents = torch.randn(2, 4, 8, 6)
    features: dict[str, Tensor] = {}
    for name, model in (("sd", sd), ("cat2i", cat2i)):
        model.decoder.conv_norm_out.register_forward_hook(lambda *seen, name=name: features.update({name: seen[2]}))
    with torch.no_grad():
        expected = sd.encode(stack[:, :3] * 2 - 1).latent_dist
        actual = cat2i.encode_stack(stack)
        sd.decode(latents)
        cat2i.decode(latents)
    torch.testing.assert_close(actual.mean, expected.mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(actual.logvar, expected.logvar, atol=1e-4, rtol=0)
    torch.testing.assert_close(features["cat2i"], features["sd"], atol=1e-4, rtol=0)
    assert features["sd"].std() > 0.1


def test_trunk_computes_what_diffusers_does(sd: AutoencoderKL, cat2i: CaT2IAutoencoder) -> None:
    _assert_equal_trunks(sd, cat2i)


@pytest.mark.slow
def test_the_sd_preset_computes_what_diffusers_does() -> None:
    """Stable Diffusion's own sizes: four levels, 128 to 512 wide, 32 groups."""
    sd = _kl(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), norm_num_groups=32,
    )
    _assert_equal_trunks(sd, CaT2IAutoencoder(AUTOENCODER_PRESETS["sd"]).eval())


def test_stem_is_widened_with_zeros_and_heads_stay(sd: AutoencoderKL, cat2i: CaT2IAutoencoder) -> None:
    heads = {key: tensor.clone() for key, tensor in cat2i.heads.state_dict().items()}
    load_sd_autoencoder(cat2i, sd.state_dict())
    assert torch.equal(cat2i.encoder.conv_in.weight[:, :3], sd.encoder.conv_in.weight)
    assert not cat2i.encoder.conv_in.weight[:, 3:].any()
    for key, tensor in cat2i.heads.state_dict().items():
        assert torch.equal(tensor, heads[key])


def test_ldm_keys_by_hand() -> None:
    """Names from the original code's first_stage_model, four levels."""
    for key, expected in {
        "encoder.conv_norm_out.weight": "encoder.norm_out.weight",
        "encoder.down_blocks.2.resnets.1.norm1.bias": "encoder.down.2.block.1.norm1.bias",
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down_blocks.0.downsamplers.0.conv.weight": "encoder.down.0.downsample.conv.weight",
        "encoder.mid_block.resnets.1.conv2.weight": "encoder.mid.block_2.conv2.weight",
        "decoder.mid_block.attentions.0.group_norm.weight": "decoder.mid.attn_1.norm.weight",
        "decoder.mid_block.attentions.0.to_k.bias": "decoder.mid.attn_1.k.bias",
        "decoder.mid_block.attentions.0.to_out.0.weight": "decoder.mid.attn_1.proj_out.weight",
        "decoder.up_blocks.0.resnets.2.conv1.weight": "decoder.up.3.block.2.conv1.weight",
        "decoder.up_blocks.2.upsamplers.0.conv.bias": "decoder.up.1.upsample.conv.bias",
        "quant_conv.weight": "quant_conv.weight",
    }.items():
        assert ldm_key(key, 4) == expected


def test_ldm_keys_by_diffusers_own_converter(sd: AutoencoderKL) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    converted = convert_ldm_vae_checkpoint(_ldm_state(sd), sd.config)
    expected = sd.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_ldm_weights_alone_or_in_a_whole_checkpoint(sd: AutoencoderKL, cat2i: CaT2IAutoencoder, prefix: str) -> None:
    weights = {prefix + key: tensor for key, tensor in _ldm_state(sd).items()}
    if prefix:
        weights["model.diffusion_model.out.0.weight"] = torch.zeros(3)
    before = set(weights)
    load_sd_autoencoder(cat2i, weights)
    assert set(weights) == before
    for key, tensor in sd.state_dict().items():
        if key.startswith("decoder.conv_out."):
            continue
        actual = cat2i.state_dict()[key]
        assert torch.equal(actual[:, :3] if key == "encoder.conv_in.weight" else actual, tensor), key


def test_a_decoder_for_the_background_takes_the_same_weights(sd: AutoencoderKL, cat2i: CaT2IAutoencoder) -> None:
    own = CaT2IAutoencoder(replace(cat2i.config, background_decoder=True))
    load_sd_autoencoder(own, sd.state_dict())
    for key, tensor in sd.decoder.state_dict().items():
        if not key.startswith("conv_out."):
            assert torch.equal(own.state_dict()[f"background_decoder.{key}"], tensor), key


def test_a_decoder_for_the_background_there_and_back(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    own = CaT2IAutoencoder(replace(tiny_model.autoencoder.config, background_decoder=True))
    to_diffusers(Text2LayerModel(own, None, None, tiny_model.schedule, {}), tmp_path / "alone")
    found = from_diffusers(tmp_path / "alone").autoencoder
    assert found.config == own.config
    assert found.state_dict().keys() == own.state_dict().keys()
    assert all(torch.equal(found.state_dict()[key], tensor) for key, tensor in own.state_dict().items())


def test_older_diffusers_names_from_a_file(sd: AutoencoderKL, cat2i: CaT2IAutoencoder, tmp_path: Path) -> None:
    """The files of the SD VAEs on the hub call the attention's layers query, key, value and proj_attn."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state: dict[str, Tensor] = {}
    for key, tensor in sd.state_dict().items():
        name = next((key.replace(f".{new}.", f".{name}.") for new, name in old.items() if f".{new}." in key), key)
        state[name] = tensor.half()
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in state
    save_file(state, tmp_path / "vae.safetensors")
    load_sd_autoencoder(cat2i, tmp_path / "vae.safetensors")
    query = cat2i.state_dict()["encoder.mid_block.attentions.0.to_q.weight"]
    assert query.dtype == torch.float32
    assert torch.equal(query, sd.encoder.mid_block.attentions[0].to_q.weight.half().float())


def test_wrong_weights_are_all_named_and_change_nothing(sd: AutoencoderKL, cat2i: CaT2IAutoencoder) -> None:
    before = {key: tensor.clone() for key, tensor in cat2i.state_dict().items()}
    weights = dict(sd.state_dict())
    del weights["quant_conv.bias"]
    weights["loss.logvar"] = torch.zeros(1)
    weights["encoder.conv_in.weight"] = torch.zeros(8, 1, 3, 3)
    with pytest.raises(CheckpointError) as caught:
        load_sd_autoencoder(cat2i, weights)
    assert str(caught.value) == (
        "the state dict does not fit its config; missing (1): quant_conv.bias; unexpected (1): loss.logvar; "
        "wrong shape (1): encoder.conv_in.weight (8, 1, 3, 3) instead of (8, 3, 3, 3)"
    )
    assert all(torch.equal(tensor, before[key]) for key, tensor in cat2i.state_dict().items())


def test_other_latent_channels_and_patch_size_and_files(cat2i: CaT2IAutoencoder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"wrong shape .*quant_conv.weight \(16, 16, 1, 1\) instead of \(8, 8, 1"):
        load_sd_autoencoder(cat2i, _kl(latent_channels=8).state_dict())
    patched = CaT2IAutoencoder(replace(cat2i.config, patch_size=2))
    with pytest.raises(ValueError, match=r"^autoencoder must have patch_size 1 to take SD's weights, got 2$"):
        load_sd_autoencoder(patched, {})
    path = tmp_path / "vae.ckpt"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="is a pickled file"):
        load_sd_autoencoder(cat2i, path)
    with pytest.raises(CheckpointError, match="no such model"):
        load_sd_autoencoder(cat2i, tmp_path / "nowhere.safetensors")
