"""The data source `icons`: vocabulary, sprites, scenes, captions, effects, and exact layers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from text2layer_core.compositing import compose
from text2layer_core.metrics import psnr
from train.check import thumbnail
from train.icons.captions import EFFECTS, POSITIONS, SIZES, SceneDescription, describe
from train.icons.effects import EFFECT_FUNCTIONS, apply_effect
from train.icons.scenes import NOISE_VALUES, PLACES, SURFACE_COLOURS, TIMES, UNIFORMS, SceneParameters, render_scenes
from train.icons.source import HELD_OUT_SHARE, IconsConfig, IconSource, is_held_out
from train.icons.sprites import SpriteCache, load_sprites, save_sprites
from train.icons.vocabulary import Thing, icon_svgs, load_vocabulary
from train.rasterise import main, rasterise

CIRCLE = '<circle cx="16" cy="16" r="12" fill="#ff0000"/>'
GLASS = '<rect x="4" y="4" width="24" height="24" fill="#0000ff" fill-opacity="0.5"/>'


def source(sprites: SpriteCache, split: str = "train", size: int = 32, **changes: Any) -> IconSource:
    return IconSource(sprites, IconsConfig(cache="", **changes), size, 3, split)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A node_modules folder in the packages' own formats: four icons, two of them no things, one an alias."""
    files = {
        "@iconify-json/fluent-emoji/icons.json": {
            "prefix": "fluent-emoji", "width": 32, "height": 32,
            "icons": {
                "fox": {"body": CIRCLE}, "automobile": {"body": GLASS}, "sunset": {"body": CIRCLE},
                "grinning-face": {"body": CIRCLE},
                "flag": {"body": '<rect width="16" height="8" fill="#00ff00"/>', "width": 16, "height": 8},
            },
            "aliases": {"hatchback": {"parent": "automobile"}, "small-car": {"parent": "hatchback"}},
        },
        "@iconify-json/noto/icons.json": {
            "prefix": "noto", "width": 128, "height": 128,
            "icons": {"fox": {"body": '<circle cx="64" cy="64" r="48" fill="#00ff00"/>'}, "automobile": {"body": ""}},
        },
        "@iconify-json/noto/metadata.json": {"categories": {
            "Animals & Nature": ["fox", "bear"], "Food & Drink": [], "Objects": [], "Activities": [],
            "Travel & Places": ["automobile", "sunset", "small-car"], "Smileys & Emotion": ["grinning-face"],
        }},
        "@iconify-json/noto/chars.json": {"1f98a": "fox", "1f697": "automobile", "1f699-fe0f": "small-car"},
        "emojilib/dist/emoji-en-US.json": {
            "🦊": ["fox", "animal", "vixen", "wild_dog", "4ever", "a b c"],
            "🚗": ["red", "vehicle", "motor"],
            "🚙\ufe0f": ["vehicle", "car"],
        },
    }
    for name, content in files.items():
        path = tmp_path / "node_modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return tmp_path / "node_modules"


def test_vocabulary_keeps_things_that_both_sets_draw(packages: Path) -> None:
    # No bear: fluent lacks it. No sunset: a scene. No face: no category of things. "vehicle" fits two things, and
    # "car" is the automobile's plain name: neither is a synonym. "4ever" and "a b c" are no plain words.
    assert load_vocabulary(packages) == (
        Thing("automobile", "car", ("red", "motor")),
        Thing("fox", "fox", ("animal", "vixen", "wild dog")),
        Thing("small-car", "small car", ()),
    )


def test_vocabulary_can_be_narrowed(packages: Path) -> None:
    assert [thing.key for thing in load_vocabulary(packages, ["fox"])] == ["fox"]
    with pytest.raises(ValueError, match=r"things must be icons of both sets, got foxx \(nearest: fox\)"):
        load_vocabulary(packages, ["fox", "foxx"])
    (packages / "emojilib/dist/emoji-en-US.json").unlink()
    with pytest.raises(ValueError, match=r"icon packages must be installed \(npm install --prefix train\), not found"):
        load_vocabulary(packages)


