"""How soon layers are learnt from a flat model's weights: `python -m train.compare_alignment --config FILE`.

A flat autoencoder and UNet stand for Stable Diffusion. Three layered models are then trained with one recipe and judged
at the same counts of images: from scratch; with the flat UNet's weights on the autoencoder from scratch; and with the
flat UNet's weights on an autoencoder that began as the flat one and was kept near its latents (`align_latents`). The
command goes on where it was stopped and skips what is done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from text2layer_core.autoencoder import CaT2IAutoencoder
from text2layer_core.compositing import compose
from text2layer_core.pipeline import Text2LayerPipeline
from train.alignment import LatentReference, measured_scale, start_as_flat
from train.baselines import ImageAutoencoder
from train.commands import Interrupted, exit_status
from train.config import load_config
from train.engine import Run, fit, resume
from train.evaluator import IconEvaluator, load_evaluator
from train.judge import IconJudge, check_words, draw, intervals
from train.sd_weights import widen_unet
from train.table_records import stored
from train.tables import CODERS, TablesConfig, Workshop, unseen_scenes, write_page
from train.train_autoencoder import AutoencoderTask, AutoencoderTrainingConfig
from train.train_diffusion import DiffusionTask

TITLES = {
    "scratch": "from scratch",
    "unaligned": "flat UNet, autoencoder from scratch",
    "aligned": "flat UNet, aligned autoencoder",
}
_FIGURES = (("frechet_distance", "Frechet distance", -1), ("soft_iou_saliency", "soft IOU", 1))
_ALIGNED = 256


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig(TablesConfig):
    """The whole config file: that of `train.tables`, whose systems flat and balanced are trained, and more.

    Attributes:
        weight: of the alignment term.
        aligned_images: that the aligned autoencoder sees after it began as the flat one.
        judged_at: counts of images that a layered UNet has seen; the last one ends its training.

    Raises:
        ValueError: counts that are not rising or not whole steps.
    """

    weight: float
    aligned_images: int
    judged_at: tuple[int, ...]

    def __post_init__(self) -> None:
        """Checks the counts."""
        counts, batch = self.judged_at, self.diffusion_training.batch_size
        if not counts or list(counts) != sorted(set(counts)) or counts[-1] < 1 or any(n % batch for n in counts):
            raise ValueError(f"judged_at must be rising multiples of the batch of {batch}, got {list(counts)}")


class AlignmentShop(Workshop):
    """Trains and judges for one seed."""

    def __init__(self, config: AlignmentConfig, seed: int, evaluator: IconEvaluator) -> None:
        """Nothing is trained yet; ValueError where the evaluator does not know what the data show."""
        super().__init__(config, seed)
        self._alignment, self._evaluator = config, evaluator
        self._unseen = unseen_scenes(config.data)
        check_words(evaluator, self._unseen)
        self._judge: IconJudge | None = None

    def autoencoders(self) -> dict[str, dict[str, float | None]]:
        """What each layered autoencoder keeps of true scenes, and how far its latents are from the flat one's."""
        return stored(self._folder / "alignment.json", self._judged_by(), self._measured_autoencoders)

    def _measured_autoencoders(self) -> dict[str, dict[str, float | None]]:
        flat = self._flat()
        found: dict[str, dict[str, float | None]] = {}
        for name, coder in (("scratch", self._coder("balanced")), ("aligned", self._aligned())):
            kept = self._reconstruction_of(coder, self._unseen)
            found[name] = {**kept, "latent_error": self._latent_error(coder, flat)}
        return found

    def judged(self, name: str) -> dict[int, Mapping[str, Any]]:
        """Count of images -> figures of one layered model; from scratch there are none at 0."""
        counts = [count for count in self._alignment.judged_at if count or name != "scratch"]
        opened = cache(partial(self._open, name))
        return {count: stored(self._folder / f"{name}-{count}.json", [self._judged_by(), count],
                              partial(self._trained_and_judged, opened, count)) for count in counts}

    def _trained_and_judged(
        self, opened: Callable[[], tuple[Run, DiffusionTask]], count: int
    ) -> Mapping[str, Any]:
        """What a layered model reaches at a count of images, where its training stands before that."""
        run, task = opened()
        if run.images > count:
            raise ValueError(f"{run.folder} must not be beyond {count} images, whose figures are missing, got "
                             f"{run.images}: remove it")
        if run.images < count:
            print(f"{self._folder.name}: {run.folder.name} to {count}", file=sys.stderr)
            fit(run, until=count)
        if run.images < count:
            raise Interrupted(run.folder.name)
        return self._judged(run, task, count)

    def _judged_by(self) -> object:
        return [asdict(self._alignment), self._evaluator.card]

    def _flat(self) -> ImageAutoencoder:
        coder = self._coder("images")
        if not isinstance(coder, ImageAutoencoder):
            raise TypeError("the coder of images must be an image autoencoder")
        return coder.to(self._device).eval()

    def _aligned(self) -> CaT2IAutoencoder:
        """Begun as the flat one, trained with the balanced losses and the alignment term."""
        config, flat = self._alignment, self._flat()
        training = replace(config.autoencoder_training, images=config.aligned_images, seed=self._seed)
        whole = AutoencoderTrainingConfig(
            run=str(self._folder / "autoencoder-aligned"), data=config.data, training=training,
            autoencoder=config.autoencoder, losses=config.balanced, cached=config.cached,
        )
        set_seed(self._seed)
        source = self._source(CODERS["balanced"])
        reference = LatentReference(flat, measured_scale(flat, source, self._device), config.weight)
        task = AutoencoderTask(whole, source, reference=reference)
        coverage = float(source.batch(0, _ALIGNED).image.mask.mean())
        start_as_flat(task.autoencoder, flat.cpu(), coverage)
        flat.to(self._device)
        run = self._fit(Path(whole.run), training, task)
        if run.ema is not None:
            task.autoencoder.load_state_dict(run.ema.state_dict())
        return task.autoencoder

    def _open(self, name: str) -> tuple[Run, DiffusionTask]:
        """A layered model at its beginning, or where an earlier call left it."""
        config = self._alignment
        coder = self._aligned() if name == "aligned" else self._coder("balanced")
        training = replace(config.diffusion_training, images=config.judged_at[-1], seed=self._seed)
        task = self._diffusion_task(name, coder, training, self._source(CODERS["balanced"]))
        if name != "scratch":
            flat_run, flat = self._diffusion("flat")
            with flat_run.averaged_weights():
                widen_unet(task.model.unet, flat.model.unet)
            if name == "aligned":  # latents like the flat ones, so their scale
                task.model.latent_scale.copy_(flat.model.latent_scale)
        run = Run(self._folder / name, training, self._accelerator, task)
        resume(run, "auto")
        return run, task

    def _judged(self, run: Run, task: DiffusionTask, count: int) -> dict[str, Any]:
        if self._judge is None:
            self._judge = IconJudge(self._evaluator, self._unseen, self._alignment.references)
        folder = self._folder / run.folder.name / f"drawn-{count}"
        with run.averaged_weights():
            pipeline = Text2LayerPipeline(task.checkpoint(run.images), self._device)
            drawn = draw(pipeline, self._unseen, self._alignment.drawing, folder,
                         [self._judged_by(), self._seed, count])
        figures = intervals(self._judge.figures(drawn)) | self._judge.distances(compose(drawn.layers))
        return {key: asdict(value) for key, value in figures.items()}

    @torch.no_grad()
    def _latent_error(self, coder: CaT2IAutoencoder, flat: ImageAutoencoder) -> float:
        """Mean squared distance of the latents in variances of the flat ones, on unseen scenes."""
        reference = LatentReference(flat, measured_scale(flat, self._unseen, self._device), 1.0)
        stack = self._unseen.batch(0, _ALIGNED, self._device).stack
        return float(reference.loss(stack, coder.to(self._device).eval().encode_stack(stack).mean))


