"""Every node, every input and every output has its words: help pages and locales, English and Chinese."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.contract import declared_by_source, frozen

ROOT = Path(__file__).parents[2]
LANGUAGES = {"en": "{name}.md", "zh": "{name}/zh.md"}
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def sockets(name: str, side: str) -> list[str]:
    return [socket for socket, _ in frozen()[name][side]]


def locale(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def page(language: str, name: str) -> str:
    """Where ComfyUI's page looks: docs/<id>/<language>.md, then docs/<id>.md."""
    return (ROOT / "web" / "docs" / LANGUAGES[language].format(name=name)).read_text(encoding="utf-8")


def declared_locale() -> dict[str, Any]:
    """The source's own words in the form of a locale."""
    return {
        name: {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": {each["name"]: {"name": each["name"], "tooltip": each["tooltip"]} for each in node["inputs"]},
            "outputs": {
                str(slot): {"name": each["name"], "tooltip": each["tooltip"]}
                for slot, each in enumerate(node["outputs"])
            },
        }
        for name, node in declared_by_source().items()
    }


def texts(entry: Any) -> list[str]:
    return [text for each in entry.values() for text in texts(each)] if isinstance(entry, dict) else [entry]


def test_the_source_has_a_word_for_everything() -> None:
    """Display name, description and a tooltip each: null would fail here."""
    assert all(isinstance(text, str) and text for text in texts(declared_locale()))


def test_the_english_locale_is_the_source() -> None:
    """It is shown in the source's place, so that a difference would be an old text."""
    assert locale("en") == declared_locale()


def test_the_chinese_locale_has_the_same_entries_in_chinese() -> None:
    chinese, english = locale("zh"), locale("en")
    for name, node in english.items():
        for key in ("display_name", "description"):
            assert CHINESE.search(chinese[name][key])
        for side in ("inputs", "outputs"):
            assert list(chinese[name][side]) == list(node[side])
            for socket in chinese[name][side].values():
                assert socket["name"]
                assert CHINESE.search(socket["tooltip"])
    assert list(chinese) == list(english)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", frozen())
def test_the_help_page_has_every_socket(name: str, language: str) -> None:
    """One row of the tables each, in order, under the title that the locale gives the node."""
    text = page(language, name)
    assert text.startswith(f"# {locale(language)[name]['display_name']}\n")
    rows = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert rows == sockets(name, "inputs") + sockets(name, "outputs")


@pytest.mark.parametrize("name", frozen())
def test_both_languages_have_the_same_sections(name: str) -> None:
    english, chinese = (re.findall(r"^## |^\*\*", page(language, name), flags=re.MULTILINE) for language in LANGUAGES)
    assert english == chinese


@pytest.mark.parametrize("name", [name for name in frozen() if "foreground_mask" in str(frozen()[name])])
def test_the_help_page_says_which_way_the_mask_is(name: str) -> None:
    assert "1 where the foreground shows" in page("en", name)
    assert "1 表示前景可见" in page("zh", name)
    assert all("sRGB" in page(language, name) for language in LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_page_of_a_node_that_is_gone(language: str) -> None:
    docs = ROOT / "web" / "docs"
    assert {path.stem for path in docs.glob("*.md")} == set(frozen())
    assert {path.parent.name for path in docs.glob(f"*/{language}.md")} <= set(frozen())