def test_svgs_follow_aliases_and_are_square(packages: Path) -> None:
    circle, car, flag = icon_svgs(packages, "fluent", ["fox", "small-car", "flag"])
    assert CIRCLE in circle
    assert 'viewBox="0.0 0.0 32 32"' in circle
    assert GLASS in car  # an alias of an alias
    assert 'viewBox="0.0 -4.0 16 16"' in flag  # 16x8, centred


def test_rasterised_circle_has_true_coverage(packages: Path) -> None:
    (svg,) = icon_svgs(packages, "fluent", ["fox"])
    pixels = rasterise(svg, 32).float() / 255
    assert pixels.shape == (4, 32, 32)
    assert pixels[3].sum() == pytest.approx(torch.pi * 12**2, rel=0.005)
    assert torch.allclose(pixels[0], pixels[3], atol=1 / 255)  # pure red, premultiplied
    assert pixels[1:3].max() == 0
    assert pixels[3, 0, 0] == 0
    assert pixels[3, 16, 16] == 1


def test_rasterised_glass_keeps_its_opacity(packages: Path) -> None:
    (svg,) = icon_svgs(packages, "fluent", ["automobile"])
    pixels = rasterise(svg, 64).float() / 255
    assert pixels[3, 32, 32] == pytest.approx(0.5, abs=1 / 255)
    assert pixels[2, 32, 32] == pytest.approx(0.5, abs=2 / 255)


def test_rasterise_command(packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "icons.safetensors"
    command = ["--out", str(out), "--packages", str(packages), "--sizes", "32", "16", "--things", "fox", "automobile"]
    assert main(command) == 0
    cache = load_sprites(out)
    assert [thing.name for thing in cache.things] == ["car", "fox"]
    assert cache.styles == ("fluent", "noto")
    assert {side: tuple(tensor.shape) for side, tensor in cache.sprites.items()} == {
        16: (2, 2, 4, 16, 16), 32: (2, 2, 4, 32, 32),
    }
    assert cache.colours[1] == ("red", "green")
    assert sorted(out.parent.iterdir()) == [out]
    capsys.readouterr()
    assert main(["--out", str(out), "--packages", str(packages), "--sizes", "0"]) == 2
    assert capsys.readouterr().err == "error: sizes must be pixels, at least 1, got 0\n"
    below_a_file = ["--out", str(out / "icons"), "--packages", str(packages), "--things", "fox", "--sizes", "8"]
    assert main(below_a_file) == 2
    assert str(out) in capsys.readouterr().err.splitlines()[-1]
    assert main(["--out", str(out), "--packages", str(packages), "--things", "wolf"]) == 2
    message = r"error: things must be icons of both sets, got wolf \(nearest: \w+\)\n"
    assert re.fullmatch(message, capsys.readouterr().err)


def test_sprites_round_trip(sprites: SpriteCache, tmp_path: Path) -> None:
    save_sprites(tmp_path / "a.safetensors", sprites)
    loaded = load_sprites(tmp_path / "a.safetensors")
    assert (loaded.things, loaded.styles) == (sprites.things, sprites.styles)
    assert all(torch.equal(loaded.sprites[side], sprites.sprites[side]) for side in sprites.sprites)


def test_sprite_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the sprite cache must exist \(python -m train.rasterise --out .*\), found"):
        load_sprites(tmp_path / "absent")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match=r"the sprite cache must be a file made by train.rasterise, got .*text"):
        load_sprites(tmp_path / "text")


def test_dominant_colours_and_levels(sprites: SpriteCache) -> None:
    # The colours that conftest.py draws with, by their names in the palette; the pane is premultiplied at one half.
    assert dict(zip([thing.key for thing in sprites.things], sprites.colours, strict=True)) == {
        "ball": ("red", "blue"), "box": ("green", "orange"), "cone": ("yellow", "purple"), "egg": ("white", "brown"),
        "pane": ("blue", "grey"), "unicorn": ("pink", "black"),
    }
    assert [sprites.level(pixels) for pixels in (1, 16, 17.5, 64, 1000)] == [16, 16, 32, 64, 64]


