"""The table of systems at a tiny size, and what its page says of them."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.train.evaluators import PLACES, make_evaluator
from tests.train.test_check import make_model
from text2layer_core.checkpoint import save_checkpoint
from text2layer_core.quality import QualityConfig, QualityFilter, save_quality_filter
from train import table_records, tables
from train.config import load_config, parse
from train.evaluator import load_evaluator, save_evaluator
from train.icons.sprites import SpriteCache
from train.judge import Interval
from train.table_records import read_records
from train.tables import SYSTEMS, TablesConfig, main
from train.write_tables import CLAIMS, _cell, claim_verdict, write_tables


@pytest.fixture(autouse=True)
def few_reconstructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a figure here."""
    monkeypatch.setattr(tables, "_RECONSTRUCTIONS", 16)


@pytest.fixture
def command(sprites: SpriteCache, sprite_file: Path, tmp_path: Path) -> list[str]:
    """All systems at 32 px, two steps each."""
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "text.safetensors", make_model(sprite_file))
    save_evaluator(tmp_path / "evaluator.safetensors", make_evaluator(sprites))
    filters = {kind: str(tmp_path / f"{kind}.safetensors") for kind in ("mask", "inpainting")}
    for kind, path in filters.items():
        size = QualityConfig(image_size=32, width=0.1, depth=0.1)
        save_quality_filter(Path(path), QualityFilter(kind, size, threshold=0.1))
    training = {"images": 16, "batch_size": 8, "learning_rate": 0.001, "ema_half_life": 8}
    losses = {"perceptual": "gradient", "adversarial": 0.0}
    values = {
        "run": str(tmp_path / "run"), "seeds": [1, 2], "cached": 16, "text": str(tmp_path / "text.safetensors"),
        "data": {"source": "icons", "size": 32, "icons": {"cache": str(sprite_file), "places": list(PLACES)}},
        "autoencoder": {"latent_channels": 4, "block_out_channels": [8, 16], "layers_per_block": 1,
                        "norm_num_groups": 4, "patch_size": 2, "head_channels": 8},
        "losses": losses, "balanced": {**losses, "composition": 1.0}, "autoencoder_training": training,
        "unet": {"in_channels": 4, "block_out_channels": [32, 32], "layers_per_block": 1,
                 "attention_levels": [False, True], "num_heads": 2, "cross_attention_dim": 32},
        "diffusion_training": {**training, "images": 32}, "fine_tuning_share": 0.5,
        "drawing": {"count": 10, "steps": 2, "guidance_scale": 2.0}, "references": 16,
        "filters": filters,
    }
    (tmp_path / "tables.yaml").write_text(yaml.safe_dump(values))
    return ["--config", str(tmp_path / "tables.yaml"), "--evaluator", str(tmp_path / "evaluator.safetensors"),
            "--out", str(tmp_path / "tables.md")]


