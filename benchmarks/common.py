"""What every benchmark does: refuse a busy machine, measure in turns, print medians and a ratio last."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

MOST_LOAD = 0.5
BUSY = 2


@dataclass(frozen=True)
class Goal:
    """What a ratio should be.

    Attributes:
        bound: the limit.
        at_least: whether the ratio should reach the limit; otherwise it should not pass it.
    """

    bound: float
    at_least: bool = False

    def met(self, ratio: float) -> bool:
        """Whether the ratio is on the right side."""
        return ratio >= self.bound if self.at_least else ratio <= self.bound

    def __str__(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.bound:.2f}"


def make_parser(name: str, description: str, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--repeats", type=int, default=repeats, help=f"turns of every variant (default: {repeats})")
    parser.add_argument("--force", action="store_true", help="measure on a busy machine too; quote no such figure")
    return parser


def positive(parser: argparse.ArgumentParser, arguments: argparse.Namespace, *names: str) -> None:
    """Ends with one line and status 2 where an option is below 1."""
    for name in names:
        value = getattr(arguments, name)
        if value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")


def machine_is_idle(*, force: bool) -> bool:
    """Prints load and threads; says on stderr why nothing is measured if the load average is above 0.5."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # Windows has none
    shown = "unknown" if load is None else f"{load:.2f}"
    print(f"load {shown}, threads {torch.get_num_threads()}, torch {torch.__version__}", flush=True)
    if load is None or load <= MOST_LOAD:
        return True
    if force:
        print(f"warning: forced at load {load:.2f}, figures not to be quoted", file=sys.stderr)
        return True
    print(f"error: the load average must be at most {MOST_LOAD}, got {load:.2f}: "
          "wait until the machine is idle, or try it out with --force", file=sys.stderr)
    return False


def seconds_in_turns(
    variants: Mapping[str, Callable[[], object]], repeats: int, *, warm: bool = False
) -> dict[str, float]:
    """Median seconds of each variant: one call of each unless warm, then turns, every other turn in reverse order."""
    for run in () if warm else variants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats):
        names = list(variants)
        for name in names if turn % 2 == 0 else reversed(names):
            began = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(ratios: Mapping[str, float], goal: Goal) -> int:
    """Prints the last line; the exit status is 0 where every ratio meets the goal, else 1."""
    met = all(goal.met(ratio) for ratio in ratios.values())
    listed = ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
    print(f"ratio: {listed} ({goal}: {'met' if met else 'missed'})")
    return 0 if met else 1


def print_table(rows: Sequence[tuple[str, str]]) -> None:
    """Prints names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}", flush=True)