def parameters(count: int, time: int = 0, seed: int = 0) -> SceneParameters:
    g = torch.Generator().manual_seed(seed)
    return SceneParameters(
        torch.full((count,), time), torch.arange(count) % len(SURFACE_COLOURS),
        torch.rand(count, UNIFORMS, generator=g), torch.randn(count, NOISE_VALUES, generator=g),
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("extreme", [0.0, 0.999])
def test_every_place_renders(place: str, extreme: float) -> None:
    for time in range(len(TIMES)):
        given = parameters(2, time)
        given.uniforms[0] = extreme
        picture = render_scenes(place, given, 24, 40)
        assert picture.shape == (2, 3, 24, 40)
        assert picture.isfinite().all()
        assert 0 <= picture.min() < picture.max() <= 1
        assert (picture.flatten(2).std(dim=2) > 0.01).any(dim=1).all(), "a place has depth, it is no flat colour"


def test_places_times_and_colours_differ() -> None:
    pictures = torch.stack([render_scenes(place, parameters(2), 32, 32) for place in PLACES]).flatten(1)
    distances = torch.cdist(pictures, pictures) / pictures.shape[1] ** 0.5 + torch.eye(len(PLACES))
    assert distances.min() > 0.05, "root mean square of two places, same random numbers"
    for name, place in PLACES.items():
        day, *others = [render_scenes(name, parameters(1, time), 32, 32) for time in range(len(TIMES))]
        for other in others:
            assert torch.equal(other, day) != place.timed
    for name in ("studio", "floor"):
        given = parameters(1)
        blue = replace(given, colour=torch.tensor([list(SURFACE_COLOURS).index("blue")]))
        assert (render_scenes(name, given, 16, 16) - render_scenes(name, blue, 16, 16)).abs().mean() > 0.05


def test_backgrounds_are_worth_an_autoencoder() -> None:
    """At 256 px a thumbnail (bicubic x8 down and up) of the places scores at most 34 dB on the mean of all scenes."""
    scores = [psnr(thumbnail(picture), picture) for place in PLACES
              for picture in render_scenes(place, parameters(4), 256, 256).split(1)]
    assert torch.cat(scores).mean() <= 34


def test_a_scene_is_a_function_of_its_parameters_at_any_size() -> None:
    small, large = (render_scenes("meadow", parameters(1), side, side) for side in (32, 128))
    shrunk = torch.nn.functional.interpolate(large, size=(32, 32), mode="area")
    assert (small - shrunk).abs().mean() < 0.03


def scene(**changes: Any) -> SceneDescription:
    plain = SceneDescription(
        thing=Thing("fox", "fox", ("vixen",)), thing_colour="orange", style="fluent", place="meadow", time="day",
        surface_colour="red", position="centre", size="medium", effect="none",
    )
    return replace(plain, **changes)


def captions(described: SceneDescription, count: int = 400, *, name_style: bool = False) -> list[str]:
    return [describe(described, np.random.default_rng(i), name_style=name_style) for i in range(count)]


GRAMMAR_MARK = ", 3d style"  # only the grammar's own form names the style, so it tells the two kinds apart


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"position": "left"}, r"(on|to) the left"), ({"position": "right"}, r"(on|to) the right"),
        ({"size": "small"}, r"^a small "), ({"size": "large"}, r"^a large "),
        ({"time": "sunset"}, r"at (sunset|dusk)"), ({"time": "night"}, r"at night"),
        ({"effect": "out of focus"}, r"blurry|out of focus"), ({"effect": "motion blur"}, r"moving|in motion"),
        ({"effect": "glass"}, r" glass |made of glass"), ({"effect": "glow"}, r"glowing|with a glow"),
        ({"effect": "mist"}, r"behind mist"), ({"effect": "fur"}, r"furry|with fur"),
        ({"place": "studio"}, r"red (studio|backdrop)"), ({"place": "floor"}, r"(red wall|red room).*|wooden floor"),
    ],
)
def test_captions_name_what_shows_and_only_that(changes: dict[str, Any], words: str) -> None:
    told = [text for text in captions(scene(**changes), name_style=True) if text.endswith(GRAMMAR_MARK)]
    assert all(re.search(words, text) for text in told)
    plain = [text for text in captions(scene(), name_style=True) if text.endswith(GRAMMAR_MARK)]
    assert not any(re.search(words, text) for text in plain)
    assert {word for text in told for word in re.findall(r"fox|vixen", text)} == {"fox"}


