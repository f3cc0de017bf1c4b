"""Configs: what they accept and refuse; every file in train/configs fits its trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from train.config import load_config, parse


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """A section."""

    learning_rate: float
    steps: int = 10

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be above 0, got {self.steps}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A config with every kind of field."""

    name: str
    optimiser: Optimiser
    widths: tuple[int, ...] = ()
    precision: Literal["fp32", "bf16"] = "fp32"
    clip: float | None = None
    compiled: bool = False
    extra: Optimiser = field(default_factory=lambda: Optimiser(learning_rate=0.5))


MINIMAL = "name: a\noptimiser:\n  learning_rate: 0.25\n"


def load(tmp_path: Path, text: str, *overrides: str) -> Config:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides, Config)


def test_reads_every_kind_of_field(tmp_path: Path) -> None:
    text = "name: a\noptimiser: {learning_rate: 1e-4, steps: 3}\nwidths: [4, 8]\nprecision: bf16\nclip: 2\n"
    config = load(tmp_path, text + "compiled: true")
    # YAML 1.1 reads 1e-4 as text and 2 as an integer; both are meant as floats.
    assert config == Config(
        name="a", optimiser=Optimiser(learning_rate=1e-4, steps=3), widths=(4, 8), precision="bf16", clip=2.0,
        compiled=True,
    )
    assert type(config.clip) is float


def test_defaults_and_none(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL) == Config(name="a", optimiser=Optimiser(learning_rate=0.25))
    assert load(tmp_path, MINIMAL + "clip: null").clip is None


def test_overrides_win_and_make_sections(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL, "optimiser.learning_rate=3e-2", "extra.learning_rate=2", "widths=[1]", "name=b=c")
    assert config.optimiser.learning_rate == 0.03
    assert config.extra == Optimiser(learning_rate=2.0)
    assert config.widths == (1,)
    assert config.name == "b=c"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "precison: bf16", "x.yaml has an unknown key precison (nearest: precision)"),
        (MINIMAL + "  step: 1", "x.yaml: optimiser has an unknown key step (nearest: steps)"),
        ("clip: 1.0", "x.yaml must set name, optimiser"),
        ("", "x.yaml must be a section with keys, got None"),
        ("name: a\noptimiser: 3", "x.yaml: optimiser must be a section with keys, got 3"),
        (MINIMAL + "widths: 4", "x.yaml: widths must be a list, got 4"),
        (MINIMAL + "widths: [4, a]", "x.yaml: widths[1] must be int, got 'a'"),
        (MINIMAL + "widths: [true]", "x.yaml: widths[0] must be int, got True"),
        (MINIMAL + "compiled: 1", "x.yaml: compiled must be bool, got 1"),
        (MINIMAL + "clip: true", "x.yaml: clip must be float, got True"),
        (MINIMAL + "clip: fast", "x.yaml: clip must be float, got 'fast'"),
        (MINIMAL + "precision: fp8", "x.yaml: precision must be one of fp32, bf16, got 'fp8'"),
        (MINIMAL + "  steps: 0", "x.yaml: optimiser: steps must be above 0, got 0"),
    ],
)
def test_says_in_one_line_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        load(tmp_path, text)
    assert str(error.value) == message


def test_bad_files_and_overrides(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config must be a YAML file, found none at .*absent.yaml"):
        load_config(tmp_path / "absent.yaml", (), Config)
    with pytest.raises(ValueError, match=r"^config must be valid YAML, got [^\n]*$"):
        load(tmp_path, "name: [a")
    with pytest.raises(ValueError, match=r"--set must look like a.b=value, got clip"):
        load(tmp_path, MINIMAL, "clip")
    with pytest.raises(ValueError, match=r"--set name.first must name keys of sections, got no section before first"):
        load(tmp_path, MINIMAL, "name.first=1")
    with pytest.raises(ValueError, match=r"x.yaml has an unknown key cilp \(nearest: clip\)"):
        load(tmp_path, MINIMAL, "cilp=1")


def test_parse_leaves_its_input_alone() -> None:
    values = {"name": "a", "optimiser": {"learning_rate": 1}, "widths": [1]}
    parse(values, Config, "card")
    assert values == {"name": "a", "optimiser": {"learning_rate": 1}, "widths": [1]}
