"""Puts a trained model in its place, its card completed: `python -m train.release --model FILE --report JSON --out FILE`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from text2layer_core.checkpoint import load_checkpoint, save_checkpoint

LICENCES = {
    "weights": "Apache-2.0",
    "@iconify-json/fluent-emoji": "MIT, Microsoft Corporation (Fluent Emoji)",
    "@iconify-json/noto": "Apache-2.0, Google Inc (Noto Emoji)",
    "emojilib": "MIT, Mu-An Chiou",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m train.release", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="export of train_diffusion (model.safetensors)")
    parser.add_argument("--report", type=Path, required=True, help="what `python -m train.check --json` printed")
    parser.add_argument("--name", default="text2layer-mini")
    parser.add_argument("--hardware", required=True, help='what it was trained on ("two CPU cores, 2 hours")')
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    try:
        model = load_checkpoint(arguments.model)
        figures: dict[str, Any] = json.loads(arguments.report.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    model.card |= {"name": arguments.name, "hardware": arguments.hardware, "licences": LICENCES, "figures": figures}
    save_checkpoint(arguments.out, model)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
