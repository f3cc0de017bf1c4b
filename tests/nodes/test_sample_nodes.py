"""Scoring and writing samples, run without a host: its folders are a test's, scores are what the core gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.nodes.test_document_nodes import Folders, document
from text2layer_core.quality import QualityConfig, QualityFilter, save_quality_filter
from train.quality_samples import SampleFiles

SIZE = (24, 32)


def image(channels: int = 3, count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, *SIZE, channels, generator=torch.Generator().manual_seed(seed))


def mask(count: int = 2) -> Tensor:
    return image(1, count, 7)[..., 0]


class Models(Folders):
    """A model folder too."""

    def get_filename_list(self, _: str) -> list[str]:
        return sorted(path.name for path in self.models.glob("*.safetensors"))

    def get_folder_paths(self, _: str) -> list[str]:
        return [str(self.models)]

    def get_full_path_or_raise(self, _: str, name: str) -> str:
        return str(self.models / name)

    @property
    def models(self) -> Path:
        return self.output.parent / "models"


@pytest.fixture(autouse=True)
def folders(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    made = Models(tmp_path)
    made.models.mkdir()
    for module in ("document_files", "model_files"):
        monkeypatch.setattr(sys.modules[f"{pack.__name__}.{module}"], "folder_paths", made)
    return made


@pytest.fixture
def filters(folders: Models) -> dict[str, QualityFilter]:
    """One of each kind in the model folder: the mask's keeps nothing, the inpainting's all."""
    torch.manual_seed(0)
    made = {kind: QualityFilter(kind, QualityConfig(image_size=32, width=0.1, depth=0.1), threshold=threshold).eval()
            for kind, threshold in (("mask", 0.9), ("inpainting", 0.1))}
    for kind, each in made.items():
        save_quality_filter(folders.models / f"{kind}.safetensors", each)
    return made


@pytest.fixture
def run(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the node of that id: what it returns."""
    module = sys.modules[f"{pack.__name__}.samples"]
    said: list[str] = []
    server = SimpleNamespace(instance=SimpleNamespace(send_progress_text=lambda text, _: said.append(text)))
    monkeypatch.setattr(module, "PromptServer", server)
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=server))  # type: ignore[arg-type]
    management = SimpleNamespace(get_torch_device=lambda: torch.device("cpu"))
    monkeypatch.setattr(module, "comfy", SimpleNamespace(model_management=management))

    def run(name: str, **inputs: Any) -> Any:
        node = getattr(module, name)
        output = type(name, (node,), {"hidden": SimpleNamespace(unique_id="7")}).execute(**inputs)
        assert said[-1] == output.ui["text"][0]
        return output

    return run


def score(run: Any, **changes: Any) -> tuple[Any, ...]:
    inputs = {"image": image(), "foreground_mask": mask(), "background": image(seed=1), "mask_filter": "none",
              "inpainting_filter": "none", **changes}
    return run("Text2LayerSampleScore", **inputs).args


def test_scores_are_the_cores(run: Any, filters: dict[str, QualityFilter]) -> None:
    """An alpha channel is left out; one mask serves both pictures."""
    found = score(run, image=image(4), foreground_mask=mask(1)[0], mask_filter="mask.safetensors",
                  inpainting_filter="inpainting.safetensors")
    seen = torch.cat([image(4)[..., :3], mask(1).expand(2, -1, -1)[..., None]], dim=-1).movedim(-1, 1)
    assert found[0] == pytest.approx(filters["mask"].scores(seen).tolist())
    assert found[1] == pytest.approx(filters["inpainting"].scores(image(seed=1).movedim(-1, 1)).tolist())
    assert found[2] == [False, False]
    assert [reason.partition(" score")[0] for reason in found[3]] == ["dropped: mask"] * 2


def test_one_filter_or_none(run: Any, filters: dict[str, QualityFilter]) -> None:
    assert score(run) == ([-1.0, -1.0], [-1.0, -1.0], [True, True], ["kept: no filter"] * 2)
    found = score(run, inpainting_filter="inpainting.safetensors")
    assert (found[0], found[2]) == ([-1.0, -1.0], [True, True])
    assert found[3][0].startswith("kept: inpainting score")


