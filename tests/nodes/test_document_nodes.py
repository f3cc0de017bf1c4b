"""Saving and loading documents, run without a host: its folders are a test's, its counter is the real one's rule."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

WORKFLOW = {"nodes": [], "name": "狐"}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)) / 255


def document() -> dict[str, Any]:
    """As core's Add Layer makes them: there a mask is 1 where the layer is transparent."""
    layers = [
        {"type": "raster", "image": random(1, 4, 6, 3), "name": "ground", "z_index": 0},
        {"type": "raster", "image": random(1, 4, 6, 3, seed=1), "mask": random(1, 4, 6, seed=2), "name": "fox",
         "z_index": 1, "x": -2, "y": 1, "opacity": 0.8, "blend_mode": "multiply", "visible": True},
    ]
    return {"version": 1, "canvas": (6, 4), "layers": layers}


class Folders:
    """What the nodes ask of ComfyUI's folder_paths, on two folders of the test."""

    def __init__(self, root: Path) -> None:
        self.output, self.input = root / "output", root / "input"
        self.output.mkdir()
        self.input.mkdir()

    def get_output_directory(self) -> str:
        return str(self.output)

    def get_input_directory(self) -> str:
        return str(self.input)

    def get_save_image_path(self, prefix: str, output: str, width: int, height: int) -> tuple[str, str, int, str, str]:
        prefix = prefix.replace("%width%", str(width)).replace("%height%", str(height))
        path = Path(prefix)
        folder = Path(output) / path.parent
        folder.mkdir(parents=True, exist_ok=True)
        used = [int(each.name[len(path.name) + 1 :].split("_")[0]) for each in folder.glob(f"{path.name}_*")]
        subfolder = "" if path.parent == Path() else str(path.parent)
        return str(folder), path.name, max(used, default=0) + 1, subfolder, prefix


