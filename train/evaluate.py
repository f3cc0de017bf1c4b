"""How good a model's pictures are, with 95 % intervals: `python -m train.evaluate --model FILE [--json]`."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from text2layer_core.checkpoint import Text2LayerModel, bundled_model_path
from text2layer_core.compositing import compose
from text2layer_core.pipeline import Text2LayerPipeline
from train.check import check_arguments, images_seen, open_icons
from train.commands import exit_status
from train.data import DataConfig, Source, open_source
from train.evaluator import load_evaluator
from train.judge import Drawing, Drawn, IconJudge, Interval, Judge, PhotographJudge, code, draw, intervals
from train.latents import weights_digest
from train.pictures import save_grid
from train.shards import ShardsConfig

_SHEET_COLUMNS = 8
_SORTED_BY = ("similarity", "consistency_psnr", "iou_saliency")
_PLOTTED = ("area", "components", "softness")


def make_judge(
    arguments: argparse.Namespace, model: Text2LayerModel, device: torch.device
) -> tuple[Source, Judge, Mapping[str, Any]]:
    """The samples whose captions are drawn, who judges, and what the report says of the judge.

    Raises:
        ValueError: the data or a judge's file is not there, or does not fit.
    """
    if arguments.data == "icons":
        source = open_icons(model, arguments.split, arguments.sprites)
        evaluator = load_evaluator(arguments.evaluator, device)
        return source, IconJudge(evaluator, source, arguments.references), evaluator.card
    size = int(model.card.get("resolution", 256))
    config = DataConfig(source="shards", size=size, shards=ShardsConfig(files="", held_out=arguments.data))
    source = open_source(config, "held_out")
    judge = PhotographJudge(source, arguments.references, inception=arguments.inception, clip=arguments.clip,
                            saliency=arguments.saliency, device=device, first=arguments.count)
    return source, judge, {name: str(getattr(arguments, name)) for name in ("inception", "clip", "saliency")}


def evaluate(arguments: argparse.Namespace) -> None:
    """Draws what is not drawn yet, and judges it; writes the report into --out, and prints it.

    Beside it stand the true layers of the same prompts, and what the model's autoencoder alone makes of these.
    """
    if arguments.split == "train" and arguments.data != "icons":
        raise ValueError(f"--split train must go with --data icons, got {arguments.data}")
    check_arguments(arguments, {"count": 10, "references": 10, "steps": 1, "seed": 0})
    device = torch.device(arguments.device)
    path = arguments.model or bundled_model_path()
    pipeline = Text2LayerPipeline.from_pretrained(path, device=device, text_encoder=arguments.text_encoder)
    model = pipeline.model
    source, judge, card = make_judge(arguments, model, device)
    guidance = arguments.cfg if arguments.cfg is not None else model.guidance_scale
    drawing = Drawing(count=arguments.count, seed=arguments.seed, steps=arguments.steps, guidance_scale=guidance,
                      sampler=arguments.sampler)
    weights = hashlib.sha256(path.read_bytes()).hexdigest()
    key = weights if arguments.text_encoder is None else [weights, str(arguments.text_encoder)]
    drawn = draw(pipeline, source, drawing, arguments.out / "drawn", key)
    truth = source.batch(0, arguments.count).image
    judged = {"model": drawn, "autoencoder": code(pipeline, truth, drawing.batch_size), "truth": Drawn(truth, None)}
    figures = {who: judge.figures(pictures) for who, pictures in judged.items()}
    table = {who: intervals(figures[who]) | judge.distances(compose(pictures.layers))
             for who, pictures in judged.items()}
    report = {
        "weights": model_digest(model), "images": images_seen(model.card), "split": arguments.split, **asdict(drawing),
        "references": arguments.references, "judge": card,
        **{who: {name: asdict(figure) for name, figure in found.items()} for who, found in table.items()},
    }
    traces: dict[str, Interval] = {}
    if isinstance(judge, IconJudge):
        traces = judge.traces(truth)
        report |= {"traces": {opacity: asdict(figure) for opacity, figure in traces.items()},
                   **judge.by_word(figures["model"])}
    (arguments.out / "report.json").write_text(json.dumps(_plain(report), indent=1), encoding="utf-8")
    if sorted_by := [name for name in _SORTED_BY if name in figures["model"]]:
        save_sheet(arguments.out / "sheet.png", drawn, figures["model"][sorted_by[0]])
    save_plots(arguments.out, figures)
    if arguments.json:
        print(json.dumps(_plain(report), allow_nan=False))
        return
    print(format_table(table))
    if traces:
        seen = ", ".join(f"{figure} at {opacity}" for opacity, figure in traces.items())
        print(f"leakage of true backgrounds with the true thing at an opacity: {seen}")


def model_digest(model: Text2LayerModel) -> str:
    """Of all its weights, whatever else its file says."""
    return weights_digest(*(part for part in (model.autoencoder, model.unet, model.text_encoder) if part is not None))


def save_sheet(path: Path, drawn: Drawn, figure: Tensor) -> None:
    """The pictures with the highest figure (n,), a median row, and those with the lowest: composed, F, B, m of each."""
    order = figure.argsort(descending=True)
    columns = min(_SHEET_COLUMNS, len(order))
    middle = (len(order) - columns) // 2
    layers = drawn.layers
    parts = (compose(layers), layers.foreground, layers.background, layers.mask.expand(-1, 3, -1, -1))
    groups = (order[:columns], order[middle : middle + columns], order[-columns:])
    save_grid(path, [part[rows] for rows in groups for part in parts])


def save_plots(folder: Path, figures: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Histograms of the masks' area, components and softness, the model's beside true ones (paper, figures 17, 18)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(_PLOTTED), 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(_PLOTTED)), _PLOTTED, strict=True):
        values = [found[name].numpy() for found in figures.values()]
        axes.hist(values, bins=20, label=list(figures), density=True)
        axes.set_xlabel(f"mask: {name}")
        axes.legend()
    figure.savefig(folder / "masks.png", dpi=100)


def format_table(table: Mapping[str, Mapping[str, Interval]]) -> str:
    """A figure a line, the model's first."""
    lines = [f"{'':28}" + "".join(f"{who:>22}" for who in table)]
    for name in table["model"]:
        cells = [str(found[name]) if name in found else "-" for found in table.values()]
        lines.append(f"{name:28}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """NaN as null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, 2 on bad input, 130 when it was stopped, both with one line."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, help="checkpoint (default: the bundled one)")
    parser.add_argument("--text-encoder", type=Path, metavar="DIR",
                        help="CLIP's folder, for a model that leaves its text encoder out")
    parser.add_argument("--data", default="icons", metavar="icons|SHARDS",
                        help="icons (held-out scenes), or a glob of WebDataset shards")
    parser.add_argument("--split", default="held_out", choices=["held_out", "train"],
                        help="of icons; train is for choosing the guidance (default: held_out)")
    parser.add_argument("--sprites", type=Path, help="sprite cache (default: the one that the model's card names)")
    parser.add_argument("--evaluator", type=Path, help="icon evaluator (default: the one beside the bundled model)")
    parser.add_argument("--inception", type=Path, help="for shards: TorchScript file of the Inception under FID")
    parser.add_argument("--clip", type=Path, help="for shards: folder of a CLIP model (transformers)")
    parser.add_argument("--saliency", metavar="grabcut|FOLDER",
                        help="for shards: the masks' reference, a segmentation model (transformers)")
    parser.add_argument("--count", type=int, default=512, help="pictures to draw")
    parser.add_argument("--references", type=int, default=4096, help="true pictures under the Frechet distance")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, help="guidance (default: the one in the model's card)")
    parser.add_argument("--sampler", default="ddim", choices=["ddim", "dpmpp"])
    parser.add_argument("--seed", type=int, default=0, help="of the first picture")
    parser.add_argument("--out", type=Path, default=Path("evaluation"),
                        help="folder of pictures, report.json, sheet.png and masks.png; another call goes on in it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of the table")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: evaluate(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
