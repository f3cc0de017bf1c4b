"""The paper's baselines: what they code, what they are trained on, and data with known defects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from text2layer_core.autoencoder import AutoencoderConfig
from text2layer_core.compositing import blend, compose
from train.baselines import (
    DEFECTS,
    FlatAutoencoder,
    ImageAutoencoder,
    ImageObjective,
    SeparateAutoencoder,
    UnfilteredSource,
)
from train.icons.source import IconsConfig, IconSource
from train.icons.sprites import SpriteCache
from train.train_autoencoder import AutoencoderBatch

CONFIG = AutoencoderConfig(latent_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                           patch_size=2, head_channels=8)


@pytest.fixture
def images() -> ImageAutoencoder:
    torch.manual_seed(0)
    return ImageAutoencoder(CONFIG).eval()


@pytest.fixture
def source(sprites: SpriteCache, sprite_file: Path) -> IconSource:
    return IconSource(sprites, IconsConfig(cache=str(sprite_file), effect_share=0.0), 32, 0)


@torch.no_grad()
def test_separate_latents_are_those_of_three_pictures(images: ImageAutoencoder, source: IconSource) -> None:
    stack = source.batch(0, 2).stack
    foreground, background, mask = stack.split([3, 3, 1], dim=1)
    coder = SeparateAutoencoder(images)
    assert coder.config.latent_channels == 12
    latents = coder.encode_stack(stack).mode()
    parts = [images.encode_pictures(part).mode() for part in (foreground, background, mask.expand(-1, 3, -1, -1))]
    torch.testing.assert_close(latents, torch.cat(parts, dim=1))
    decoded = coder.decode(latents)
    torch.testing.assert_close(decoded.layers.background, images.decode_pictures(parts[1]).clamp(0, 1))
    grey = images.decode_pictures(parts[2]).clamp(0, 1).mean(dim=1, keepdim=True)
    torch.testing.assert_close(decoded.layers.mask, grey)
    assert decoded.predicted_composed is None


@torch.no_grad()
def test_flat_latents_are_those_of_the_composed_picture(images: ImageAutoencoder, source: IconSource) -> None:
    stack = source.batch(0, 2).stack
    coder = FlatAutoencoder(images)
    assert coder.config.latent_channels == 4
    latents = coder.encode_stack(stack).mode()
    composed = blend(*stack.split([3, 3, 1], dim=1))
    torch.testing.assert_close(latents, images.encode_pictures(composed).mode())
    decoded = coder.decode(latents)
    torch.testing.assert_close(compose(decoded.layers), images.decode_pictures(latents).clamp(0, 1))


@torch.no_grad()
def test_an_autoencoder_of_composed_pictures_sees_nothing_else(images: ImageAutoencoder, source: IconSource) -> None:
    """Other layers with the same composition are the same to it, and not to one of all kinds of pictures."""
    stack, noise = source.batch(0, 4).stack, torch.randn(4, 4, 8, 8)
    foreground, background, mask = stack.split([3, 3, 1], dim=1)
    composed = blend(foreground, background, mask)
    flat = torch.cat([composed, composed, mask], dim=1)
    for composed_only in (True, False):
        objective = ImageObjective(images, 0.25, 0.02, composed_only=composed_only)
        batches = [AutoencoderBatch(each, noise, adversarial=False, noise_level=torch.zeros(4, 1, 1, 1))
                   for each in (stack, flat)]
        losses = [float(objective(batch)["loss"]) for batch in batches]
        assert (losses[0] == pytest.approx(losses[1], rel=1e-5)) == composed_only


def test_no_share_leaves_the_data_alone(source: IconSource) -> None:
    unfiltered = UnfilteredSource(source, 0.0, 0)
    torch.testing.assert_close(unfiltered.batch(0, 8).stack, source.batch(0, 8).stack, rtol=0, atol=0)
    assert unfiltered.captions(0, 8) == source.captions(0, 8)


def test_the_share_and_its_kinds(source: IconSource) -> None:
    defects = [UnfilteredSource(source, 0.4, 0).defect(index) for index in range(1000)]
    assert sum(defect is not None for defect in defects) == pytest.approx(400, abs=50)
    assert set(defects) == {None, *DEFECTS}


def test_samples_do_not_depend_on_the_batch(source: IconSource) -> None:
    unfiltered = UnfilteredSource(source, 0.9, 0)
    whole = unfiltered.batch(0, 12).stack
    torch.testing.assert_close(unfiltered.batch(5, 3).stack, whole[5:8], rtol=0, atol=0)


@pytest.mark.parametrize("defect", DEFECTS)
def test_what_each_defect_breaks(source: IconSource, defect: str) -> None:
    """Broken masks leave the picture as it is (to the rim, where F was only copied); bad fillings leave F and m."""
    unfiltered = UnfilteredSource(source, 1.0, 0)
    index = next(index for index in range(1000) if unfiltered.defect(index) == defect)
    truth, broken = source.batch(index, 1).image, unfiltered.batch(index, 1).image
    areas = [float(image.mask.sum()) for image in (truth, broken)]
    if defect in ("object in the hole", "does not fit"):
        assert torch.equal(broken.mask, truth.mask)
        assert torch.equal(broken.foreground, truth.foreground)
        inside = truth.mask[0, 0] > 0.9
        change = (broken.background - truth.background)[0, :, inside].abs().mean()
        assert float(change) > 0.05
        outside = truth.mask[0, 0] == 0
        assert float((compose(broken) - compose(truth))[0, :, inside].abs().max()) < 0.1
        assert float((broken.background - truth.background)[0, :, outside].abs().mean()) < float(change)
    else:
        assert areas[1] > areas[0] if defect == "holds background" else areas[1] < 0.8 * areas[0]
        assert float((compose(broken) - compose(truth)).abs().mean()) < 0.1
