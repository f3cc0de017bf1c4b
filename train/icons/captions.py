"""The grammar: what a scene shows, in words."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from train.icons.scenes import PLACES
from train.icons.vocabulary import Thing

POSITIONS = ("left", "centre", "right")
SIZES = ("small", "medium", "large")
EFFECTS = ("none", "out of focus", "motion blur", "glass", "glow", "mist", "fur")
STYLE_WORDS = {"fluent": "3d", "noto": "flat"}
FREE_FORM_SHARE = 0.25

_EFFECT_BEFORE = {
    "glow": "glowing", "fur": "furry", "glass": "glass", "out of focus": "blurry", "motion blur": "moving",
}
_EFFECT_AFTER = {
    "out of focus": "out of focus", "motion blur": "in motion", "glass": "made of glass", "glow": "with a glow",
    "mist": "behind mist", "fur": "with fur",
}
_TIME_PHRASES = {"sunset": ("at sunset", "at dusk"), "night": ("at night",)}
_TAKES_AN = re.compile(r"(?!uni|eu|ufo|use|u\b|one\b)[aeiou]|hour|x\b")  # by sound: a unicorn, an hourglass
_POSITION_PHRASES = {"left": ("on the left", "to the left"), "right": ("on the right", "to the right")}


@dataclass(frozen=True)
class SceneDescription:
    """What one picture shows; place, time, effect, ... are the words of their tables."""

    thing: Thing
    thing_colour: str
    style: str
    place: str
    time: str
    surface_colour: str
    position: str
    size: str
    effect: str


def describe(scene: SceneDescription, rng: np.random.Generator, *, name_style: bool) -> str:
    """One caption of a scene; one in four is free-form (bare nouns, other order, synonyms, adjectives left out).

    Args:
        scene: what to describe.
        rng: chooses the words.
        name_style: whether the style is named, where there is more than one.

    Returns:
        Lower-case text without a full stop.
    """
    if rng.random() < FREE_FORM_SHARE:
        return _free_form(scene, rng)
    style = f", {STYLE_WORDS[scene.style]} style" if name_style else ""
    subject = _subject(scene, rng)
    place = _place(scene, rng)
    return f"{subject} {place}{_time(scene, rng)}{_position(scene, rng)}{style}"


def _free_form(scene: SceneDescription, rng: np.random.Generator) -> str:
    names = (scene.thing.name, *scene.thing.synonyms)
    name = str(rng.choice(names)) if rng.random() < 0.5 else scene.thing.name
    form = int(rng.integers(4))
    if form == 0:
        noun = PLACES[scene.place].noun.format(colour=scene.surface_colour)
        extras = [word for word in (scene.time if PLACES[scene.place].timed and scene.time != "day" else "",
                                    scene.size if scene.size != "medium" else "",
                                    scene.position if scene.position != "centre" else "") if word]
        return " ".join([name, noun, *extras])
    if form == 1:
        return f"{_place(scene, rng)}{_time(scene, rng)}, {_subject(scene, rng)}"
    if form == 2:
        return f"{name} {_place(scene, rng)}"
    return f"{indefinite(name)} {_place(scene, rng)}{_position(scene, rng)}{_time(scene, rng)}"


def _subject(scene: SceneDescription, rng: np.random.Generator) -> str:
    words = [scene.size] if scene.size != "medium" else []
    after = ""
    if scene.effect != "none":
        if scene.effect in _EFFECT_BEFORE and rng.random() < 0.5:
            words.append(_EFFECT_BEFORE[scene.effect])
        else:
            after = f" {_EFFECT_AFTER[scene.effect]}"
    if rng.random() < 0.3:
        words.append(scene.thing_colour)
    words.append(scene.thing.name)
    return f"{_article(words[0])} {' '.join(words)}{after}"


def _place(scene: SceneDescription, rng: np.random.Generator) -> str:
    phrase = str(rng.choice(PLACES[scene.place].phrases)).format(colour=scene.surface_colour)
    return phrase.replace(" a orange", " an orange")


def _time(scene: SceneDescription, rng: np.random.Generator) -> str:
    if not PLACES[scene.place].timed or scene.time == "day":
        return ""
    return f" {rng.choice(_TIME_PHRASES[scene.time])}"


def _position(scene: SceneDescription, rng: np.random.Generator) -> str:
    return f", {rng.choice(_POSITION_PHRASES[scene.position])}" if scene.position in _POSITION_PHRASES else ""


def indefinite(noun: str) -> str:
    """The noun with its article: "a fox", "an owl"."""
    return f"{_article(noun)} {noun}"


def _article(word: str) -> str:
    return "an" if _TAKES_AN.match(word) else "a"
