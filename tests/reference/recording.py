"""Writes what a reference implementation said beside what it was, so that anyone can ask it again."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def write(name: str, figures: dict[str, Any], *, source: str, packages: tuple[str, ...]) -> None:
    """Writes NAME.json beside this file and prints where."""
    made_by = {"source": source, "python": platform.python_version(), **{each: version(each) for each in packages}}
    path = Path(__file__).with_name(f"{name}.json")
    path.write_text(json.dumps({"made_by": made_by, "figures": figures}, indent=1) + "\n", encoding="utf-8")
    print(path)
