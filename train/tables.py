"""The paper's tables in miniature, on data whose truth is exact: `python -m train.tables --config FILE`.

Every system is trained on the same scenes, in the same order, with the same recipe, and judged by the same evaluator.
The command goes on where it was stopped and skips what is done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from text2layer_core.atomic import write_text
from text2layer_core.autoencoder import AutoencoderConfig, CaT2IAutoencoder
from text2layer_core.checkpoint import bundled_model_path
from text2layer_core.compositing import compose
from text2layer_core.layers import TwoLayerImage
from text2layer_core.pipeline import Text2LayerPipeline
from text2layer_core.schedule import ScheduleConfig
from text2layer_core.unet import UNetConfig
from train.baselines import (
    FlatAutoencoder,
    ImageAutoencoder,
    ImageAutoencoderTask,
    LayeredBaseline,
    SeparateAutoencoder,
    UnfilteredSource,
)
from train.check import check_reconstruction
from train.commands import Interrupted, exit_status
from train.config import load_config
from train.data import DataConfig, Source, expand, open_source
from train.engine import Run, Task, TrainingConfig, fit, resume
from train.evaluator import IconEvaluator, load_evaluator
from train.filtered import FilteredSource, FilterFiles, load_filters
from train.icons.source import IconSource
from train.judge import Drawing, Drawn, IconJudge, check_words, draw, intervals
from train.latents import weights_digest
from train.pictures import save_grid
from train.sd_weights import widen_unet
from train.table_records import read_records, stored, text_digest, write_records
from train.train_autoencoder import AutoencoderTask, AutoencoderTrainingConfig, LossConfig
from train.train_diffusion import DiffusionTask, DiffusionTrainingConfig, LatentSource, TextConfig, make_text_encoder
from train.write_tables import write_tables

Layout = Literal["joint", "separate", "flat"]
_RECONSTRUCTIONS = 512
_SHEET_COLUMNS, _SHEET_PICTURES = 8, 16


@dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """The whole config file.

    Attributes:
        run: folder of all runs, outside the checkout.
        seeds: of weights and noise; each trains all systems.
        data: icons; the pictures judged are other scenes of the same kinds.
        cached: samples drawn and encoded once.
        unfiltered_share: samples with a defect in the data that nobody filtered.
        fine_tuning_share: of the images that the fine-tuned system sees, as the paper's 25k steps of 75k.
        autoencoder: of CaT2I-AE, and of the image autoencoder (trunk and head).
        losses: the paper's.
        balanced: ours.
        unet: its in_channels is replaced by what each autoencoder has.
        text: checkpoint whose text encoder all systems share, frozen as the paper's CLIP; None is the bundled model,
            whose next state may have another one: figures with different ones do not go on one page.
        drawing: of the judged pictures.
        references: true scenes under the Frechet distance.
        filters: learned quality filters; without them their row is left out.
    """

    run: str
    seeds: tuple[int, ...]
    data: DataConfig
    cached: int
    autoencoder: AutoencoderConfig
    losses: LossConfig
    balanced: LossConfig
    autoencoder_training: TrainingConfig
    unet: UNetConfig
    diffusion_training: TrainingConfig
    drawing: Drawing
    references: int
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    foreground_weight: float = 0.0
    unfiltered_share: float = 0.4
    fine_tuning_share: float = 0.33
    text: str | None = None
    filters: FilterFiles | None = None


@dataclass(frozen=True, kw_only=True)
class Coder:
    """An autoencoder of the tables, and its data: clean, broken in part, or what learned filters leave of that.

    `losses` are changes to the paper's, or to ours where it is balanced. One that is not joint codes single pictures:
    foregrounds, backgrounds, masks and composed ones, or these alone.
    """

    joint: bool = True
    composed_only: bool = False
    composed_head: bool = True
    balanced: bool = False
    data: Literal["clean", "unfiltered", "filtered"] = "clean"
    losses: Mapping[str, Any] = field(default_factory=dict[str, Any])
    latent_noise: float = 0.0
    latent_channels: int | None = None


CODERS = {
    "joint": Coder(),
    "no-sup": Coder(composed_head=False),
    "images": Coder(joint=False),
    "composed": Coder(joint=False, composed_only=True),
    "unfiltered": Coder(data="unfiltered"),
    "filtered": Coder(data="filtered"),
    "balanced": Coder(balanced=True),
    "area": Coder(balanced=True, losses={"composition": 0.0, "consistency": 0.0}),
    "no-consistency": Coder(balanced=True, losses={"consistency": 0.0}),
    "no-composition": Coder(balanced=True, losses={"composition": 0.0}),
    "uncertainty": Coder(losses={"uncertainty": True}),
    "channels-16": Coder(balanced=True, latent_channels=16),
    "hidden": Coder(balanced=True, losses={"hidden_background": 1.0}),
    "hidden-noise": Coder(balanced=True, losses={"hidden_background": 1.0}, latent_noise=0.4),
}


@dataclass(frozen=True, kw_only=True)
class System:
    """A row of the tables: its name there, its autoencoder, what the UNet sees of it, and where its weights begin.

    A system that is tried for the open problem alone stands in a table of its own.
    """

    title: str
    coder: str
    layout: Layout = "joint"
    begins_as: str | None = None
    tried: bool = False


SYSTEMS = {
    "cat2i": System(title="CaT2I-AE-SD", coder="joint"),
    "no-sup": System(title="CaT2I-AE-SD (no-sup)", coder="no-sup"),
    "sd-ae": System(title="SD-AE-UNet", coder="images", layout="separate"),
    "flat": System(title="SD-L2I", coder="images", layout="flat"),
    "flat-own": System(title="SD-L2I, its autoencoder on composed pictures alone", coder="composed", layout="flat"),
    "sd-ae-ft": System(title="SD-AE-UNet (ft)", coder="images", layout="separate", begins_as="flat"),
    "unfiltered": System(title="CaT2I-AE-SD, unfiltered data", coder="unfiltered"),
    "filtered": System(title="CaT2I-AE-SD, unfiltered data through learned filters", coder="filtered"),
    "balanced": System(title="CaT2I-AE-SD, balanced (ours)", coder="balanced"),
    "area": System(title="F by area alone", coder="area", tried=True),
    "no-consistency": System(title="balanced without predicted I's consistency", coder="no-consistency", tried=True),
    "no-composition": System(title="balanced without the composition's L1", coder="no-composition", tried=True),
    "uncertainty": System(title="the paper's terms weighted by uncertainty", coder="uncertainty", tried=True),
    "channels-16": System(title="balanced, 16 latent channels", coder="channels-16", tried=True),
    "hidden": System(title="balanced, B by area", coder="hidden", tried=True),
    "hidden-noise": System(title="balanced, B by area, noise on the decoder's latents", coder="hidden-noise",
                           tried=True),
}


def unseen_scenes(data: DataConfig) -> IconSource:
    """What is judged on: other scenes of the same kinds; ValueError where the data are no icons."""
    source = open_source(replace(data, seed=data.seed + 1))
    if not isinstance(source, IconSource):
        raise ValueError(f"data: source must be icons, got {data.source}")
    return source


def true_figures(config: TablesConfig, evaluator: IconEvaluator) -> dict[str, Any]:
    """What the true layers of the judged scenes reach: as good as any system can be."""
    def measure() -> dict[str, Any]:
        unseen = unseen_scenes(config.data)
        judge, truth = IconJudge(evaluator, unseen, config.references), unseen.batch(0, config.drawing.count).image
        found = intervals(judge.figures(Drawn(truth, None))) | judge.distances(compose(truth))
        return {key: asdict(value) for key, value in found.items()}

    key = [asdict(config.data), config.drawing.count, config.references, weights_digest(evaluator)]
    return stored(expand(config.run) / "truth.json", key, measure)


class Workshop:
    """Trains what a table needs, for one seed, and keeps it in folders of its own."""

    def __init__(self, config: TablesConfig, seed: int) -> None:
        """Nothing is trained yet."""
        self._config, self._seed = config, seed
        self._folder = expand(config.run) / f"seed-{seed}"
        self._text = text_digest(config)
        self._accelerator = Accelerator(
            mixed_precision="bf16" if config.diffusion_training.precision == "bf16" else "no"
        )
        self._device = self._accelerator.device

    def train(self, name: str) -> None:
        """Trains one system and what it stands on, as far as it is not done."""
        self._diffusion(name)

    def figures(self, name: str, evaluator: IconEvaluator) -> dict[str, Any]:
        """What one system reaches; from its file where it is there already."""
        return stored(self._folder / f"{name}.json", [self._key(name), evaluator.card],
                      lambda: self._measure(name, evaluator))

    def _key(self, name: str) -> dict[str, Any]:
        """What a system's figures depend on: the filters for those alone that see them."""
        coder = CODERS[SYSTEMS[name].coder]
        return {**asdict(self._config), "coder": asdict(coder), **self._files(coder)}

    def _files(self, coder: Coder) -> dict[str, Any]:
        """The weights that a system is trained with and that are not its own."""
        files = self._config.filters if coder.data == "filtered" else None
        return {"text": self._text, "filters": files and {
            kind: hashlib.sha256(expand(path).read_bytes()).hexdigest() for kind, path in asdict(files).items()}}

    def _measure(self, name: str, evaluator: IconEvaluator) -> dict[str, Any]:
        system = SYSTEMS[name]
        run, task = self._diffusion(name)
        unseen = unseen_scenes(self._config.data)
        judge = IconJudge(evaluator, unseen, self._config.references)
        with run.averaged_weights():
            pipeline = Text2LayerPipeline(task.checkpoint(run.images), self._device)
            drawn = draw(pipeline, unseen, self._config.drawing, self._folder / name / "drawn",
                         [self._key(name), self._seed])
        if system.layout == "flat":
            picture = drawn.layers.foreground
            drawn = Drawn(TwoLayerImage(picture, drawn.layers.background, evaluator.segment(picture)), None)
        composed = compose(drawn.layers)
        save_grid(self._folder / name / "drawn.png", [
            torch.cat(list(part[:_SHEET_PICTURES].expand(-1, 3, -1, -1).split(_SHEET_COLUMNS)))
            for part in (composed, drawn.layers.foreground, drawn.layers.background, drawn.layers.mask)
        ])
        found = intervals(judge.figures(drawn)) | judge.distances(composed)
        reconstruction = self._reconstruction(system, unseen)
        return {"images": run.images, "reconstruction": reconstruction,
                **{key: asdict(value) for key, value in found.items()}}

    def _reconstruction(self, system: System, source: IconSource) -> dict[str, float | None]:
        """What the autoencoder alone keeps of true scenes."""
        return self._reconstruction_of(self._layered(system, self._coder(system.coder)), source)

    def _reconstruction_of(
        self, coder: CaT2IAutoencoder | LayeredBaseline, source: IconSource
    ) -> dict[str, float | None]:
        return check_reconstruction(coder.to(self._device).eval(), source, _RECONSTRUCTIONS, self._device)

    def _coder(self, name: str) -> CaT2IAutoencoder:
        """A trained autoencoder with its average weights, CaT2I-AE's or the image one."""
        coder, config = CODERS[name], self._config
        training = replace(config.autoencoder_training, seed=self._seed)
        whole = AutoencoderTrainingConfig(
            run=str(self._folder / f"autoencoder-{name}"), data=config.data, training=training,
            autoencoder=replace(config.autoencoder, composed_head=coder.composed_head,
                                latent_channels=coder.latent_channels or config.autoencoder.latent_channels),
            losses=replace(config.balanced if coder.balanced else config.losses, **coder.losses),
            cached=config.cached, latent_noise=coder.latent_noise,
        )
        set_seed(self._seed)
        source = self._source(coder)
        task = AutoencoderTask(whole, source) if coder.joint else ImageAutoencoderTask(
            whole, source, composed_only=coder.composed_only)
        run = self._fit(Path(whole.run), training, task)
        if run.ema is not None:
            task.autoencoder.load_state_dict(run.ema.state_dict())
        return task.autoencoder

    def _source(self, coder: Coder) -> Source:
        config = self._config
        clean = open_source(config.data)
        if coder.data == "clean":
            return clean
        unfiltered = UnfilteredSource(clean, config.unfiltered_share, config.data.seed)
        if coder.data == "unfiltered":
            return unfiltered
        if config.filters is None:
            raise ValueError("the system filtered must have a section filters in its config, got none")
        filters = load_filters(config.filters, self._device)
        return FilteredSource(unfiltered, filters, expand(config.run) / "filtered.json", self._device)

    def _layered(self, system: System, coder: CaT2IAutoencoder) -> CaT2IAutoencoder | LayeredBaseline:
        """What codes the layers for the UNet."""
        if isinstance(coder, ImageAutoencoder):
            return SeparateAutoencoder(coder) if system.layout == "separate" else FlatAutoencoder(coder)
        return coder

    def _diffusion(self, name: str) -> tuple[Run, DiffusionTask]:
        """A trained system."""
        system, config = SYSTEMS[name], self._config
        coder: Any = self._layered(system, self._coder(system.coder))
        self._claim(self._folder / name, self._files(CODERS[system.coder]))
        training = replace(config.diffusion_training, seed=self._seed)
        if system.begins_as is not None:
            images = round(training.images * config.fine_tuning_share) // training.batch_size * training.batch_size
            training = replace(training, images=images)
        task = self._diffusion_task(name, coder, training, self._source(CODERS[system.coder]))
        if system.begins_as is not None and not any((self._folder / name / "states").glob("*.pt")):
            other_run, other = self._diffusion(system.begins_as)
            with other_run.averaged_weights():
                widen_unet(task.model.unet, other.model.unet)
        return self._fit(self._folder / name, training, task), task

    def _diffusion_task(
        self, name: str, coder: Any, training: TrainingConfig, source: Source  # noqa: ANN401 - either kind of coder
    ) -> DiffusionTask:
        """A UNet with fresh weights on a coder's latents, its run folder named `name`."""
        config = self._config
        whole = DiffusionTrainingConfig(
            run=str(self._folder / name), autoencoder="", data=config.data, training=training,
            unet=replace(config.unet, in_channels=coder.config.latent_channels),
            text=TextConfig(pretrained=config.text or str(bundled_model_path())), schedule=config.schedule,
            foreground_weight=config.foreground_weight, cached=config.cached,
            guidance_scale=config.drawing.guidance_scale,
        )
        set_seed(self._seed)
        text_encoder = make_text_encoder(whole.text, source).requires_grad_(False)
        latents = LatentSource(source, coder, whole, self._device)
        schedule = replace(config.schedule, latent_scale=latents.measured_scale(self._device))
        return _SystemTask(whole, latents, text_encoder, schedule, source.captions(0, _SHEET_COLUMNS), self._device)

    def _claim(self, folder: Path, files: Mapping[str, Any]) -> None:
        """Notes in a run folder what its system is trained with; ValueError where it was begun with other weights."""
        path = folder / "files.json"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(files))
        elif json.loads(path.read_text(encoding="utf-8")) != files:
            raise ValueError(f"run: {folder} must be of this text encoder and these filters, was begun with others: "
                             "choose another run")

    def _fit(self, folder: Path, training: TrainingConfig, task: Task) -> Run:
        """Trains to the end, from where an earlier call stopped."""
        run = Run(folder, training, self._accelerator, task)
        resume(run, "auto")
        if run.images < training.images:
            print(f"{folder.parent.name}: {folder.name}", file=sys.stderr)
            fit(run)
        if run.images < training.images:
            raise Interrupted(folder.name)
        return run


