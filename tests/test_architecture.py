"""The house's one direction: nodes -> text2layer_core <- train, and what the core may import when it is loaded."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "text2layer_core": {"train", "nodes", "comfy", "comfy_api", "text2layer_core", "accelerate", "cv2"},
    "nodes": {"nodes", "train", "text2layer_core", "diffusers", "transformers", "accelerate", "cv2"},
    "train": {"nodes", "comfy", "comfy_api"},
}
LAZY = {"diffusers", "transformers", "tokenizers", "psd_tools", "tqdm"}


def imports(path: Path, *, at_load: bool) -> set[str]:
    """Top-level packages that a file imports absolutely; at load leaves out functions and TYPE_CHECKING blocks."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if at_load and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if at_load and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
        todo.extend(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize("package", list(FORBIDDEN))
def test_imports_go_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(ROOT)): both for path in files
             if (both := imports(path, at_load=False) & FORBIDDEN[package])}
    assert wrong == {}


def test_core_and_nodes_load_no_heavy_library() -> None:
    files = [path for package in ("text2layer_core", "nodes") for path in sorted((ROOT / package).rglob("*.py"))]
    wrong = {path.name: both for path in files if (both := imports(path, at_load=True) & LAZY)}
    assert wrong == {}


def test_help_does_not_wait_for_torch() -> None:
    """In a fresh process, since this one has torch already."""
    code = "import sys, text2layer_core.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_warnings_of_every_package_of_ours_are_errors() -> None:
    """Also of the pack under its name in tests/nodes; of a library only whole names count, so none is caught."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    (rule,) = options["filterwarnings"]
    ours = {path.parent.name for path in ROOT.glob("*/*.py") if not path.parent.name.startswith(".")}
    assert {"text2layer_core", "train", "nodes", "scripts", "headless"} <= ours
    missed = [name for name in (*ours, "stubbed_pack")
              if not all(re.match(rule.removeprefix("error:::"), module) for module in (name, f"{name}.part"))]
    assert missed == []
    assert not re.match(rule.removeprefix("error:::"), "trainer.part")
