"""benchmarks/synthesis.py on a few small pictures; its ratios are for an idle machine, not for a test."""

from __future__ import annotations

import re

import pytest

from benchmarks.synthesis import Memory, main


def test_memory_is_averaged_over_shares_of_the_time() -> None:
    """By hand: of four samples a second apart, the last quarter has the last two, with its beginning."""
    memory = Memory([(1.0, 10.0), (2.0, 20.0), (3.0, 30.0), (4.0, 40.0)])
    assert memory.between(0.75, 1) == 35
    assert memory.between(0, 1) == 25


@pytest.mark.slow
def test_a_small_run_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Models sleep 0.1 s an image: no run is faster than eight images of one worker, or four of each of two."""
    pytest.importorskip("ray")
    assert main(["--images", "8", "--side", "64", "--seconds", "0.1", "--force"]) in (0, 1)
    printed = capsys.readouterr().out
    walls = [float(seconds) for seconds in re.findall(r"worker\(s\) +([\d.]+) s, [\d.]+ images/s", printed)]
    assert len(walls) == 2
    assert walls[0] >= 0.8
    assert walls[1] >= 0.4
    assert re.findall(r"^ratio: (.+?) [\d.]+ \(", printed, flags=re.MULTILINE) == ["outside the models", "two workers"]


@pytest.mark.parametrize("option", ["--images", "--side"])
def test_numbers_are_checked(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([option, "0"])
    assert f"{option} must be at least 1, got 0" in capsys.readouterr().err