@pytest.mark.parametrize(("changes", "message"), [
    ({"mask_filter": "no.safetensors"}, r"^mask_filter must be 'none' or a \.safetensors file in .*, got 'no\.safe"),
    ({"inpainting_filter": "../outputs/x"}, "^inpainting_filter must be 'none' or a"),
    ({"mask_filter": ""}, "^mask_filter must be 'none'"),
    ({"mask_filter": "inpainting.safetensors"}, "^the mask filter must be of kind mask, got one of kind inpainting$"),
    ({"mask_filter": "text.safetensors"}, r"text\.safetensors is not a safetensors file"),
    ({"background": image(count=2)[:, :4]}, "^background must have the foreground's size 32x24, got 32x4"),
    ({"foreground_mask": mask()[:, :4]}, "^foreground_mask must have the image's size 32x24, got 32x4"),
    ({"background": image(count=3)}, "^background must have as many pictures as foreground"),
])
def test_bad_values_are_named(
    run: Any, folders: Models, filters: dict[str, QualityFilter], changes: dict[str, Any], message: str
) -> None:
    (folders.models / "text.safetensors").write_text("it is a text")
    with pytest.raises(ValueError, match=message) as caught:
        score(run, **changes)
    assert "\n" not in str(caught.value)


def write(run: Any, **changes: Any) -> Any:
    return run("Text2LayerWriteSample", **{
        "layers": document(), "caption": "a fox", "filename_prefix": "samples/fox", **changes,
    })


def test_samples_are_counted_and_read(run: Any, folders: Models) -> None:
    """Written twice, nothing is overwritten; the lowest layer is the background."""
    layers = document()
    layers["layers"][1].pop("blend_mode")
    for count in (1, 2):
        output = write(run, layers=layers, mask_score=0.25, caption=f"fox {count}")
        assert output.args == (f"samples/fox_0000{count}_",)
        assert len(output.ui["images"]) == 4
        assert {file["subfolder"] for file in output.ui["files"]} == {"samples"}
    samples = SampleFiles(folders.output / "samples")
    assert samples.keys == ["fox_00001_", "fox_00002_"]
    ground = layers["layers"][0]["image"].movedim(-1, 1)
    torch.testing.assert_close(samples.picture("fox_00001_", "background.png"), ground, atol=1e-6, rtol=0)
    assert samples.read("fox_00001_", "txt") == b"fox 1\n"
    facts = json.loads(samples.read("fox_00002_", "json") or b"")
    assert facts == {"mask_score": 0.25, "made_by": "Text2LayerWriteSample"}


def test_a_picture_of_ones_own(run: Any, folders: Models) -> None:
    layers = document()
    layers["layers"][1].pop("blend_mode")
    given = (torch.rand(1, 4, 6, 4) * 255).round() / 255
    write(run, layers=layers, image=given)
    found = SampleFiles(folders.output / "samples").picture("fox_00001_", "image.png")
    torch.testing.assert_close(found, given[..., :3].movedim(-1, 1), atol=1e-6, rtol=0)


def test_what_is_not_kept_is_not_written(run: Any, folders: Models) -> None:
    layers = document()
    layers["layers"][1].pop("blend_mode")
    assert write(run, layers=layers, keep=False).args == ("",)
    assert not list(folders.output.iterdir())


@pytest.mark.parametrize(("changes", "message"), [
    ({}, 'layers above the background must have the blend mode normal, got multiply of "fox"'),
    ({"layers": {"layers": []}}, "a document must hold 1 to 50 layers, got 0"),
    ({"layers": {**document(), "layers": document()["layers"][:1]}}, "got 1 visible"),
    ({"filename_prefix": "../fox"}, "filename_prefix must stay within the output folder"),
    ({"filename_prefix": ""}, "filename_prefix must hold a name"),
    ({"filename_prefix": "v1.5"}, "a sample's name must not be empty nor hold"),
    ({"caption": " "}, "caption must not be empty"),
    ({"mask_score": 1.5}, r"mask_score must lie in \[0, 1\], or be -1 for none, got 1.5"),
    ({"inpainting_score": float("nan")}, "inpainting_score must lie in"),
    ({"image": image(count=1)}, r"composed must have shape \(1, 3, 4, 6\), got \(1, 3, 24, 32\)"),
])
def test_what_cannot_be_written(run: Any, folders: Models, changes: dict[str, Any], message: str) -> None:
    if changes and "layers" not in changes:
        layers = document()
        layers["layers"][1].pop("blend_mode")
        changes = {**changes, "layers": layers}
    with pytest.raises(ValueError, match=message):
        write(run, **changes)
    assert not [path for path in folders.output.rglob("*") if path.is_file()]
