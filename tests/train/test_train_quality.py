"""The quality filters' training: labels from files and from the truth, resume, the report, and that it learns."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from torch import Tensor

from tests.train.evaluators import PLACES
from tests.train.quality_files import random_stacks, write_folder
from text2layer_core.compositing import compose
from text2layer_core.layers import TwoLayerImage
from text2layer_core.quality import load_quality_filter
from train.config import parse
from train.engine import Part
from train.quality_labels import QualityCriteria, inpainting_defects, mask_defects
from train.quality_report import best_threshold, quality_figures, roc_curve
from train.quality_samples import write_labels
from train.quality_sets import FileLabels, FilesConfig, TruthConfig, TruthLabels, backend_finder
from train.train_quality import QualityTrainingConfig, main, make_task

CPU = torch.device("cpu")


@pytest.fixture
def values(tmp_path: Path, sprite_file: Path) -> dict[str, Any]:
    """A tiny network on broken scenes of 32 px."""
    return {
        "run": str(tmp_path / "run"), "kind": "mask", "trained": "all", "cached": 48, "held_out": 64,
        "network": {"image_size": 32, "width": 0.1, "depth": 0.1},
        "truth": {
            "found": "defects", "share": 0.7,
            "data": {"source": "icons", "size": 32, "icons": {
                "cache": str(sprite_file), "places": list(PLACES), "effect_share": 0.0}},
        },
        "training": {"images": 64, "batch_size": 16, "learning_rate": 0.003, "ema_half_life": 16, "save_images": 32},
    }


def command(values: dict[str, Any], folder: Path) -> list[str]:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return ["--config", str(path)]


def batches(values: dict[str, Any], *parts: Part) -> list[Any]:
    torch.manual_seed(0)
    task = make_task(parse(values, QualityTrainingConfig, "test"), CPU)
    return [task.batch(part, CPU) for part in parts]


def test_a_run_and_its_files(values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The filter has the report's threshold, and the figures come out of the held-out scores by other code."""
    assert main(command(values, tmp_path)) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert (tmp_path / "run" / "roc.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run" / "sheets" / "0000000064.png").is_file()
    model = load_quality_filter(tmp_path / "run" / "model.safetensors")
    assert (model.kind, model.threshold, model.card["images"]) == ("mask", report["threshold"], 64)
    assert model.card["labels"]["found"] == "defects"
    assert (report["training_samples"], report["samples"]) == (48, 64)
    cache = tmp_path / "run" / "cache-held_out"
    pictures = torch.from_numpy(np.load(cache / "pictures.npy")).float() / 255
    good = np.load(cache / "labels.npy").astype(bool)
    scores = model.scores(pictures).double().numpy()
    better = scores[good][:, None] - scores[~good]
    assert report["auc"] == pytest.approx(((better > 0) + 0.5 * (better == 0)).mean())
    kept = scores[1::2] >= model.threshold
    assert report["recall"] == pytest.approx(kept[good[1::2]].mean())
    assert report["kept"] == pytest.approx(kept.mean())
    if kept.any():
        assert report["precision"] == pytest.approx(good[1::2][kept].mean())


def test_resume_is_exact(values: dict[str, Any], tmp_path: Path) -> None:
    """Stopped after 32 of 64 images and resumed: the filter of the uninterrupted run, bit for bit."""
    assert main(command(values, tmp_path)) == 0
    whole = load_quality_filter(tmp_path / "run" / "model.safetensors").state_dict()
    AcceleratorState._reset_state(True)
    other = [*command({**values, "run": str(tmp_path / "other")}, tmp_path)]
    state = tmp_path / "run" / "states" / "0000000032.pt"
    assert main([*other, "--resume", str(state)]) == 0
    found = load_quality_filter(tmp_path / "other" / "model.safetensors").state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in whole.items())


@pytest.mark.parametrize(("trained", "changed"), [("last", {"classifier"}), ("all", {"classifier", "trunk"})])
def test_what_is_trained(values: dict[str, Any], tmp_path: Path, trained: str, changed: set[str]) -> None:
    """With "last" the trunk stays bit for bit, its BatchNorm statistics too."""
    values.update(trained=trained)
    torch.manual_seed(0)
    values["training"]["ema_half_life"] = 0
    task = make_task(parse(values, QualityTrainingConfig, "test"), CPU)
    before = {key: tensor.clone() for key, tensor in task.filter.state_dict().items()}
    module = task.objectives[0].module.train()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.1)
    module(task.batch(Part(0, 16), CPU))["loss"].backward()
    optimizer.step()
    moved = {key.partition(".")[0] for key, tensor in task.filter.state_dict().items()
             if not torch.equal(tensor, before[key])}
    assert moved == changed


