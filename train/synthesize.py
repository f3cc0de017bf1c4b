"""Captioned photographs into two-layer samples: `python -m train.synthesize --config FILE [--set A.B=VALUE]`.

The same command goes on where it was stopped, also after a kill or a power cut.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from train.config import load_config
from train.data import expand
from train.synthesis.config import SynthesisConfig
from train.synthesis.engine import Clock, samples, started
from train.synthesis.errors import check_installed
from train.synthesis.inpainting import check_inpainter
from train.synthesis.inputs import list_shards
from train.synthesis.manifest import Output, locked
from train.synthesis.report import write_report
from train.synthesis.saliency import check_saliency
from train.synthesis.stages import check_filters
from train.synthesis.writer import ShardWriter


def synthesize(config: SynthesisConfig, clock: Clock | None = None) -> dict[str, Any]:
    """Makes what is not made yet, then manifest and report.

    Args:
        config: of the run.
        clock: is told when models and samples were at work.

    Returns:
        The manifest.

    Raises:
        ValueError: the config does not fit the files, or the folder another run; or a package is missing.
        RuntimeError: a worker failed.
        OSError: the disk is full, or otherwise unwilling. What is finished stays, as after Ctrl-C.
    """
    check_installed("ray", "pyarrow", "webdataset", "cv2")
    check_saliency(config.saliency)
    check_inpainter(config.inpainting)
    check_filters(config.filters)
    shards = list_shards(config.input)
    folder = expand(config.output)
    with locked(folder):
        output = Output(folder, config, shards)
        todo = [shard for shard in shards if shard.number not in output.done]
        try:
            if todo:
                _run(config, output, todo, clock or Clock())
        finally:
            manifest = output.write_manifest(len(shards))
        write_report(output, manifest, config.sheet)
    return manifest


def _run(config: SynthesisConfig, output: Output, shards: Sequence[Any], clock: Clock) -> None:
    writer = ShardWriter(output, shards, config.sheet)
    done = sum(entry["samples"] for entry in output.done.values())
    known = [len(shard.rows) for shard in shards if shard.rows is not None]
    total = done + sum(known) if len(known) == len(shards) else None
    with (_noticed_interrupt() as interrupted, started(config.engine),
          tqdm(total=total, initial=done, unit="image", file=sys.stderr) as bar):
        for sample in samples(config, shards):
            if interrupted.is_set():
                raise KeyboardInterrupt
            if writer.add(sample):
                clock.note(sample)
                bar.update()


@contextmanager
def _noticed_interrupt() -> Generator[threading.Event]:
    """Notes Ctrl-C besides raising it: one that comes inside a callback of Ray's is lost otherwise."""
    seen = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, frame: object) -> None:
        seen.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        Exit status: 0; 1 where a worker failed or the disk is full; 2 on bad input, one line each; 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m train.synthesize", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see train/configs/synthesize.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="overrides a key of the config")
    arguments = parser.parse_args(argv)
    try:
        manifest = synthesize(load_config(arguments.config, arguments.set, SynthesisConfig))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last finished shard", file=sys.stderr)
        return 130
    print(f"{manifest['kept']} of {manifest['samples']} samples kept")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