def test_a_quarter_of_the_captions_is_free_form() -> None:
    free = [text for text in captions(scene(), 2000, name_style=True) if not text.endswith(GRAMMAR_MARK)]
    assert 0.21 < len(free) / 2000 < 0.29  # four standard errors around 0.25
    assert "fox meadow" in free, "bare nouns"
    assert any(text.startswith("in a meadow, a ") for text in free), "another order"
    assert any("vixen" in text for text in free), "synonyms"


def test_captions_are_plain_text() -> None:
    for place in PLACES:
        for text in captions(scene(place=place, surface_colour="orange", time="day", effect="glass"), 60):
            assert text == text.lower().strip()
            assert "{" not in text
            assert "  " not in text
            assert " a orange" not in text
    assert not any("sunset" in text or "dusk" in text for text in captions(scene(place="studio", time="sunset"), 100))
    # Deterministic in its random numbers.
    assert captions(scene(), 5) == captions(scene(), 5)


@pytest.mark.parametrize(
    ("name", "article"),
    [("fox", "a"), ("egg", "an"), ("unicorn", "a"), ("umbrella", "an"), ("euro banknote", "a"), ("hourglass", "an"),
     ("one piece swimsuit", "a"), ("onion", "an"), ("ufo", "a"), ("house", "a"), ("x ray", "an")],
)
def test_articles_go_by_sound(name: str, article: str) -> None:
    texts = captions(scene(thing=Thing(name, name, ()), thing_colour="red"), 60)
    before = {found for text in texts for found in re.findall(rf"\b(an?) {name}\b", text)}
    assert before == {article}


def disc(side: int = 64) -> Tensor:
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side * 2 - 1] * 2, indexing="ij")
    alpha = ((0.5 - (x**2 + y**2).sqrt()) * side / 2 + 0.5).clamp(0, 1)
    return torch.stack([alpha, 0.5 * alpha, 0.25 * alpha, alpha])[None].repeat(2, 1, 1, 1)


def soft(alpha: Tensor) -> float:
    return float(((alpha > 0.02) & (alpha < 0.98)).float().mean())


@pytest.mark.parametrize("effect", EFFECT_FUNCTIONS)
def test_effects_give_soft_alpha_and_stay_premultiplied(effect: str) -> None:
    sprite = disc()
    given = sprite.clone()
    noise = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for strength in (0.0, 1.0):
        after = apply_effect(effect, sprite, torch.full((2,), strength), noise)
        assert after.shape == sprite.shape
        assert after.min() >= 0
        assert after.max() <= 1
        assert (after[:, :3] <= after[:, 3:] + 1e-5).all(), "premultiplied: no colour above alpha"
        assert soft(after[:, 3]) > 1.5 * soft(sprite[:, 3])
    assert torch.equal(sprite, given)


def test_effects_by_limits() -> None:
    sprite, noise = disc(), torch.zeros(2, 1, 64, 64)
    middle = (..., 32, 32)
    strengths = torch.tensor([0.0, 1.0])
    assert apply_effect("glass", sprite, strengths, noise)[:, 3][middle].tolist() == pytest.approx([0.3, 0.8])
    blurred = apply_effect("out of focus", sprite, strengths, noise)
    assert blurred[:, 3].sum((1, 2)).tolist() == pytest.approx(sprite[:, 3].sum((1, 2)).tolist(), rel=1e-3)
    assert soft(blurred[1, 3]) > soft(blurred[0, 3])
    glow = apply_effect("glow", sprite, strengths, noise)
    assert torch.allclose(glow[:, :, 32, 32], sprite[:, :, 32, 32])  # the thing itself is unchanged
    assert (glow[:, 3] >= sprite[:, 3] - 1e-6).all()
    assert (apply_effect("fur", sprite, strengths, noise) - sprite).abs().max() < 1e-4  # no noise, no displacement
    mist = apply_effect("mist", sprite, strengths, noise)[:, 3] / sprite[:, 3].clamp_min(1e-6)
    assert (mist[:, 18, 32] > mist[:, 46, 32]).all(), "thicker towards the foot"


