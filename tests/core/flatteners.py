"""Layered files as other programs flatten them, where these are installed; RGBA in [0, 1], (H, W, 4)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from psd_tools import PSDImage
from psd_tools.composite import composite
from torch import Tensor

from tests.core.imagemagick import command as imagemagick
from text2layer_core.blending import BlendMode
from text2layer_core.composition import compose_stack
from text2layer_core.stack import Layer, LayerStack

SEPARABLE = [mode for mode in BlendMode if mode.value not in ("hue", "saturation", "color", "luminosity")]
GIMP_SECONDS = 600
Flattener = Callable[[Path], Tensor]


def random(*shape: int, seed: int) -> Tensor:
    """Noise in exact 8-bit steps."""
    return torch.randint(0, 256, (1, *shape), generator=torch.Generator().manual_seed(seed)) / 255


def document(mode: BlendMode = BlendMode.NORMAL, *, opaque: bool = True, mask: bool = True) -> LayerStack:
    """A lower layer that fills the canvas, and one over it in that mode, partly beyond the canvas, at opacity 0.8."""
    above = Layer(
        name="Füchse & <狐> 🦊", picture=random(3, 30, 50, seed=1), mask=random(1, 30, 50, seed=2) if mask else None,
        x=-5, y=4, blend_mode=mode, opacity=0.8,
    )
    below = Layer(name="background", picture=random(3 if opaque else 4, 40, 60, seed=3))
    return LayerStack(canvas=(60, 40), layers=(below, above))


def difference(found: Tensor, stack: LayerStack) -> float:
    """The greatest difference to our composition, in /255: of alpha, and of colour times alpha."""
    expected = compose_stack(stack)[0].movedim(0, -1)
    premultiplied = [torch.cat([each[..., :3] * each[..., 3:], each[..., 3:]], dim=-1) for each in (found, expected)]
    return 255 * (premultiplied[0] - premultiplied[1]).abs().max().item()


def rgba(picture: Image.Image) -> Tensor:
    """PIL's picture."""
    picture = picture.convert("RGBA")
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(picture.height, picture.width, 4) / 255


def by_preview(path: Path) -> Tensor:
    """A PSD's merged picture, which programs that know no layers show."""
    preview = PSDImage.open(path).topil()
    assert preview is not None
    return rgba(preview)


def by_psd_tools(path: Path) -> Tensor:
    """psd-tools' own rendering of the layers, before it cuts off what is below a whole step."""
    colour, _, alpha = composite(PSDImage.open(path))
    return torch.cat([torch.from_numpy(colour), torch.from_numpy(alpha)], dim=-1)


def by_imagemagick(path: Path) -> Tensor:
    """ImageMagick's composition of the layers; picture 0 of a PSD is the merged one."""
    command = imagemagick()
    if command is None:
        pytest.skip("ImageMagick is not installed")
    count, canvas = len(PSDImage.open(path)), PSDImage.open(path).size
    flat = path.with_suffix(".flat.png")
    window = f"{canvas[0]}x{canvas[1]}+0+0"
    subprocess.run(
        [command, "-size", f"{canvas[0]}x{canvas[1]}", f"{path}[1-{count}]", "-background", "none", "-layers", "merge",
         "-crop", window, "+repage", flat], check=True,
    )
    return rgba(Image.open(flat))


def by_pyora(path: Path) -> Tensor:
    """The rendering of an OpenRaster file's layers by pyora."""
    pyora = pytest.importorskip("pyora", reason="pyora is not installed")
    return rgba(pyora.Project.load(str(path)).get_image_data(False))


def by_gimp(paths: list[Path]) -> list[tuple[Tensor, list[str]]]:
    """GIMP 2.10's rendering of the layers, and their names, topmost first; one start for all files."""
    command = shutil.which("gimp-console") or shutil.which("gimp")
    if command is None:
        pytest.skip("GIMP is not installed")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
    if " 2.10" not in version:
        pytest.skip(f"the Script-Fu is written for GIMP 2.10, found {version.strip()}")
    script = "\n".join(map(_gimp_script, paths))
    subprocess.run([command, "-i", "-d", "-f", "-s", "-b", script, "-b", "(gimp-quit 0)"], check=True,
                   capture_output=True, timeout=GIMP_SECONDS)
    return [
        (rgba(Image.open(path.with_suffix(".gimp.png"))), path.with_suffix(".names").read_text("utf-8").splitlines())
        for path in paths
    ]


def _gimp_script(path: Path) -> str:
    return f"""
(let* ((image (car (gimp-file-load RUN-NONINTERACTIVE "{path}" "{path}")))
       (port (open-output-file "{path.with_suffix('.names')}")))
  (for-each (lambda (layer) (display (car (gimp-item-get-name layer)) port) (newline port))
            (vector->list (cadr (gimp-image-get-layers image))))
  (close-output-port port)
  (let ((flat (car (gimp-image-merge-visible-layers image CLIP-TO-IMAGE))) (out "{path.with_suffix('.gimp.png')}"))
    (file-png-save RUN-NONINTERACTIVE image flat out out 0 9 0 0 0 0 0)))
"""