def test_batches_do_not_depend_on_their_size(values: dict[str, Any]) -> None:
    whole, half = batches(values, Part(40, 16), Part(48, 8))
    assert torch.equal(whole.pictures[8:], half.pictures)
    assert torch.equal(whole.labels[8:], half.labels)
    values["flip"] = False
    (plain,) = batches(values, Part(40, 16))
    flipped = [not torch.equal(one, other) for one, other in zip(whole.pictures, plain.pictures, strict=True)]
    assert 0 < sum(flipped) < 16
    assert torch.equal(whole.pictures[flipped], plain.pictures[flipped].flip(3))


@pytest.mark.parametrize("kind", ["mask", "inpainting"])
def test_labels_of_the_truth(values: dict[str, Any], kind: str) -> None:
    """What the criteria say of each sample, in blocks of any size; the held-out ones are other scenes."""
    config = parse(values["truth"], TruthConfig, "test")
    labels = TruthLabels(config, kind, 32, "train")
    pictures, good = labels.block(0, 12)
    assert pictures.shape == (12, 4 if kind == "mask" else 3, 32, 32)
    truth = TwoLayerImage.from_stack(labels._source.batch(0, 12).stack)
    found = (mask_defects(truth.mask, pictures[:, 3:], QualityCriteria()) if kind == "mask"
             else inpainting_defects(truth, pictures, QualityCriteria()))
    assert good.tolist() == [not row for row in found]
    assert 0 < int(good.sum()) < 12
    assert torch.equal(labels.block(5, 3)[0], pictures[5:8])
    assert not torch.equal(TruthLabels(config, kind, 32, "held_out").block(0, 12)[0], pictures)


def grabcut(pictures: Sequence[Tensor]) -> list[Tensor]:
    """Each (3, H, W) -> (1, H, W): OpenCV's, from a box two pixels inside the border."""
    return [_cut(picture) for picture in pictures]