def test_same_index_same_sample_at_any_batch_size(sprites: SpriteCache) -> None:
    icons = source(sprites, effect_share=0.6)
    whole = icons.batch(5, 12)
    assert whole.stack.shape == (12, 7, 32, 32)
    for size in (1, 5):
        for start in range(5, 17, size):
            count = min(size, 17 - start)
            part = icons.batch(start, count)
            assert torch.allclose(part.stack, whole.stack[start - 5 : start - 5 + count], atol=1e-5)
            assert part.captions == whole.captions[start - 5 : start - 5 + count]
    assert icons.captions(5, 12) == whole.captions
    assert torch.equal(source(sprites, effect_share=0.6).batch(5, 12).stack, whole.stack)


def test_layers_are_exact_and_padded(sprites: SpriteCache) -> None:
    """An opaque red ball on anything: F is red everywhere, m is the ball's coverage."""
    icons = source(sprites, size=64, things=("ball",), styles=("fluent",), effect_share=0.0)
    image = icons.batch(0, 12).image
    red = torch.tensor([0.85, 0.15, 0.15]).view(1, 3, 1, 1)
    # Extended colour where the mask is 0, never black; half a byte at the least alpha whose colour is kept, 0.08.
    assert (image.foreground - red).abs().max() < 0.5 / 255 / 0.08
    for mask, shown in zip(image.mask, icons.scenes(0, 12), strict=True):
        low, high = {"small": (0.36, 0.44), "medium": (0.50, 0.62), "large": (0.68, 0.82)}[shown.size]
        # The ball's radius is 0.4 of the sprite's side.
        assert torch.pi * (0.4 * low) ** 2 * 0.97 < mask.mean() < torch.pi * (0.4 * high) ** 2 * 1.03
        columns = (torch.arange(64) + 0.5) / 64
        centre = float((mask[0].sum(0) * columns).sum() / mask.sum())
        left, right = {"left": (0.2, 0.42), "centre": (0.44, 0.56), "right": (0.58, 0.8)}[shown.position]
        assert left < centre < right
        assert ((mask == 0) | (mask >= 1 / 255)).all()
    # Equation 1 by hand.
    by_hand = image.mask * image.foreground + (1 - image.mask) * image.background
    assert torch.allclose(compose(image), by_hand, atol=1e-6)
    nothing = (image.mask == 0).expand(-1, 3, -1, -1)
    assert torch.equal(compose(image)[nothing], image.background[nothing])


def test_translucent_things_and_soft_effects_have_soft_masks(sprites: SpriteCache) -> None:
    pane = source(sprites, things=("pane",), effect_share=0.0).batch(0, 6).image
    assert pane.mask.max() == pytest.approx(0.5, abs=0.01)
    assert not ((pane.foreground.amax(1) == 0) & (pane.mask[:, 0] == 0)).any()
    crisp = source(sprites, size=64, things=("ball",), effect_share=0.0, rotation=0.0).batch(0, 24).image.mask
    softened = source(sprites, size=64, things=("ball",), effect_share=1.0)
    masks, shown = softened.batch(0, 48).image.mask, softened.scenes(0, 48)
    assert {description.effect for description in shown} == set(EFFECTS[1:])
    for effect in EFFECTS[1:]:
        rows = [i for i, description in enumerate(shown) if description.effect == effect]
        assert soft(masks[rows]) > 1.3 * soft(crisp), effect


def test_held_out_pairs_are_never_trained_on(sprites: SpriteCache) -> None:
    train, held = source(sprites), source(sprites, "held_out")
    assert not any(is_held_out(shown.thing.key, shown.place) for shown in train.scenes(0, 2000))
    assert all(is_held_out(shown.thing.key, shown.place) for shown in held.scenes(0, 200))
    share = np.mean([is_held_out(f"thing-{i}", place) for i in range(800) for place in PLACES])
    assert share == pytest.approx(HELD_OUT_SHARE, abs=0.0086)  # four standard errors of 10,400 pairs
    # The hash sees nothing else: these values are fixed for good, trained models depend on them.
    pairs = [(thing, place) for thing in ("fox", "panda", "unicorn") for place in PLACES if is_held_out(thing, place)]
    assert pairs == [("panda", "space"), ("unicorn", "underwater"), ("unicorn", "space")]


