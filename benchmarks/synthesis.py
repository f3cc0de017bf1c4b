"""The synthesis engine with stand-in models that sleep as a GPU would, so that only the engine is measured."""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.common import Goal, machine_is_idle, make_parser, positive, print_table, report
from train.synthesis.config import (
    EngineConfig,
    InpainterConfig,
    InputConfig,
    PictureConfig,
    PoolConfig,
    SaliencyConfig,
    SynthesisConfig,
)
from train.synthesis.engine import Clock, started
from train.synthesize import synthesize

OUTSIDE = Goal(0.05)
TWO_WORKERS = Goal(1.8, at_least=True)
LINEAR = Goal(1.15)
FLAT = Goal(1.15)
_LONG_SECONDS = 0.0005  # a stand-in's sleep in the long run: the engine is the bottleneck there


@dataclass
class Memory:
    """Resident memory of this process and its workers, in MB, sampled over a run.

    Attributes:
        samples: seconds since the start, and MB.
    """

    samples: list[tuple[float, float]] = field(default_factory=list)

    def between(self, first: float, last: float) -> float:
        """The mean over a part of the run, given as shares of its time."""
        end = self.samples[-1][0]
        return float(np.mean([mb for at, mb in self.samples if first * end <= at <= last * end]))


@contextmanager
def measured_memory(interval: float = 1.0) -> Generator[Memory]:
    """Samples memory on a thread of its own."""
    memory, stop, began = Memory(), threading.Event(), time.monotonic()

    def sample() -> None:
        while not stop.wait(interval):
            memory.samples.append((time.monotonic() - began, _resident()))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        stop.set()
        thread.join()


def _resident() -> float:
    """MB of this process and all below it, shared memory counted once, in the object store's process."""
    total = 0
    process = psutil.Process()
    for each in [process, *process.children(recursive=True)]:
        try:
            info = each.memory_info()
            store = "raylet" in each.name()
        except psutil.Error:
            continue
        total += info.rss if store else info.rss - getattr(info, "shared", 0)
    return total / 2**20


def make_pictures(folder: Path, count: int, side: int) -> None:
    """JPEGs of smooth noise with captions; one file in many is drawn, the others are links to it."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(min(count, 50)):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{index:06d}.jpg", quality=90)
        (folder / f"{index:06d}.txt").write_text("a thing on a ground", encoding="utf-8")
    for index in range(50, count):
        for suffix in (".jpg", ".txt"):
            (folder / f"{index:06d}{suffix}").hardlink_to(folder / f"{index % 50:06d}{suffix}")


def make_config(folder: Path, output: Path, workers: int, side: int, seconds: float, batch: int) -> SynthesisConfig:
    """A run with stand-ins, as many workers of each model as given."""
    pool = PoolConfig(workers=workers, batch_size=batch)
    return SynthesisConfig(
        output=str(output), input=InputConfig(kind="folder", path=str(folder), samples_per_shard=500),
        picture=PictureConfig(size=side, least_side=16), saliency=SaliencyConfig(backend="wait", seconds=seconds),
        inpainting=InpainterConfig(backend="wait", seconds=seconds),
        engine=EngineConfig(saliency=pool, inpainting=pool, compress_level=1), sheet=0)


def timed(config: SynthesisConfig) -> float:
    """Seconds from the first model's call to the last finished sample."""
    clock = Clock()
    synthesize(config, clock)
    return clock.ended - clock.began


def measure_workers(images: int, side: int, seconds: float) -> int:
    """One and two workers of each model; the share outside the models, and how much faster two are.

    Both models sleep for every image, each in workers of its own, so a run that loses nothing takes `seconds` for each
    image and once more for the first image's way through the second model.
    """
    with tempfile.TemporaryDirectory() as name, started(EngineConfig()):
        folder = Path(name)
        make_pictures(folder / "in", images, side)
        walls = {workers: timed(make_config(folder / "in", folder / f"out{workers}", workers, side, seconds, 8))
                 for workers in (1, 2)}
    outside = 1 - seconds * images / walls[1]
    print_table([(f"{workers} worker(s)", f"{wall:.1f} s, {images / wall:.2f} images/s")
                 for workers, wall in walls.items()])
    status = report({"outside the models": outside}, OUTSIDE)
    return max(status, report({"two workers": walls[1] / walls[2]}, TWO_WORKERS))


def measure_long(images: int) -> int:
    """Memory and time of many small pictures: the last quarter against the second, the whole against the half."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "in", images, 32)
        make_pictures(folder / "half", images // 2, 32)
        config = make_config(folder / "in", folder / "out", 1, 32, _LONG_SECONDS, 64)
        with started(EngineConfig()):
            half = timed(replace(config, output=str(folder / "out-half"),
                                 input=replace(config.input, path=str(folder / "half"))))
            with measured_memory() as memory:
                whole = timed(config)
    rows = [(f"memory, quarter {quarter}", f"{memory.between((quarter - 1) / 4, quarter / 4):.0f} MB")
            for quarter in (1, 2, 3, 4)]
    rows += [("time", f"{whole:.0f} s; of half as many {half:.0f} s"), ("rate", f"{images / whole:.0f} images/s")]
    print_table(rows)
    status = report({"memory": memory.between(0.75, 1) / memory.between(0.25, 0.5)}, FLAT)
    return max(status, report({"time": whole / (2 * half)}, LINEAR))


def make_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses and checks."""
    parser = make_parser("synthesis", __doc__ or "", repeats=1)
    parser.add_argument("--long", action="store_true", help="memory and time over 100,000 pictures of 32 pixels")
    parser.add_argument("--images", type=int, help="pictures (default: 2000, or 100000 with --long)")
    parser.add_argument("--side", type=int, default=256, help="their pixels a side, without --long (default: 256)")
    parser.add_argument("--seconds", type=float, default=0.2, help="a stand-in's sleep for an image (default: 0.2)")
    arguments = parser.parse_args(argv)
    if arguments.images is None:
        arguments.images = 100_000 if arguments.long else 2000
    positive(parser, arguments, "images", "side")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0 where the goals are met, 1 where one is missed, 2 on a busy machine."""
    arguments = make_arguments(argv)
    if not machine_is_idle(force=arguments.force):
        return 2
    if arguments.long:
        return measure_long(arguments.images)
    return measure_workers(arguments.images, arguments.side, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
