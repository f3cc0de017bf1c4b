"""benchmarks/speed.py at tiny sizes; its ratios are for an idle machine, not for a test."""

from __future__ import annotations

import os
import re

import pytest
import torch

from benchmarks import sampling, speed, speed_cuda
from text2layer_core.autoencoder import AutoencoderConfig, CaT2IAutoencoder
from text2layer_core.text_encoder import TextEncoder, TextEncoderConfig, train_tokenizer
from text2layer_core.unet import UNetConfig, build_unet

LINE = re.compile(r"^  (\S.*?) +[\d.]+ s  ratio (\S+) +(\S+) dB", re.MULTILINE)


@pytest.fixture(autouse=True)
def without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part on CUDA takes minutes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_every_variant_draws_the_plain_picture(capsys: pytest.CaptureFixture[str]) -> None:
    """One step: only rounding differs, in bfloat16 to 2^-9 of each value."""
    options = ["--case", "bundled", "--size", "32", "--steps", "1", "--repeats", "1", "--force", "--no-compile"]
    assert speed.main(options) == 0
    printed = capsys.readouterr().out
    lines = LINE.findall(printed)
    variants = [name for changes in (speed.SAMPLING, speed.DECODE) for name in changes if name != speed.COMPILED]
    assert [name for name, _, _ in lines] == variants
    plain = [(ratio, decibel) for name, ratio, decibel in lines if name == speed.PLAIN]
    assert plain == [("1.000", "inf"), ("1.000", "inf")]
    assert all(float(decibel) > (30 if "bf16" in name else 80) for name, _, decibel in lines)
    assert printed.splitlines()[-1].startswith("ratio: ")
    assert printed.count("convolution") >= 2  # where the time goes, of the sampling and of the decoding


def test_shares_of_a_run() -> None:
    """All of it adds up, and the large product comes first."""
    left, right = torch.randn(2, 512, 512)
    found = speed.shares(lambda: (left @ right, left[:4] + 1), "cpu")
    assert found[0][0] == "aten::mm"
    assert sum(share for _, share in found) == pytest.approx(1)


def test_a_variant_leaves_the_plain_network_alone() -> None:
    """Weights that do not change are the same storage, so that a copy of the SD UNet fits."""
    plain = CaT2IAutoencoder(AutoencoderConfig(block_out_channels=(32, 32), layers_per_block=1, head_channels=8)).eval()
    before = {key: tensor.clone() for key, tensor in plain.state_dict().items()}
    weight = plain.decoder.conv_in.weight
    for change in (speed.channels_last, speed.autocast, speed.bfloat16, speed.folded):
        variant = speed.prepared(plain, change)
        assert (variant.decoder.conv_in.bias.data_ptr() == plain.decoder.conv_in.bias.data_ptr()) == (
            change is not speed.bfloat16
        )
    assert plain.decoder.conv_in.weight is weight
    assert weight.is_contiguous()
    assert all(torch.equal(tensor, before[key]) for key, tensor in plain.state_dict().items())


def test_offload_has_one_part_at_a_time_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is the CPU under another name, "cpu:0": nothing moves, but where parts are sent is told apart."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(speed_cuda.PROMPTS, 600).to_str()
    text = TextEncoderConfig(vocab_size=600, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2)
    unet = UNetConfig(in_channels=4, block_out_channels=(32, 64), layers_per_block=1, attention_levels=(False, True),
                      num_heads=2, cross_attention_dim=32)
    autoencoder = AutoencoderConfig(block_out_channels=(32, 32), layers_per_block=1, head_channels=8)
    parts = speed_cuda.Parts(
        TextEncoder(text, tokenizer).eval(), build_unet(unet).eval(), CaT2IAutoencoder(autoencoder).bfloat16().eval()
    )
    names = {id(part): name for name, part in vars(parts).items()}
    moves: list[tuple[str, str]] = []

    def to(part: torch.nn.Module, device: torch.device | str) -> torch.nn.Module:
        moves.append((names[id(part)], str(device)))
        return part

    monkeypatch.setattr(torch.nn.Module, "to", to)
    drawn = speed_cuda.draw(parts, torch.device("cpu:0"), 32, 2, offload=True)
    assert drawn.shape == (1, 7, 32, 32)
    assert moves == [(name, place) for name in ("text_encoder", "unet", "autoencoder") for place in ("cpu:0", "cpu")]
    moves.clear()
    assert torch.equal(speed_cuda.draw(parts, torch.device("cpu:0"), 32, 2, offload=False), drawn)
    assert moves == [(name, "cpu:0") for name in ("text_encoder", "unet", "autoencoder")]


def test_a_compiler_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(os.environ, "CXX", "no-such-compiler")
    assert not speed.can_compile()
    assert capsys.readouterr().out == (
        "torch.compile is left out: it needs a C++ compiler, found no no-such-compiler\n"
    )


def test_sizes_are_multiples_of_the_stride(capsys: pytest.CaptureFixture[str]) -> None:
    stride = sampling.bundled_case().stride
    with pytest.raises(SystemExit):
        speed.main(["--case", "bundled", "--size", str(stride + 1), "--force", "--no-compile"])
    assert f"multiple of bundled's stride {stride}, got {stride + 1}" in capsys.readouterr().err