@pytest.fixture(autouse=True)
def folders(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    made = Folders(tmp_path)
    monkeypatch.setattr(sys.modules[f"{pack.__name__}.document_files"], "folder_paths", made)
    return made


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on the node."""
    texts: list[str] = []
    server = SimpleNamespace(instance=SimpleNamespace(send_progress_text=lambda text, _: texts.append(text)))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=server))  # type: ignore[arg-type]
    return texts


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The host's command line."""
    args = SimpleNamespace(disable_metadata=False)
    monkeypatch.setitem(sys.modules, "comfy", SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "comfy.cli_args", SimpleNamespace(args=args))  # type: ignore[arg-type]
    return args


@pytest.fixture
def save(pack: ModuleType) -> Any:
    """Runs the saving node: what it shows."""
    node = next(node for node in pack.NODES if node.__name__ == "Text2LayerSaveDocument")
    hidden = SimpleNamespace(prompt={"1": {}}, extra_pnginfo={"workflow": WORKFLOW}, unique_id="7")

    def run(**changes: Any) -> dict[str, Any]:
        inputs = {
            "layers": document(), "filename_prefix": "layers", "format": "psd", "bits": "8", "masks": "layer mask",
            **changes,
        }
        return type(node.__name__, (node,), {"hidden": hidden}).execute(**inputs).ui

    return run


@pytest.fixture
def load(pack: ModuleType) -> Any:
    """Runs the loading node: its outputs."""
    node = next(node for node in pack.NODES if node.__name__ == "Text2LayerLoadDocument")
    return SimpleNamespace(run=lambda file: node.execute(file).args, fingerprint=node.fingerprint_inputs)


@pytest.mark.parametrize("format", ["psd", "ora"])
def test_there_and_back(save: Any, load: Any, folders: Folders, said: list[str], format: str) -> None:
    shown = save(format=format)
    name = f"layers_00001_.{format}"
    assert shown == {"files": [{"filename": name, "subfolder": "", "type": "output"}], "text": (name,)}
    assert said == [name]
    assert [path.name for path in folders.output.iterdir()] == [name]
    (folders.output / name).rename(folders.input / name)
    loaded, notes = load.run(name)
    assert notes == ""
    assert loaded["canvas"] == (6, 4)
    ground, fox = loaded["layers"]
    assert torch.equal(ground["image"], document()["layers"][0]["image"])
    assert (fox["name"], fox["x"], fox["y"], fox["blend_mode"], fox["opacity"]) == ("fox", -2, 1, "multiply", 0.8)
    assert torch.equal(fox["image"][..., :3], document()["layers"][1]["image"])
    mask = document()["layers"][1]["mask"]  # there 1 where transparent, as alpha is not
    found = fox["mask"] if format == "psd" else 1 - fox["image"][..., 3]
    assert torch.allclose(found, mask, atol=1e-6)


def test_a_set_of_pngs_with_the_workflow(save: Any, folders: Folders) -> None:
    shown = save(format="png", filename_prefix="a/b/%width%x%height%", bits="16")
    names = ["6x4_00001_01_ground.png", "6x4_00001_02_fox.png", "6x4_00001_02_fox_mask.png", "6x4_00001_composed.png"]
    files = [{"filename": name, "subfolder": str(Path("a/b")), "type": "output"} for name in names]
    assert shown == {"files": files, "images": files, "text": ("\n".join(names),)}
    for name in names:
        with Image.open(folders.output / "a" / "b" / name) as opened:
            opened.load()
            assert json.loads(opened.info["workflow"]) == WORKFLOW
            assert json.loads(opened.info["prompt"]) == {"1": {}}


def test_no_workflow_where_the_host_wants_none(save: Any, folders: Folders, host: SimpleNamespace) -> None:
    host.disable_metadata = True
    save(format="png")
    with Image.open(folders.output / "layers_00001_composed.png") as opened:
        opened.load()
        assert "workflow" not in opened.info
        assert "prompt" not in opened.info


@pytest.mark.parametrize("format", ["psd", "ora", "png"])
def test_the_counter_counts(save: Any, folders: Folders, format: str) -> None:
    for _ in range(2):
        save(format=format, masks="transparency")
    names = sorted(path.name for path in folders.output.iterdir())
    if format == "png":
        assert names == [f"layers_0000{count}_{rest}.png" for count in (1, 2)
                         for rest in ("01_ground", "02_fox", "composed")]
    else:
        assert names == [f"layers_0000{count}_.{format}" for count in (1, 2)]


@pytest.mark.parametrize(("changes", "message"), [
    ({"filename_prefix": "../x"}, r"^filename_prefix must stay within the output folder, got '../x'$"),
    ({"filename_prefix": "a/../../x"}, "^filename_prefix must stay within the output folder"),
    ({"filename_prefix": "/tmp/x"}, "^filename_prefix must stay within the output folder, got '/tmp/x'$"),  # noqa: S108
    ({"filename_prefix": ""}, "^filename_prefix must hold a name, got ''$"),
    ({"filename_prefix": "a/"}, "^filename_prefix must hold a name, got 'a/'$"),
    ({"format": "tiff"}, "^format must be one of the 3 that the node lists, got 'tiff'$"),
    ({"bits": "12"}, "^bits must be one of the 2 that the node lists, got '12'$"),
    ({"masks": "none"}, "^masks must be one of the 2 that the node lists, got 'none'$"),
    ({"bits": "16"}, "^bits must be 8 for psd and ora, got 16$"),
    ({"layers": {"layers": []}}, "^a document must hold 1 to 50 layers, got 0$"),
])
def test_what_cannot_be_saved(save: Any, folders: Folders, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save(**changes)
    assert not list(folders.output.iterdir())


def test_a_full_disk_leaves_nothing(save: Any, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*layers_00001_.psd'"):
        save()
    assert not list(folders.output.iterdir())


def test_the_list_and_nothing_else(load: Any, folders: Folders, tmp_path: Path) -> None:
    for name in ("b.psd", "A.ORA", "c.png", "d.psd.txt"):
        (folders.input / name).write_bytes(b"x")
    (folders.input / "e.psd").mkdir()
    (tmp_path / "secret.psd").write_bytes(b"x")
    for name in ("../secret.psd", str(tmp_path / "secret.psd"), "c.png", "e.psd", "", "no.psd", "./b.psd"):
        with pytest.raises(ValueError, match=r"^file must be a \.psd or \.ora file in .*, got "):
            load.run(name)
        with pytest.raises(ValueError, match=r"^file must be a \.psd or \.ora file in "):
            load.fingerprint(name)
    with pytest.raises(ValueError, match=r"^A\.ORA: it must be a PSD or OpenRaster file, and its first bytes are"):
        load.run("A.ORA")


def test_what_the_notes_say(save: Any, load: Any, folders: Folders) -> None:
    save(format="ora")
    with (zipfile.ZipFile(folders.output / "layers_00001_.ora") as good,
          zipfile.ZipFile(folders.input / "a.ora", "w") as changed):
        for name in good.namelist():
            changed.writestr(name, good.read(name).replace(b"svg:multiply", b"svg:plus"))
    assert load.run("a.ora")[1] == 'layer "fox": blend mode svg:plus is not supported, normal instead'


def test_the_fingerprint_is_the_contents(load: Any, folders: Folders) -> None:
    for name, data in (("a.psd", b"one"), ("b.psd", b"one"), ("c.psd", b"two")):
        (folders.input / name).write_bytes(data)
    assert load.fingerprint("a.psd") == load.fingerprint("b.psd") != load.fingerprint("c.psd")
    before = load.fingerprint("a.psd")
    (folders.input / "a.psd").write_bytes(b"three")
    assert load.fingerprint("a.psd") != before


def test_nothing_is_kept_from_one_run_to_the_next(save: Any, load: Any, folders: Folders) -> None:
    """The same document again gives the same bytes, whatever was saved between."""
    other = document()
    other["layers"] = other["layers"][:1]
    for layers in (document(), other, document()):
        save(layers=layers)
    first, between, last = ((folders.output / f"layers_0000{count}_.psd").read_bytes() for count in (1, 2, 3))
    assert first == last != between