class _SystemTask(DiffusionTask):
    """A system's training; its states are what the tables are made from."""

    def export(self, path: Path, images: int) -> None:
        """Nothing: no tool loads a baseline."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, 1 when a loss became infinite, 2 on bad input (one line each), 130 when it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m train.tables", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "configs" / "tables.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="overrides a key of the config")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS),
                        help="rows (default: all; filtered only where the config has filters)")
    parser.add_argument("--seeds", nargs="+", type=int, help="some of the config's (default: all)")
    parser.add_argument("--evaluator", type=Path, help="icon evaluator (default: the one beside the bundled model)")
    parser.add_argument("--train-only", action="store_true", help="train alone: needs no evaluator, writes no page")
    parser.add_argument("--out", type=Path, metavar="FILE.md",
                        help="page to write (default: print); figures go into FILE.json, and what that holds of other "
                             "systems and seeds stays on the page")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: make_tables(arguments))


def make_tables(arguments: argparse.Namespace) -> None:
    """Checks everything, trains, judges, and writes the page; raises what `exit_status` takes."""
    config = load_config(arguments.config, arguments.set, TablesConfig)
    unknown = set(arguments.seeds or ()) - set(config.seeds)
    if unknown:
        raise ValueError(f"--seeds must be among {list(config.seeds)}, got {sorted(unknown)}")
    evaluator = None
    results: dict[int, dict[str, Any]] = {}
    if not arguments.train_only:
        evaluator = load_evaluator(arguments.evaluator)
        check_words(evaluator, unseen_scenes(config.data))
        if arguments.out is not None:
            results = read_records(arguments.out, config, evaluator)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
    systems = arguments.systems or [name for name in SYSTEMS if name != "filtered" or config.filters is not None]
    shops = {seed: Workshop(config, seed) for seed in arguments.seeds or config.seeds}
    for shop in shops.values():
        for name in systems:
            shop.train(name)
    if evaluator is None:
        return
    for seed, shop in shops.items():
        for name in systems:
            results.setdefault(seed, {})[name] = shop.figures(name, evaluator)
    truth = true_figures(config, evaluator)
    page = write_tables(config, results, truth, {name: system.title for name, system in SYSTEMS.items()},
                        {name for name, system in SYSTEMS.items() if system.tried}, notes_beside(arguments.out))
    write_page(arguments.out, page)
    if arguments.out is not None:
        write_records(arguments.out, config, evaluator, results, truth)


def write_page(path: Path | None, text: str) -> None:
    """Into a file, or printed."""
    if path is None:
        print(text)
    else:
        path.write_text(text, encoding="utf-8")


def notes_beside(page: Path | None) -> str | None:
    """The name of a file with notes on a page's runs, tables-notes.md beside tables.md, where there is one."""
    notes = page and page.with_name(f"{page.stem}-notes.md")
    return notes.name if notes and notes.is_file() else None


if __name__ == "__main__":
    raise SystemExit(main())
