"""The command line: a prompt becomes layers in files (paper, section on CaT2I-AE-SD: DDIM, 50 steps)."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .files import FORMATS, save_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .checkpoint import Text2LayerModel
    from .pipeline import PipelineOutput, Text2LayerPipeline
    from .sampling import Callback

SAMPLERS = ("ddim", "dpmpp")
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "bfloat16")
MAX_SIDE = 4096
MAX_COUNT = 9999
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class _BadInput(ValueError):
    """Wrong input; its message is the one line that the user sees."""


class _Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one line, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        raise _BadInput(message)


@dataclass(frozen=True, kw_only=True)
class _Report:
    """What one run wrote, as `--json` prints it; `consistency_psnr` in dB, the mean of several pictures."""

    files: list[str]
    seed: int
    seconds: float
    consistency_psnr: float | None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m text2layer_core`; the arguments are checked before torch is imported.

    Args:
        argv: the arguments, those of the process by default.

    Returns:
        The exit status: 0; 2 on wrong input, after one line on stderr; 130 after Ctrl-C.

    Raises:
        SystemExit: after `--help`.
    """
    started = time.perf_counter()
    try:
        options = _parser().parse_args(argv)
        _check_options(options)
        files, psnrs = _draw_all(options)
    except _BadInput as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    report = _Report(
        files=[str(path) for path in files],
        seed=options.seed,
        seconds=round(time.perf_counter() - started, 3),
        consistency_psnr=round(sum(psnrs) / len(psnrs), 3) if psnrs else None,
    )
    print(json.dumps(vars(report), allow_nan=False) if options.json else "\n".join(report.files))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m text2layer_core",
        description="Draws a prompt as a foreground with soft alpha, a background, a layer mask and their composition.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("prompt", metavar="PROMPT", type=_text, help="what to draw")
    add("--out", metavar="DIR", type=Path, default=Path("out"), help="folder for the files (%(default)s)")
    add("--seed", metavar="N", type=int, default=0, help="picture k of several has seed N + k (%(default)s)")
    add("--steps", metavar="N", type=_whole(1), default=50, help="denoising steps (%(default)s)")
    add("--cfg", metavar="W", type=_guidance, help="guidance scale (default: the model's own, else 7.5)")
    add("--sampler", choices=SAMPLERS, default="ddim", help="sampler (%(default)s)")
    add("--size", metavar="WxH", type=_size, help=f"pixels, at most {MAX_SIDE} a side (the model's own)")
    add("--count", metavar="N", type=_whole(1, MAX_COUNT), default=1, help="number of pictures (%(default)s)")
    add("--model", metavar="FILE", type=Path, help="checkpoint (the bundled one)")
    add("--text-encoder", metavar="DIR", type=Path, help="CLIP's folder, for a model that leaves its text encoder out")
    add("--device", choices=DEVICES, default="auto", help="where to compute (%(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="bfloat16 is quicker where supported (%(default)s)")
    formats = ",".join(FORMATS)
    add("--formats", metavar="LIST", type=_formats, default="png,psd", help=f"some of {formats} (%(default)s)")
    add("--json", action="store_true", help="print one JSON object about the run, last on stdout")
    return parser


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("must be valid UTF-8") from error
    return text


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    rule = f"must be a whole number of at least {low}" + (f" and at most {high}" if high else "")

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high and value > high):
            raise argparse.ArgumentTypeError(f"{rule}, got {text!r}")
        return value

    return parse


def _guidance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, got {text!r}")
    return value


def _size(text: str) -> tuple[int, int]:
    width, separator, height = text.lower().partition("x")
    sides = [int(side) if side.isascii() and side.isdigit() else 0 for side in (width, height)]
    if not separator or not all(1 <= side <= MAX_SIDE for side in sides):
        raise argparse.ArgumentTypeError(f"must be WxH, each from 1 to {MAX_SIDE}, got {text!r}")
    return sides[0], sides[1]


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if not set(names) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"must be some of {','.join(FORMATS)}, got {text!r}")
    return names


