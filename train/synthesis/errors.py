"""What models raise, and what is to be told before they are loaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from safetensors import SafetensorError

_CUDA = "CUDAExecutionProvider"

LOAD_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, SafetensorError)
"""What transformers and diffusers raise on a folder whose files are of another kind, or Git LFS's pointers to them."""


def check_installed(*packages: str) -> None:
    """Tells in one line what the extra `synthesis` would bring; imports nothing.

    Args:
        packages: names to import.

    Raises:
        ValueError: one is not there.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} must be installed (pip install -e .[synthesis]), found none")


def onnx_providers(device: str, present: Sequence[str]) -> list[str]:
    """What ONNX Runtime computes on; it would pass over a provider that it lacks and take the CPU without a word.

    Args:
        device: "cpu" or "cuda".
        present: `onnxruntime.get_available_providers()`.

    Raises:
        ValueError: a GPU is asked for and this build has no support for it.
    """
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if _CUDA not in present:
        raise ValueError(f"device {device} must be one that ONNX Runtime has (pip install onnxruntime-gpu in place of "
                         f"onnxruntime), got {', '.join(present)}")
    return [_CUDA, "CPUExecutionProvider"]


def model_errors() -> tuple[type[BaseException], ...]:
    """Errors that a model may raise on one picture; out of memory is one of them.

    OpenCV's and ONNX Runtime's derive from Exception alone, so their classes are listed.
    """
    found: list[type[BaseException]] = [RuntimeError, ValueError, ArithmeticError]
    if "cv2" in sys.modules:
        found.append(sys.modules["cv2"].error)
    if "onnxruntime" in sys.modules:
        state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        kinds = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
        found.extend(kinds)
    return tuple(found)