@pytest.mark.slow
def test_every_system_and_what_is_done_is_skipped(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops once in the middle; the same command goes on; a third call trains and draws nothing."""
    tried = ["hidden-noise", "channels-16"]
    shown = [name for name, system in SYSTEMS.items() if name in tried or not system.tried]
    steps: list[str] = []
    fit = tables.fit

    def stops(run: Any) -> None:
        steps.append(run.folder.name)
        if len(steps) == 4:
            run.config = replace(run.config, images=run.config.images // 2)
        fit(run)

    monkeypatch.setattr(tables, "fit", stops)
    seed = ["--seeds", "1", "--systems", *shown]
    assert main([*command, *seed]) == 130
    assert len(steps) == 4
    monkeypatch.setattr(tables, "fit", lambda run: (steps.append(run.folder.name), fit(run)))
    assert main([*command, *seed]) == 0
    page = (tmp_path / "tables.md").read_text()
    for name in shown:
        assert f"| {SYSTEMS[name].title} |" in page
    assert page.count("not run") == 0
    done = len(steps)
    before = (tmp_path / "run" / "seed-1" / "cat2i.json").read_text()
    assert main([*command, *seed]) == 0
    assert len(steps) == done
    assert (tmp_path / "run" / "seed-1" / "cat2i.json").read_text() == before
    figures = json.loads(before)["figures"]
    assert figures["images"] == 32
    assert json.loads((tmp_path / "run" / "seed-1" / "sd-ae-ft.json").read_text())["figures"]["images"] == 16
    flat = json.loads((tmp_path / "run" / "seed-1" / "flat.json").read_text())["figures"]
    assert flat["iou_saliency"]["value"] == pytest.approx(1)


def test_figures_of_other_runs_stay_on_the_page(
    command: list[str], sprites: SpriteCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two seeds by two calls, the second where nothing of the first run is left; another recipe's do not mix."""
    assert main([*command, "--seeds", "1", "--systems", "cat2i"]) == 0
    kept = json.loads((tmp_path / "tables.json").read_text())["seeds"]["1"]
    second = [*command, "--set", f"run={tmp_path / 'other'}", "--seeds", "2", "--systems", "cat2i"]
    assert main(second) == 0
    assert json.loads((tmp_path / "tables.json").read_text())["seeds"]["1"] == kept
    rows = (tmp_path / "tables.md").read_text().count("| CaT2I-AE-SD |")
    assert rows == 4  # two seeds among the systems and among the autoencoders
    assert main([*second, "--set", "references=8"]) == 2
    assert "must hold figures of the config's recipe, got another references:" in capsys.readouterr().err
    torch.manual_seed(1)
    save_evaluator(tmp_path / "evaluator.safetensors", make_evaluator(sprites))
    assert main(second) == 2
    assert "must hold figures of the config's recipe, got another judge:" in capsys.readouterr().err


def test_a_run_folder_of_another_text_encoder(
    command: list[str], sprite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its states are not taken for the new one's."""
    one = [*command, "--seeds", "2", "--systems", "no-sup", "--train-only"]
    assert main(one) == 0
    model = make_model(sprite_file)
    assert model.text_encoder is not None
    with torch.no_grad():
        next(model.text_encoder.parameters()).mul_(2)
    save_checkpoint(tmp_path / "text.safetensors", model)
    assert main(one) == 2
    assert "must be of this text encoder and these filters, was begun with others" in capsys.readouterr().err


def test_one_system_without_a_judge(command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--seeds", "2", "--systems", "no-sup", "--train-only"]) == 0
    assert {path.name for path in (tmp_path / "run" / "seed-2").iterdir()} == {"autoencoder-no-sup", "no-sup"}


def test_the_row_of_learned_filters_is_left_out_without_them(command: list[str], tmp_path: Path) -> None:
    """And whoever asks for it is told; a change of the filters leaves the other systems' figures alone."""
    config = {**yaml.safe_load((tmp_path / "tables.yaml").read_text()), "filters": None}
    (tmp_path / "tables.yaml").write_text(yaml.safe_dump(config))
    assert main([*command, "--seeds", "1", "--systems", "filtered"]) == 2
    shop = tables.Workshop(parse(config, TablesConfig, "test"), 1)
    files = {kind: str(tmp_path / f"{kind}.safetensors") for kind in ("mask", "inpainting")}
    other = tables.Workshop(parse({**config, "filters": files}, TablesConfig, "test"), 1)
    assert shop._key("unfiltered") == other._key("unfiltered")
    before = other._key("filtered")
    assert shop._key("filtered") != before
    Path(files["mask"]).write_bytes(b"trained again")
    assert other._key("filtered") != before


@pytest.mark.parametrize(("extra", "message"), [
    (["--systems", "filtered", "--set", "filters.mask=/nowhere"], "no such model: /nowhere"),
    (["--seeds", "7"], "--seeds must be among [1, 2], got [7]"),
    (["--set", "unet.in_chanels=4"], "unknown key in_chanels (nearest: in_channels)"),
])
def test_bad_input(command: list[str], extra: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, *extra]) == 2
    assert message in capsys.readouterr().err


def test_the_page_is_what_its_figures_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text encoder and judge are earlier states of the shipped ones, which a checkout no longer has as files."""
    docs = Path(tables.__file__).parents[1] / "docs"
    known = json.loads((docs / "tables.json").read_text())
    monkeypatch.setattr(table_records, "text_digest", lambda config: known["recipe"]["text_encoder"])
    monkeypatch.setattr(table_records, "weights_digest", lambda judge: known["recipe"]["judge"])
    config = load_config(Path(tables.__file__).parent / "configs" / "tables.yaml", [], TablesConfig)
    results = read_records(docs / "tables.md", config, load_evaluator())
    page = write_tables(config, results, known["truth"], {name: system.title for name, system in SYSTEMS.items()},
                        {name for name, system in SYSTEMS.items() if system.tried}, "tables-notes.md")
    assert (docs / "tables.md").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(("extra", "message"), [
    (["--evaluator", "none.safetensors"], "the icon evaluator must be a file, found none at none.safetensors"),
    (["--evaluator", "{folder}/narrow.safetensors"], "the evaluator must know every thing and place, got beach"),
    (["--out", "{folder}/foreign.md"], "foreign.json must be the figures that train.tables wrote, got another file"),
    (["--out", "{folder}/tables.yaml/tables.md"], "File exists"),
])
def test_bad_files_are_found_before_training(
    command: list[str], sprites: SpriteCache, tmp_path: Path, extra: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_evaluator(tmp_path / "narrow.safetensors", make_evaluator(sprites, PLACES[:1] + PLACES[2:]))
    (tmp_path / "foreign.json").write_text('{"a": 1}')
    assert main([*command, "--systems", "cat2i", *(word.format(folder=tmp_path) for word in extra)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_folder_of_the_page_is_made_before_training(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped as soon as training begins."""
    monkeypatch.setattr(tables.Workshop, "train", lambda *_: signal.raise_signal(signal.SIGINT))
    assert main([*command, "--out", str(tmp_path / "new" / "tables.md")]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from there\n"
    assert (tmp_path / "new").is_dir()


def interval(value: float, half: float) -> dict[str, float]:
    return asdict(Interval(value, value - half, value + half))


@pytest.mark.parametrize(("figure", "cell"), [
    (interval(0.000589, 0.000108), "0.59 ± 0.11"), ({"value": 0.002, "low": 0.002, "high": 0.003}, "2"),
    (interval(float("nan"), 0.0), "-"), (None, "-"),
])
def test_kernel_distances_are_in_thousandths(figure: dict[str, float] | None, cell: str) -> None:
    """What was recorded with three digits has no more than one of them, and no interval."""
    assert _cell({"kernel_distance": figure}, "kernel_distance", 2) == cell


@pytest.mark.parametrize(("pairs", "verdict"), [
    ([(1.0, 2.0), (1.1, 2.1)], "yes"), ([(2.0, 1.0), (2.1, 1.1)], "no"), ([(1.0, 2.0), (2.0, 1.0)], "undecided"),
    ([(1.0, 1.05), (1.0, 2.0)], "leans yes"), ([(1.05, 1.0)], "leans no"), ([], "not run"),
    ([(1.0, 2.0)], "leans yes"), ([(2.0, 1.0)], "leans no"),
])
def test_verdicts(pairs: list[tuple[float, float]], verdict: str) -> None:
    """Half-widths of 0.1: apart where the figures are more than 0.2 apart; one seed alone proves nothing."""
    claim = CLAIMS[0]
    results = {seed: {claim.first: {claim.figure: interval(first, 0.1)},
                      claim.second: {claim.figure: interval(second, 0.1)}}
               for seed, (first, second) in enumerate(pairs)}
    assert claim_verdict(results, claim)[1] == verdict
