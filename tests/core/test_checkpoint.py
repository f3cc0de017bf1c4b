"""The one-file checkpoint: round trip, strictness, every error, atomic saving."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from text2layer_core import checkpoint
from text2layer_core.checkpoint import (
    CLIP_L,
    FORMAT_VERSION,
    CheckpointError,
    Text2LayerModel,
    bundled_model_path,
    load_checkpoint,
    read_header,
    save_checkpoint,
    unet_config,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


def _states(model: Text2LayerModel) -> dict[str, Tensor]:
    parts: dict[str, nn.Module | None] = {
        "autoencoder": model.autoencoder,
        "unet": model.unet,
        "text_encoder": model.text_encoder,
    }
    return {
        f"{name}.{key}": tensor
        for name, part in parts.items()
        if part is not None
        for key, tensor in part.state_dict().items()
    }


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as handle:
        return dict(handle.metadata())


@pytest.fixture
def saved(tiny_model: Text2LayerModel, tmp_path: Path) -> Path:
    """The tiny model as a file."""
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, tiny_model)
    return path


def test_round_trip_in_float32_is_exact(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "tiny.safetensors"
    save_checkpoint(path, tiny_model, dtype=torch.float32)
    loaded = load_checkpoint(path)
    expected = _states(tiny_model)
    actual = _states(loaded)
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), key
        assert actual[key].dtype == tensor.dtype
    assert loaded.autoencoder.config == tiny_model.autoencoder.config
    assert loaded.schedule == tiny_model.schedule
    assert loaded.card == tiny_model.card
    assert loaded.external_text_encoder is None
    assert tiny_model.unet is not None
    assert loaded.unet is not None
    assert unet_config(loaded.unet) == unet_config(tiny_model.unet)
    assert tiny_model.text_encoder is not None
    assert loaded.text_encoder is not None
    assert loaded.text_encoder.config == tiny_model.text_encoder.config
    prompts = ["a red fox", ""]
    assert torch.equal(loaded.text_encoder.encode(prompts), tiny_model.text_encoder.encode(prompts))
    assert not any(part.training for part in (loaded.autoencoder, loaded.unet, loaded.text_encoder))


def test_loaded_model_computes_what_the_saved_one_did(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "tiny.safetensors", tiny_model, dtype=torch.float32)
    loaded = load_checkpoint(tmp_path / "tiny.safetensors")
    latents = torch.randn(1, 4, 4, 4)
    context = torch.randn(1, 16, 32)
    assert tiny_model.unet is not None
    assert loaded.unet is not None
    with torch.no_grad():
        expected = tiny_model.unet(latents, 10, context).sample
        assert torch.equal(loaded.unet(latents, 10, context).sample, expected)
        layers = tiny_model.autoencoder.decode(latents).layers
        assert torch.equal(loaded.autoencoder.decode(latents).layers.stack(), layers.stack())


def test_disk_dtypes(tiny_model: Text2LayerModel, saved: Path) -> None:
    tensors = load_file(saved)
    for key, tensor in _states(tiny_model).items():
        stored = tensors[key]
        if not tensor.is_floating_point():
            assert key.endswith("num_batches_tracked")
            assert torch.equal(stored, tensor)
        elif tensor.ndim <= 1:
            assert torch.equal(stored, tensor), key
        else:
            assert torch.equal(stored, tensor.half()), key
    assert any(key.endswith("running_var") for key in tensors)


def test_load_casts_floats_and_keeps_integers(saved: Path) -> None:
    states = _states(load_checkpoint(saved, dtype=torch.bfloat16))
    for key, tensor in states.items():
        expected = torch.int64 if key.endswith("num_batches_tracked") else torch.bfloat16
        assert tensor.dtype == expected or not tensor.is_floating_point(), key


def test_saving_does_not_change_the_model(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    before = {key: tensor.clone() for key, tensor in _states(tiny_model).items()}
    save_checkpoint(tmp_path / "tiny.safetensors", tiny_model)
    for key, tensor in _states(tiny_model).items():
        assert torch.equal(tensor, before[key])
        assert tensor.dtype == before[key].dtype


def test_loaded_tensors_do_not_hang_on_the_file(saved: Path) -> None:
    model = load_checkpoint(saved)
    before = {key: tensor.clone() for key, tensor in _states(model).items()}
    content = bytearray(saved.read_bytes())
    content[-4096:] = b"\xff" * 4096
    saved.write_bytes(content)
    assert all(torch.equal(tensor, before[key]) for key, tensor in _states(model).items())


def test_export_of_an_autoencoder_alone(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    path = tmp_path / "autoencoder.safetensors"
    save_checkpoint(path, Text2LayerModel(tiny_model.autoencoder, None, None, tiny_model.schedule, {}))
    config = json.loads(_metadata(path)["text2layer.config"])
    assert config["unet"] is None
    assert config["text_encoder"] is None
    loaded = load_checkpoint(path)
    assert loaded.unet is None
    assert loaded.text_encoder is None
    assert loaded.card == {}


def test_external_text_encoder_is_named_not_stored(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    path = tmp_path / "sd.safetensors"
    parts = (tiny_model.autoencoder, tiny_model.unet, tiny_model.text_encoder, tiny_model.schedule)
    save_checkpoint(path, Text2LayerModel(*parts, {}, external_text_encoder=CLIP_L))
    assert json.loads(_metadata(path)["text2layer.config"])["text_encoder"] == {"clip": CLIP_L}
    assert not any(key.startswith("text_encoder.") for key in load_file(path))
    loaded = load_checkpoint(path)
    assert loaded.text_encoder is None
    assert loaded.external_text_encoder == CLIP_L


def test_the_header_says_what_the_model_is(tiny_model: Text2LayerModel, saved: Path) -> None:
    assert set(_metadata(saved)) == set(checkpoint.METADATA_KEYS)
    header = read_header(saved)
    assert tiny_model.text_encoder is not None
    assert header.autoencoder == tiny_model.autoencoder.config
    assert header.unet is not None
    assert header.unet.block_out_channels == (32, 64)
    assert header.text_encoder == tiny_model.text_encoder.config
    assert header.tokenizer_json == tiny_model.text_encoder.tokenizer_json
    assert (header.schedule, header.card) == (tiny_model.schedule, tiny_model.card)
    assert header.external_text_encoder is None
    assert header.stride == 8  # patch 2, two autoencoder levels, two UNet levels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"tiny", "is truncated: it has 4 bytes"),
        (b"hello, this is no model", "is not a safetensors file"),
    ],
)
def test_files_that_are_no_safetensors(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    for read in (load_checkpoint, read_header):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert str(caught.value) == f"{path} {message}"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^no such model: .*nowhere.safetensors$"):
        load_checkpoint(tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match=r"^a model must be a .safetensors file, .* is a folder$"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [20, 300, -1])
def test_truncated_in_header_and_in_tensors(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    for read in (load_checkpoint, read_header):
        with pytest.raises(CheckpointError, match=r"^.*tiny.safetensors is truncated or damaged: .*$") as caught:
            read(saved)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"is a pickled file: only safetensors .* pickle can run code$"):
        load_checkpoint(path)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"a": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=r"is not a Text2Layer model: its metadata has no text2layer.format$"):
            load_checkpoint(path)


def test_unknown_format_version(saved: Path) -> None:
    save_file(load_file(saved), saved, metadata=_metadata(saved) | {"text2layer.format": "7"})
    for read in (load_checkpoint, read_header):
        with pytest.raises(CheckpointError, match=f"has format version '7', this version reads '{FORMAT_VERSION}'$"):
            read(saved)


def test_every_wrong_key_is_in_the_one_message(saved: Path) -> None:
    tensors = load_file(saved)
    del tensors["autoencoder.quant_conv.bias"]
    tensors["autoencoder.extra"] = torch.zeros(1)
    tensors["unet.conv_in.weight"] = torch.zeros(2, 3)
    save_file(tensors, saved, metadata=_metadata(saved))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved)
    assert str(caught.value) == (
        f"{saved} does not fit its config; missing (1): autoencoder.quant_conv.bias; "
        "unexpected (1): autoencoder.extra; wrong shape (1): unet.conv_in.weight (2, 3) instead of (32, 4, 3, 3)"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text2layer.config": "{"}, "has a damaged text2layer.config: "),
        ({"text2layer.config": "[]"}, "has a damaged text2layer.config: not a JSON object"),
        ({"text2layer.config": "{}"}, "has no 'text_encoder' in its metadata"),
        ({"text2layer.card": None}, "has no 'text2layer.card' in its metadata"),
        ({"text2layer.tokenizer": None}, "has no 'text2layer.tokenizer' in its metadata"),
        ({"text2layer.tokenizer": "nonsense"}, "has a damaged config: "),
    ],
)
def test_damaged_metadata(saved: Path, change: dict[str, str | None], message: str) -> None:
    metadata = {key: value for key, value in (_metadata(saved) | change).items() if value is not None}
    save_file(load_file(saved), saved, metadata=metadata)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved)
    assert str(caught.value).startswith(f"{saved} {message}")
    assert "\n" not in str(caught.value)


def test_config_with_an_unknown_and_a_missing_field(saved: Path) -> None:
    metadata = _metadata(saved)
    config = json.loads(metadata["text2layer.config"])
    config["unet"]["width"] = 3
    del config["unet"]["in_channels"]
    save_file(load_file(saved), saved, metadata=metadata | {"text2layer.config": json.dumps(config)})
    expected = r"has a damaged config: UNetConfig has no fields \['width'\] and needs \['in_channels'\]$"
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(saved)


def test_parts_that_do_not_fit_each_other(tiny_model: Text2LayerModel, saved: Path) -> None:
    metadata = _metadata(saved)
    config = json.loads(metadata["text2layer.config"])
    config["unet"]["cross_attention_dim"] = 48
    save_file(load_file(saved), saved, metadata=metadata | {"text2layer.config": json.dumps(config)})
    expected = "unet cross_attention_dim must be the text encoder's hidden_size 32, got 48$"
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(saved)
    config["autoencoder"]["latent_channels"] = 8
    save_file(load_file(saved), saved, metadata=metadata | {"text2layer.config": json.dumps(config)})
    with pytest.raises(CheckpointError, match=r"unet in_channels must be the autoencoder's latent_channels 8, got 4$"):
        load_checkpoint(saved)


def test_a_failing_write_leaves_the_old_file_and_no_temporary(tiny_model: Text2LayerModel, saved: Path) -> None:
    resource = pytest.importorskip("resource", reason="only POSIX limits the size of files")
    before = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=r"^cannot write .*tiny.safetensors: .*File too large"):
            save_checkpoint(saved, tiny_model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_target_that_cannot_be_replaced_leaves_no_temporary(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    target = tmp_path / "taken.safetensors"
    target.mkdir()
    with pytest.raises(OSError, match=r"taken\.safetensors"):
        save_checkpoint(target, tiny_model)
    assert list(tmp_path.iterdir()) == [target]


def test_saved_file_has_the_permissions_of_any_new_file(saved: Path) -> None:
    other = saved.with_name("other")
    other.touch()
    assert saved.stat().st_mode == other.stat().st_mode


def test_values_that_do_not_fit_half_precision(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_model.autoencoder.quant_conv.weight.fill_(1e6)  # float16 ends at 65504
    path = tmp_path / "tiny.safetensors"
    expected = "every value must be finite in torch.float16 on disk, got others in autoencoder.quant_conv.weight$"
    with pytest.raises(ValueError, match=expected):
        save_checkpoint(path, tiny_model)
    assert list(tmp_path.iterdir()) == []
    save_checkpoint(path, tiny_model, dtype=torch.float32)


def test_a_card_that_json_cannot_hold(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    for value in (Path("x"), float("nan")):
        tiny_model.card["bad"] = value
        with pytest.raises(ValueError, match=r"^card must hold only what JSON can: "):
            save_checkpoint(tmp_path / "tiny.safetensors", tiny_model)


def test_bundled_model_is_found_in_wheel_and_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "text2layer_core"
    package.mkdir()
    monkeypatch.setattr(checkpoint, "__file__", str(package / "checkpoint.py"))
    with pytest.raises(CheckpointError, match=r"^no bundled model: looked for .* and .*text2layer-mini.safetensors$"):
        bundled_model_path()
    in_checkout = tmp_path / "models" / "text2layer-mini.safetensors"
    in_wheel = package / "models" / "text2layer-mini.safetensors"
    for path in (in_checkout, in_wheel):
        path.parent.mkdir()
        path.touch()
        assert bundled_model_path() == path


@pytest.mark.slow
def test_an_installed_wheel_draws(tmp_path: Path) -> None:
    """Built and installed as a user would, then run from another folder, with its own model."""
    site, root = tmp_path / "site", Path(__file__).parents[2]

    def python(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(site)}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    python("-m", "pip", "wheel", str(root), "--no-deps", "--wheel-dir", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    python("-m", "pip", "install", "--no-deps", "--target", str(site), str(wheel))
    report = json.loads(python("-m", "text2layer_core", "a fox in the snow", "--steps", "2", "--json").splitlines()[-1])
    assert all((tmp_path / path).is_file() for path in report["files"])
    found = python("-c", "import text2layer_core.checkpoint as c; print(c.bundled_model_path())")
    assert Path(found.strip()).is_relative_to(site)
