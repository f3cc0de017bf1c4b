"""What the registry and ComfyUI-Manager read."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = (
    "__init__.py", "LICENSE", "README.md", "locales", "models", "nodes", "pyproject.toml", "requirements.txt",
    "text2layer_core", "web", "workflows",
)
NOT_FOR_USERS = (".ci", "benchmarks", "scripts", "tests", "train")


def test_the_registry_metadata() -> None:
    """The folder of the help pages is named in one place only, WEB_DIRECTORY."""
    comfy = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["comfy"]
    assert set(comfy) == {"PublisherId", "DisplayName", "Icon", "requires-comfyui"}
    assert comfy["requires-comfyui"] == ">=0.3.64"
    assert 'WEB_DIRECTORY = "./web"' in (ROOT / "__init__.py").read_text(encoding="utf-8")
    assert (ROOT / "web" / "docs").is_dir()


def test_installing_brings_psd_tools_alone() -> None:
    assert (ROOT / "requirements.txt").read_text(encoding="utf-8").split() == ["psd-tools"]


def test_the_registry_finds_nothing_unsafe() -> None:
    """`comfy node validate` runs ruff with these rules: exec, eval, several statements in one line."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "S102,S307,E702", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_archive_holds_what_comfyui_needs_and_no_more() -> None:
    """Every pattern of .comfyignore is a path from the root, so that comparing names is enough."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert all(pattern.startswith("/") for pattern in patterns)
    left_out = {pattern.strip("/") for pattern in patterns}
    assert left_out.isdisjoint(NEEDED)
    assert left_out.issuperset(NOT_FOR_USERS)
    assert [name for name in (*left_out, *NEEDED) if not (ROOT / name).exists()] == []