def _cut(picture: Tensor) -> Tensor:
    cv2 = pytest.importorskip("cv2")
    pixels = np.ascontiguousarray((picture * 255).byte().movedim(0, -1).numpy())
    mask = np.zeros(pixels.shape[:2], np.uint8)
    height, width = mask.shape
    cv2.setRNGSeed(0)
    box, models = (2, 2, width - 4, height - 4), (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.grabCut(pixels, mask, box, *models, 3, cv2.GC_INIT_WITH_RECT)
    return torch.from_numpy((mask % 2).astype(np.float32))[None]


def telea(pictures: Sequence[Tensor], holes: Sequence[Tensor]) -> list[Tensor]:
    return [_filled(picture, hole) for picture, hole in zip(pictures, holes, strict=True)]


def _filled(picture: Tensor, hole: Tensor) -> Tensor:
    cv2 = pytest.importorskip("cv2")
    pixels = np.ascontiguousarray((picture * 255).byte().movedim(0, -1).numpy())
    filled = cv2.inpaint(pixels, (hole[0] > 0.5).byte().numpy(), 3, cv2.INPAINT_TELEA)
    return torch.from_numpy(filled).movedim(-1, 0).float() / 255


def test_scenes_taken_apart_by_backends(values: dict[str, Any]) -> None:
    """Segmented and filled by OpenCV: the picture is the composed scene, the filling leaves it outside the hole."""
    labels = TruthLabels(parse(values["truth"], TruthConfig, "test"), "mask", 32, "train")
    stack = labels._source.batch(0, 8).stack
    find = backend_finder(grabcut, telea, 0.1, 2)
    pictures, masks, backgrounds = find(0, stack)
    torch.testing.assert_close(pictures, compose(TwoLayerImage.from_stack(stack)))
    far = torch.nn.functional.max_pool2d(masks, 7, 1, 3).expand(-1, 3, -1, -1) == 0
    assert bool(far.any())
    assert float((backgrounds - pictures)[far].abs().max()) <= 1 / 255
    found = mask_defects(stack[:, 6:], masks, QualityCriteria())
    assert any(not row for row in found), "GrabCut finds some of these plain things well"
    perfect = find(0, stack)[1] * 0 + stack[:, 6:]
    assert mask_defects(stack[:, 6:], perfect, QualityCriteria()) == [[]] * 8


def test_backends_without_their_package(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values["truth"] = {**values["truth"], "found": "backends"}
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(command(values, tmp_path)) == 2
    assert capsys.readouterr().err == "error: cv2 must be installed (pip install -e .[synthesis]), found none\n"


def test_labels_of_people(tmp_path: Path) -> None:
    """Held out are the first in the order of the keys' hashes; both halves together are all labelled samples."""
    keys = [f"{index:03}" for index in range(10)]
    stacks = random_stacks(10, 40)
    write_folder(tmp_path / "data", stacks, keys)
    labels = {key: index % 3 == 0 for index, key in enumerate(keys[:8])}
    write_labels(tmp_path / "labels.csv", labels)
    config = FilesConfig(data=str(tmp_path / "data"), labels=str(tmp_path / "labels.csv"))
    train, held_out = (FileLabels(config, "mask", 40, 3, split) for split in ("train", "held_out"))
    assert (len(train), len(held_out)) == (5, 3)
    assert {*train._keys, *held_out._keys} == set(keys[:8])
    pictures, good = train.block(0, 5)
    assert good.tolist() == [labels[key] for key in train._keys]
    rows = [keys.index(key) for key in train._keys]
    torch.testing.assert_close(pictures[:, 3:], stacks[rows, 6:], atol=0.5 / 255 + 1e-6, rtol=0)
    background = FileLabels(config, "inpainting", 40, 3, "train").block(1, 2)[0]
    torch.testing.assert_close(background, stacks[rows[1:3], 3:6], atol=0.5 / 255 + 1e-6, rtol=0)
    with pytest.raises(ValueError, match="labels must be more than the 8 held out, got 8"):
        FileLabels(config, "mask", 40, 8, "train")
    write_labels(tmp_path / "labels.csv", {"nobody": True})
    with pytest.raises(ValueError, match=r"must label samples of .*, got nobody \(1 such\)"):
        FileLabels(config, "mask", 40, 3, "train")


@pytest.mark.parametrize(("change", "message"), [
    ({"truth": None}, "one of the sections files and truth, got neither"),
    ({"files": {"data": "a", "labels": "b"}}, "one of the sections files and truth, got both"),
    ({"held_out": 2}, "held_out must be at least 4, got 2"),
    ({"beta": 0}, "beta must be above 0, got 0"),
    ({"kind": "colour"}, "kind must be one of mask, inpainting"),
    ({"pretrained": "/nowhere"}, "must hold config.json and model.safetensors"),
    ({"truth": None, "files": {"data": "/nowhere", "labels": "b"}}, "found none in /nowhere"),
])
def test_bad_input_is_one_line(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    assert main(command({**values, **change}, tmp_path)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error


def test_labels_all_alike_are_refused_before_training(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values["truth"]["share"] = 0.0
    assert main(command(values, tmp_path)) == 2
    assert "a ROC needs good and bad samples" in capsys.readouterr().err
    assert not (tmp_path / "run" / "states").exists()


def test_init_from_and_dry_run(values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command(values, tmp_path), "--dry-run"]) == 0
    assert "images/s" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    torch.manual_seed(1)
    task = make_task(parse(values, QualityTrainingConfig, "test"), CPU)
    task.export(tmp_path / "a.safetensors", 7)
    other = make_task(parse({**values, "run": str(tmp_path / "b")}, QualityTrainingConfig, "test"), CPU)
    assert other.load_weights(tmp_path / "a.safetensors") == 7
    assert all(torch.equal(a, b) for a, b in zip(task.filter.parameters(), other.filter.parameters(), strict=True))
    inpainting = make_task(parse({**values, "kind": "inpainting", "run": str(tmp_path / "c")}, QualityTrainingConfig,
                                 "test"), CPU)
    with pytest.raises(ValueError, match="--init-from must hold a inpainting filter of the configured size"):
        inpainting.load_weights(tmp_path / "a.safetensors")


def test_the_roc_by_hand() -> None:
    """Scores 4 3 3 1 of good, good, bad, bad: ties move both ways at once; of 4 pairs 3 are right, one is even."""
    scores, labels = np.array([3.0, 1.0, 4.0, 3.0]), np.array([True, False, True, False])
    curve = roc_curve(scores, labels)
    assert curve.thresholds.tolist() == [np.inf, 4, 3, 1]
    assert curve.true_positives.tolist() == [0, 0.5, 1, 1]
    assert curve.false_positives.tolist() == [0, 0, 0.5, 1]
    assert curve.precision.tolist() == [1, 1, 2 / 3, 0.5]
    assert curve.area == pytest.approx(3.5 / 4)
    assert best_threshold(curve, 0.5) == pytest.approx(3.5)  # F 5/6 at 4, 5/7 at 3
    assert best_threshold(curve, 2.0) == pytest.approx(2.0)  # F 5/9 at 4, 10/11 at 3


def test_figures_are_of_samples_that_did_not_choose() -> None:
    """The even ones are separated between 0.2 and 0.8, so 0.5 it is; of the odd ones it keeps two, one of them good."""
    scores = np.array([0.8, 0.9, 0.2, 0.6, 0.9, 0.1, 0.1, 0.3])
    labels = np.array([True, True, False, False, True, True, False, False])
    threshold, figures = quality_figures(scores, labels, 0.5)
    assert threshold == figures["threshold"] == pytest.approx(0.5)
    assert (figures["precision"], figures["recall"], figures["kept"], figures["good"]) == (0.5, 0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="a ROC needs good and bad samples"):
        quality_figures(scores, labels | True, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask", "inpainting"])
def test_it_learns_to_judge(values: dict[str, Any], tmp_path: Path, kind: str) -> None:
    """4,800 pictures of 1,200 broken scenes: other scenes are judged far better than by chance."""
    values.update(kind=kind, cached=1200, held_out=200)
    values["training"].update(images=4800, save_images=4800, sheet_images=4800, ema_half_life=200)
    values["network"].update(width=0.25, depth=0.5)
    assert main(command(values, tmp_path)) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["auc"] > 0.75
    assert report["precision"] > report["good"]