def images_to_reach(found: Mapping[int, Mapping[str, Any]], figure: str, goal: float, sign: int) -> float | None:
    """The count of images at which a figure first reaches a goal, between judged counts on a straight line.

    Args:
        found: count -> figure name -> {"value": ...}.
        figure: its name.
        goal: to reach.
        sign: 1 where higher is better, -1 where lower is.

    Returns:
        The count; None where the goal is never reached.
    """
    before: tuple[int, float] | None = None
    for count, figures in sorted(found.items()):
        value = float(figures[figure]["value"])
        if sign * value >= sign * goal:
            if before is None:
                return count
            share = (goal - before[1]) / (value - before[1])
            return before[0] + share * (count - before[0])
        before = count, value
    return None


def write_comparison(
    config: AlignmentConfig, results: Mapping[int, tuple[Mapping[str, Any], Mapping[str, Mapping[int, Any]]]]
) -> str:
    """Markdown tables; `results` are seed -> (autoencoders, layered model -> count -> figures)."""
    counts = config.judged_at
    lines: list[str] = []
    for figure, title, _ in _FIGURES:
        lines += [f"{title} after so many images of the layered UNet's training:", "",
                  "| begun | seed | " + " | ".join(f"{count:,}" for count in counts) + " |",
                  "|---" * (2 + len(counts)) + "|"]
        for name, heading in TITLES.items():
            for seed, (_, systems) in results.items():
                cells = [_cell(systems[name].get(count, {}).get(figure)) for count in counts]
                lines.append(f"| {heading} | {seed} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["Images until what training from scratch ends with:", "",
              "| begun | seed | " + " | ".join(title for _, title, _ in _FIGURES) + " |",
              "|---" * (2 + len(_FIGURES)) + "|"]
    for name, heading in TITLES.items():
        for seed, (_, systems) in results.items():
            cells: list[str] = []
            for figure, _, sign in _FIGURES:
                goal = float(systems["scratch"][counts[-1]][figure]["value"])
                reached = images_to_reach(systems[name], figure, goal, sign)
                cells.append("never" if reached is None else f"{reached:,.0f} ({goal:.3f})")
            lines.append(f"| {heading} | {seed} | {' | '.join(cells)} |")
    columns = (("composed_psnr", "composed, dB"), ("foreground_psnr", "foreground where m > 0.5, dB"),
               ("background_psnr", "background, dB"), ("mask_soft_iou", "mask, soft IoU"),
               ("latent_error", "latents' distance from the flat ones, in variances"))
    lines += ["", "The autoencoders:", "", "| begun | seed | " + " | ".join(title for _, title in columns) + " |",
              "|---" * (2 + len(columns)) + "|"]
    for name, heading in (("scratch", "from scratch"), ("aligned", "as the flat one, aligned")):
        for seed, (coders, _) in results.items():
            values = [coders[name].get(key) for key, _ in columns]
            lines.append(f"| {heading} | {seed} | "
                         + " | ".join("-" if value is None else f"{value:.3f}" for value in values) + " |")
    return "\n".join(lines) + "\n"


def _cell(found: Mapping[str, float] | None) -> str:
    return "-" if found is None else f"{found['value']:.3f} ± {(found['high'] - found['low']) / 2:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, 1 when a loss became infinite, 2 on bad input (one line each), 130 when it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m train.compare_alignment", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "configs" / "alignment.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="overrides a key of the config")
    parser.add_argument("--evaluator", type=Path, help="icon evaluator (default: the one beside the bundled model)")
    parser.add_argument("--out", type=Path, help="Markdown file (default: print)")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: compare(arguments))


def compare(arguments: argparse.Namespace) -> None:
    """Checks everything, trains, judges, and writes the page; raises what `exit_status` takes."""
    config = load_config(arguments.config, arguments.set, AlignmentConfig)
    evaluator = load_evaluator(arguments.evaluator)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[int, tuple[Mapping[str, Any], Mapping[str, Mapping[int, Any]]]] = {}
    for seed in config.seeds:
        shop = AlignmentShop(config, seed, evaluator)
        coders = shop.autoencoders()
        results[seed] = coders, {name: shop.judged(name) for name in TITLES}
    write_page(arguments.out, write_comparison(config, results))


if __name__ == "__main__":
    raise SystemExit(main())
