"""CaT2I-AE: shapes, ranges, heads, what the latent is; the trunk's equality with diffusers' is in test_conversion."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from text2layer_core.autoencoder import (
    AUTOENCODER_PRESETS,
    INITIAL_LOGVAR,
    AutoencoderConfig,
    CaT2IAutoencoder,
    Head,
    LatentDistribution,
    fold_batch_norm,
    with_background_decoder,
)
from text2layer_core.layers import TwoLayerImage

PLAIN = AutoencoderConfig(
    latent_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, head_channels=8
)
PATCHED = dataclasses.replace(PLAIN, patch_size=2)
TWO_DECODERS = dataclasses.replace(PATCHED, background_decoder=True)


def random_stack(count: int = 2, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(count, 7, height, width, generator=torch.Generator().manual_seed(0))


def test_preset_sd_is_stable_diffusions_trunk() -> None:
    """SD v1's AutoencoderKL has 83,653,863 parameters; ours differs at both ends only, counted by hand."""
    with torch.device("meta"):
        model = CaT2IAutoencoder(AUTOENCODER_PRESETS["sd"])
    wider_input = 4 * 128 * 9  # four more input channels
    last_layer = 128 * 3 * 9 + 3  # SD's conv_out, dropped
    hidden = 128 * 64 * 9 + 64 + 2 * 64  # a head's first convolution and its BatchNorm
    heads = 4 * hidden + 3 * (64 * 3 * 9 + 3) + (64 * 1 * 9 + 1)
    assert sum(p.numel() for p in model.parameters()) == 83_653_863 + wider_input - last_layer + heads


@pytest.mark.parametrize(("config", "stride"), [(PLAIN, 2), (PATCHED, 4), (AUTOENCODER_PRESETS["sd"], 8)])
def test_downscale_is_patch_times_levels(config: AutoencoderConfig, stride: int) -> None:
    assert config.downscale == stride


