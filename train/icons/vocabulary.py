"""What the icons show: things, their names in two icon sets, and their synonyms."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

ICON_SETS = {"fluent": "@iconify-json/fluent-emoji", "noto": "@iconify-json/noto"}
CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Objects", "Activities")
# Icons that are a scene of their own, or of which several differ only in a hand or a phase.
_NOT_A_THING = re.compile(
    r"(.*-oclock|.*-thirty|.*moon(-face)?|bridge-at-night|cityscape.*|desert.*|fog.*|milky-way|night-with-stars"
    r"|sunrise.*|sunset|national-park|motorway|railway-track|beach-with-umbrella|camping|landslide|world-map"
    r"|map-of-japan|moon-viewing-ceremony|rainbow|wind-face|water-wave)"
)
_PLAIN_NAMES = {
    "automobile": "car", "lady-beetle": "ladybug", "honeybee": "bee", "red-apple": "apple", "cat-face": "cat head",
    "dog-face": "dog head", "two-hump-camel": "camel", "evergreen-tree": "pine tree", "deciduous-tree": "tree",
    "soft-ice-cream": "ice cream cone", "wrapped-gift": "gift", "ringed-planet": "planet", "beer-mug": "beer",
    "teacup-without-handle": "teacup", "locomotive": "steam train", "t-rex": "dinosaur", "mans-shoe": "shoe",
}


@dataclass(frozen=True)
class Thing:
    """One nameable thing.

    Attributes:
        key: its name in the icon sets, unique ("hot-air-balloon").
        name: how captions call it ("hot air balloon").
        synonyms: other names, from emojilib; never another thing's name.
    """

    key: str
    name: str
    synonyms: tuple[str, ...]


def load_vocabulary(packages: Path, things: Sequence[str] = ()) -> tuple[Thing, ...]:
    """The things that every icon set draws, in alphabetical order.

    Args:
        packages: the `node_modules` folder that `npm install` made under train/.
        things: keys to keep; empty keeps all (about 800).

    Returns:
        The things, sorted by key.

    Raises:
        ValueError: a package is missing, or a key is not in the vocabulary (the nearest is named).
    """
    noto: dict[str, list[str]] = _read(packages / ICON_SETS["noto"] / "metadata.json")["categories"]
    fluent = icon_names(packages, "fluent")
    keys = sorted(
        key for category in CATEGORIES for key in noto[category]
        if key in fluent and not _NOT_A_THING.fullmatch(key)
    )
    unknown = [thing for thing in things if thing not in keys]
    if unknown:
        nearest = get_close_matches(unknown[0], keys, n=1, cutoff=0.0)[0]
        raise ValueError(f"things must be icons of both sets, got {', '.join(unknown)} (nearest: {nearest})")
    keys = [key for key in keys if key in things] if things else keys
    synonyms = _synonyms(packages)
    names = {key: _PLAIN_NAMES.get(key, key.replace("-", " ")) for key in keys}
    taken = set(names.values())
    counts: dict[str, int] = {}
    for key in keys:
        for synonym in set(synonyms.get(key, ())):
            counts[synonym] = counts.get(synonym, 0) + 1
    return tuple(
        Thing(key, names[key], tuple(s for s in synonyms.get(key, ()) if counts[s] == 1 and s not in taken))
        for key in keys
    )


def icon_names(packages: Path, icon_set: str) -> set[str]:
    """Every name of one icon set, aliases included."""
    data = _read(packages / ICON_SETS[icon_set] / "icons.json")
    return set(data["icons"]) | set(data.get("aliases", {}))


def icon_svgs(packages: Path, icon_set: str, keys: Sequence[str]) -> list[str]:
    """The SVG text of each icon of one set, without a size, centred in a square viewBox."""
    data = _read(packages / ICON_SETS[icon_set] / "icons.json")
    aliases = data.get("aliases", {})
    svgs: list[str] = []
    for key in keys:
        while key in aliases:
            key = aliases[key]["parent"]
        icon = data["icons"][key]
        width, height = icon.get("width", data.get("width", 16)), icon.get("height", data.get("height", 16))
        side = max(width, height)
        left, top = icon.get("left", 0) - (side - width) / 2, icon.get("top", 0) - (side - height) / 2
        svgs.append(
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {side} {side}">{icon["body"]}</svg>'
        )
    return svgs


def _synonyms(packages: Path) -> dict[str, tuple[str, ...]]:
    """Icon key -> synonyms of the emoji that it shows; one or two plain words each."""
    characters = _read(packages / ICON_SETS["noto"] / "chars.json")
    names = {code.replace("-fe0f", ""): key for code, key in characters.items()}
    found: dict[str, tuple[str, ...]] = {}
    for emoji, words in _read(packages / "emojilib" / "dist" / "emoji-en-US.json").items():
        key = names.get("-".join(f"{ord(c):x}" for c in emoji if c != "\ufe0f"))
        if key is not None:
            plain = [word.replace("_", " ") for word in words if re.fullmatch(r"[a-z]+([ _][a-z]+)?", word)]
            found[key] = tuple(dict.fromkeys(word for word in plain if word != key.replace("-", " ")))
    return found


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"icon packages must be installed (npm install --prefix train), not found: {path}")
    return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