def test_choices_follow_the_config(sprites: SpriteCache) -> None:
    icons = source(sprites, things=("box", "cone"), styles=("noto",), places=("sea", "studio"), effect_share=0.0)
    shown = icons.scenes(0, 400)
    assert {description.thing.key for description in shown} == {"box", "cone"}
    assert {description.style for description in shown} == {"noto"}
    assert {description.place for description in shown} == {"sea", "studio"}
    assert {description.effect for description in shown} == {"none"}
    assert not any("style" in text for text in icons.captions(0, 50)), "one style alone is not named"
    assert any("flat style" in text for text in source(sprites).captions(0, 50))
    effects = [description.effect != "none" for description in source(sprites).scenes(0, 2000)]
    assert np.mean(effects) == pytest.approx(0.2, abs=0.036)  # four standard errors


def test_snapped_things_stand_on_the_grid(sprites: SpriteCache) -> None:
    """Box edges and sides are multiples of 8 pixels, near where they stand without; the rest is the same draw."""
    free, snapped = (source(sprites, size=64, snap=snap) for snap in (0, 8))
    for index in range(40):
        one, other = (each._draw(index) for each in (free, snapped))
        x, y, side, *rest = other.placement
        for value in (side, x - side / 2, y - side / 2):
            assert value * 64 % 8 == pytest.approx(0, abs=1e-9)
        assert np.abs(np.subtract(other.placement, one.placement)).max() <= 8 / 64 + 1e-9
        assert (other.strength, *rest) == (one.strength, *one.placement[3:])
        if other.scene.position == one.scene.position:
            assert other.caption == one.caption
    with pytest.raises(ValueError, match=r"^snap must not be negative, got -1$"):
        IconsConfig(cache="", snap=-1)


def test_a_coarse_grid_leaves_things_inside_and_captions_true(sprites: SpriteCache) -> None:
    """Three strides of 8 at 128 pixels: five lines, so a large thing has no place on the right and none is promised."""
    coarse = source(sprites, size=128, snap=24)
    shown = [coarse._draw(index) for index in range(400)]
    for draw in shown:
        x, y, side, *_ = draw.placement
        assert side / 2 - 1e-9 <= min(x, y) <= max(x, y) <= 1 - side / 2 + 1e-9
        left, right = {"left": (0, 0.4), "centre": (0.4, 0.6), "right": (0.6, 1)}[draw.scene.position]
        assert left <= x <= right
    assert {(draw.scene.size, draw.scene.position) for draw in shown} == {
        (size, position) for size in SIZES for position in POSITIONS} - {("large", "right")}


def test_bank_of_sprites(sprites: SpriteCache) -> None:
    bank, labels = source(sprites, things=("ball", "pane"), styles=("fluent",)).sprites(32)
    assert bank.shape == (2, 4, 32, 32)
    assert labels.tolist() == [0, 1]
    assert bank[1, :, 16, 16].tolist() == pytest.approx([0.2, 0.5, 0.9, 0.5], abs=0.01)  # straight colour


def test_refuses_what_does_not_exist(sprites: SpriteCache) -> None:
    with pytest.raises(ValueError, match="things must be among the 6 there are, got fox"):
        source(sprites, things=("fox",))
    with pytest.raises(ValueError, match="styles must be among the 2 there are, got oil"):
        source(sprites, styles=("oil",))
    with pytest.raises(ValueError, match=f"places must be among the {len(PLACES)} there are, got moon"):
        source(sprites, places=("moon",))
    with pytest.raises(ValueError, match="split must be one of train, held_out, all, got test"):
        source(sprites, "test")
    lone = next(place for place in PLACES if not is_held_out("ball", place))
    with pytest.raises(ValueError, match=r"split held_out must hold a \(thing, place\) pair, got none of 1 things"):
        source(sprites, "held_out", things=("ball",), places=(lone,))