@pytest.mark.parametrize("config", [PLAIN, PATCHED, TWO_DECODERS])
def test_shapes_there_and_back(config: AutoencoderConfig) -> None:
    model = CaT2IAutoencoder(config).eval()
    stack = random_stack()
    image = TwoLayerImage.from_stack(stack)
    latents = model.encode(image).mode()
    assert latents.shape == (2, 3, 16 // config.downscale, 24 // config.downscale)
    decoded = model.decode(latents)
    assert decoded.layers.stack().shape == stack.shape
    assert decoded.predicted_composed is not None
    assert decoded.predicted_composed.shape == (2, 3, 16, 24)
    assert torch.equal(image.stack(), stack)


def test_without_the_auxiliary_head_there_is_no_predicted_composed() -> None:
    """The paper's no-sup variant."""
    config = dataclasses.replace(PLAIN, composed_head=False)
    model = CaT2IAutoencoder(config).eval()
    assert list(model.heads) == ["foreground", "background", "mask"]
    assert model.decode(torch.zeros(1, 3, 4, 4)).predicted_composed is None


@torch.no_grad()
def test_a_decoder_for_the_background_moves_the_background_alone() -> None:
    """It starts as the shared one, which the others go on with."""
    shared = CaT2IAutoencoder(PATCHED).eval()
    own = CaT2IAutoencoder(TWO_DECODERS).eval()
    own.load_state_dict(with_background_decoder(shared.state_dict()))
    latents = torch.randn(2, PATCHED.latent_channels, 2, 2, generator=torch.Generator().manual_seed(0))
    before, found = shared.decode_heads(latents), own.decode_heads(latents)
    assert list(found) == list(before)
    assert all(torch.equal(found[name], before[name]) for name in before)
    own.background_decoder.conv_in.weight.mul_(2)
    moved = own.decode_heads(latents)
    assert [name for name in before if not torch.equal(moved[name], before[name])] == ["background"]


def test_a_head_is_conv_bn_relu_conv() -> None:
    """Against torch's own Sequential on the same weights, statistics away from their start."""
    head = Head(8, 6, 3, 2, nn).eval()
    nn.init.uniform_(head.norm.running_mean)
    nn.init.uniform_(head.norm.running_var, 0.5, 2)
    reference = nn.Sequential(head.conv1, head.norm, nn.ReLU(), head.conv2, nn.PixelShuffle(2))
    features = torch.randn(2, 8, 5, 4)
    assert torch.equal(head(features), reference(features))


def test_only_decode_clamps() -> None:
    """A head whose last bias is 3 says (3 + 1) / 2 = 2 everywhere; decoded it is white."""
    model = CaT2IAutoencoder(PLAIN).eval()
    nn.init.zeros_(model.heads["background"].conv2.weight)
    nn.init.constant_(model.heads["background"].conv2.bias, 3.0)
    latents = torch.randn(1, 3, 4, 4)
    assert torch.allclose(model.decode_heads(latents)["background"], torch.tensor(2.0))
    assert torch.equal(model.decode(latents).layers.background, torch.ones(1, 3, 8, 8))


def test_the_encoder_sees_minus_one_to_one() -> None:
    """Mid-grey in all seven channels is zero inside: with zero biases nothing comes out of the first layer."""
    model = CaT2IAutoencoder(PLAIN)
    seen: list[Tensor] = []
    model.encoder.conv_in.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model.encode_stack(torch.full((1, 7, 8, 8), 0.5))
    model.encode_stack(torch.ones(1, 7, 8, 8))
    assert torch.equal(seen[0], torch.zeros(1, 7, 8, 8))
    assert torch.equal(seen[1], torch.ones(1, 7, 8, 8))


def test_all_layers_share_one_latent() -> None:
    """Changing any one of F, B, m changes z, and every head reads all of z."""
    torch.manual_seed(0)
    model = CaT2IAutoencoder(PLAIN).eval()
    stack = random_stack(1)
    base = model.encode_stack(stack).mode()
    for channels in (slice(0, 3), slice(3, 6), slice(6, 7)):
        changed = stack.clone()
        changed[:, channels] = 1 - changed[:, channels]
        assert not torch.allclose(model.encode_stack(changed).mode(), base)
    outputs, others = model.decode_heads(base), model.decode_heads(base + 1)
    assert all(not torch.allclose(outputs[name], others[name]) for name in outputs)


def test_a_fresh_posterior_is_narrow() -> None:
    """Its logvar starts near the bias that is set, whatever the picture."""
    model = CaT2IAutoencoder(PLAIN)
    logvar = model.encode_stack(random_stack()).logvar
    assert abs(float(logvar.detach().mean()) - INITIAL_LOGVAR) < 1


def test_distribution_draws_mean_plus_deviation_times_noise() -> None:
    """By hand: the same generator's noise, times exp(logvar / 2), plus the mean."""
    mean, logvar = torch.full((1, 2, 3, 3), 5.0), torch.full((1, 2, 3, 3), 2.0).log() * 2
    drawn = LatentDistribution(mean, logvar).sample(torch.Generator().manual_seed(3))
    noise = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(drawn, 5 + 2 * noise)
    assert torch.equal(LatentDistribution(mean, logvar).mode(), mean)


def test_logvar_is_clamped() -> None:
    model = CaT2IAutoencoder(PLAIN)
    nn.init.constant_(model.quant_conv.bias, 1e6)
    assert float(model.encode_stack(random_stack()).logvar.detach().max()) == 20


def test_layer_classes_are_passed_in() -> None:
    """Every convolution, norm and projection but the heads' BatchNorm is made by `ops`."""

    class Ops:
        class Conv2d(nn.Conv2d):
            pass

        class Linear(nn.Linear):
            pass

        class GroupNorm(nn.GroupNorm):
            pass

    model = CaT2IAutoencoder(PATCHED, Ops)
    plain = [name for name, m in model.named_modules() if type(m) in (nn.Conv2d, nn.Linear, nn.GroupNorm)]
    assert plain == []
    assert CaT2IAutoencoder(PATCHED).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 6, 8, 8), r"stack must have shape \(N, 7, H, W\), got \(1, 6, 8, 8\)"),
        ((7, 8, 8), r"stack must have shape \(N, 7, H, W\), got \(7, 8, 8\)"),
        ((1, 7, 8, 9), "height and width must be multiples of 2, got 8x9"),
    ],
)
def test_wrong_stacks(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaT2IAutoencoder(PLAIN).encode_stack(torch.zeros(shape))


def test_wrong_latents() -> None:
    with pytest.raises(ValueError, match=r"latents must have shape \(N, 3, h, w\), got \(1, 4, 2, 2\)"):
        CaT2IAutoencoder(PLAIN).decode_heads(torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": ()}, "block_out_channels must name at least one width"),
        ({"block_out_channels": (8, 18)}, "multiples of norm_num_groups=4, got 18"),
        ({"latent_channels": 0}, "latent_channels must be an integer from 1 to 16384, got 0"),
        ({"patch_size": 1.5}, "patch_size must be an integer from 1 to 16384, got 1.5"),
        ({"latent_channels": 0, "head_channels": -1}, "latent_channels .* got 0; head_channels .* got -1"),
    ],
)
def test_wrong_configs(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **changes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("config", [PLAIN, PATCHED, TWO_DECODERS])
def test_folding_batch_norm_changes_nothing(config: AutoencoderConfig) -> None:
    """Against the model with its BatchNorm, statistics and scales away from their start."""
    torch.manual_seed(0)
    model = CaT2IAutoencoder(config)
    for head in model.heads.values():
        nn.init.uniform_(head.norm.weight, 0.5, 2)
        nn.init.normal_(head.norm.bias)
    model(random_stack())
    model.eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    folded = CaT2IAutoencoder(config, folded=True).eval()
    folded.load_state_dict(fold_batch_norm(model.state_dict()))
    latents = torch.randn(2, 3, 4, 4)
    for name, output in model.decode_heads(latents).items():
        torch.testing.assert_close(folded.decode_heads(latents)[name], output, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