def _check_options(options: argparse.Namespace) -> None:
    """What no single argument shows: the seeds of all pictures, and the folder."""
    last = options.seed + options.count - 1
    if options.seed < 0 or last >= 2**64:
        raise _BadInput(f"seeds must lie in [0, 2^64), got {options.seed} to {last}")
    try:
        _check_writable(options.out)
    except OSError as error:
        raise _BadInput(f"cannot write to {options.out}: {error.strerror}") from error


def _check_writable(folder: Path) -> None:
    """Tries a nameless file in the folder, or in the one that it will be made in, so that nothing is left."""
    folder = folder.absolute()
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    with tempfile.TemporaryFile(dir=existing):
        pass


def _draw_all(options: argparse.Namespace) -> tuple[list[Path], list[float]]:
    """Draws and writes one picture after the other: the files, and each picture's consistency where it can be told."""
    from tqdm import tqdm

    pipeline = _pipeline(options)
    _warn_if_cut(pipeline.model, options.prompt)
    files: list[Path] = []
    psnrs: list[float] = []
    with tqdm(total=options.count * options.steps, unit="step", file=sys.stderr) as bar:

        def advance(*_: object) -> None:
            bar.update()

        for index in range(options.count):
            output = _draw(pipeline, options, options.seed + index, advance)
            files += _save(options, output, f"-{index + 1:04d}" if options.count > 1 else "")
            psnrs += _consistency(output)
    return files, psnrs


def _pipeline(options: argparse.Namespace) -> Text2LayerPipeline:
    import torch

    from .pipeline import Text2LayerPipeline

    try:
        pipeline = Text2LayerPipeline.from_pretrained(
            options.model,
            device=_device(options.device),
            dtype=getattr(torch, options.dtype),
            text_encoder=options.text_encoder,
        )
    except ValueError as error:
        raise _BadInput(str(error)) from error
    most = pipeline.model.schedule.num_train_timesteps
    if options.steps > most:
        raise _BadInput(f"argument --steps: must be at most {most} for this model, got {options.steps}")
    return pipeline


def _device(name: str) -> str:
    import torch

    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise _BadInput("argument --device: cuda needs a CUDA device, and there is none")
    return "cuda" if found and name != "cpu" else "cpu"


def _warn_if_cut(model: Text2LayerModel, prompt: str) -> None:
    cut = model.text_encoder.truncated(prompt) if model.text_encoder else ""
    if cut:
        print(f'warning: the prompt is too long for this model, cut off: "{_one_line(cut)}"', file=sys.stderr)


def _draw(
    pipeline: Text2LayerPipeline, options: argparse.Namespace, seed: int, callback: Callback
) -> PipelineOutput:
    width, height = options.size or (None, None)
    try:
        return pipeline(
            options.prompt,
            width=width,
            height=height,
            seed=seed,
            steps=options.steps,
            guidance_scale=options.cfg,
            sampler=options.sampler,
            callback=callback,
        )
    except ValueError as error:  # what only drawing shows: a guidance scale that overflows
        raise _BadInput(str(error)) from error


def _save(options: argparse.Namespace, output: PipelineOutput, suffix: str) -> list[Path]:
    try:
        return save_layers(options.out, output.layers, formats=options.formats, prompt=options.prompt, suffix=suffix)
    except OSError as error:
        raise _BadInput(f"cannot write to {error.filename or options.out}: {error.strerror}") from error


def _consistency(output: PipelineOutput) -> list[float]:
    """The PSNR of the predicted against the composed picture; nothing without the head, or where it is infinite."""
    from .metrics import consistency_psnr

    if output.predicted_composed is None:
        return []
    psnr = consistency_psnr(output.predicted_composed, output.composed).item()
    return [psnr] if math.isfinite(psnr) else []


def _one_line(text: str) -> str:
    return " ".join(text.split())
