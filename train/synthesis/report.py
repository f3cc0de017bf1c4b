"""report.html: the paper's statistics of the data, and pictures of what was kept and dropped; one file, no scripts."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from text2layer_core.atomic import write_text
from train.synthesis.layers import AREA_THRESHOLDS, LEAST_COMPONENT
from train.synthesis.manifest import Output
from train.synthesis.statistics import BINS, PERCENTILES, SCORES, Statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

PAPER_TOKENS = (1, 3, 5, 7, 10, 15, 36)  # LAION-L2I's caption lengths at the same percentiles, CLIP tokens
PAPER_CLIP = "0.273 ± 0.034"
_KEPT = "#2a7f62"
_MOST_COMPONENTS = 8
_FILTERS = {
    "saliency_failed": "saliency model ran", "mask_empty": "mask not empty", "mask_small": "object not too small",
    "mask_full": "object not everything", "mask_score": "mask classifier", "no_ground": "ground left around the hole",
    "inpainting_failed": "inpainter ran", "inpainting_score": "inpainting classifier",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1120px; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: .6rem 0; } td, th { padding: .2rem .8rem; text-align: right; }
th { font-weight: 600; } td:first-child, th:first-child { text-align: left; padding-left: 0; }
tr + tr { border-top: 1px solid #eee; } img { max-width: 100%; }
.sheet { display: flex; flex-wrap: wrap; gap: 10px; } .sheet img { display: block; border: 1px solid #ddd; }
.note { color: #666; }
"""


def write_report(output: Output, manifest: Mapping[str, Any], sheet: int) -> None:
    """Writes report.html into the folder.

    Args:
        output: a run's folder.
        manifest: what `Output.write_manifest` returned.
        sheet: pictures shown of each reason, spread over the shards.

    Raises:
        OSError: it cannot be written.
    """
    statistics = output.statistics()
    write_text(output.folder / "report.html", _page(manifest, statistics, _sheets(output, sheet)))


def _page(manifest: Mapping[str, Any], statistics: Mapping[str, Statistics], sheets: Mapping[str, list[str]]) -> str:
    kept = statistics["kept"]
    whole = Statistics()
    for part in statistics.values():
        whole.merge(part)
    refused = sum(manifest["refused"].values())
    state = "" if manifest["complete"] else (
        f"<p class=note>Not complete: {len(manifest['shards'])} of {manifest['input_shards']} input shards.</p>")
    sections = [
        f"<h1>Two-layer samples</h1>{state}",
        _table(("", "samples"), [("in the input", manifest["samples"]), ("not readable", refused),
                                 ("made", manifest["samples"] - refused), ("kept", manifest["kept"])]),
        "<h2>What each filter keeps</h2>", _filters(manifest), _image(_filter_plot(manifest), "share left after each"),
        "<h2>Captions</h2>", _captions(kept, whole), _clip(kept, whole),
        "<h2>Masks</h2>", f"<p class=note>Kept samples. Components are 8-connected parts above 0.5 with more than "
        f"{LEAST_COMPONENT} pixels.</p>", _image(_mask_plots(kept), "histograms of mask area and components"),
        *_scores(whole),
        "<h2>Not readable, and converted</h2>", _counts("cause", manifest["refused"]),
        _counts("converted", manifest["converted"]),
        *_contact_sheets(sheets),
        "<h2>Made by</h2>", _table(("", ""), [(name, value) for name, value in manifest["versions"].items()]),
    ]
    return (f"<!doctype html><html lang=en><meta charset=utf-8><title>Two-layer samples</title>"
            f"<style>{_STYLE}</style><body>{''.join(sections)}</body></html>")


def _filters(manifest: Mapping[str, Any]) -> str:
    rows = [(name, reached, left, f"{100 * left / reached:.1f} %" if reached else "-")
            for name, reached, left in _steps(manifest)]
    return _table(("filter", "reached it", "passed", "share"), rows)


def _steps(manifest: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Filters in their order: name, samples that reached it, samples that passed; without classifiers there are not."""
    absent = {f"{kind}_score" for kind in ("mask", "inpainting") if manifest["config"]["filters"][kind] is None}
    left = manifest["samples"] - sum(manifest["refused"].values())
    steps: list[tuple[str, int, int]] = []
    for reason, name in _FILTERS.items():
        if reason in absent:
            continue
        reached, left = left, left - manifest["dropped"].get(reason, 0)
        steps.append((name, reached, left))
    return steps


def _captions(kept: Statistics, whole: Statistics) -> str:
    rows = [("kept", *kept.word_percentiles()), ("kept and dropped", *whole.word_percentiles()),
            ("paper, CLIP tokens", *PAPER_TOKENS)]
    header = ("percentile", *(f"{share} %" for share in PERCENTILES))
    return "<p class=note>Length in words.</p>" + _table(header, [row for row in rows if len(row) > 1])


def _clip(kept: Statistics, whole: Statistics) -> str:
    scores = {"kept": kept.clip_score(), "kept and dropped": whole.clip_score()}
    rows = [(name, f"{score[0]:.3f} ± {score[1]:.3f}") for name, score in scores.items() if score]
    if not rows:
        return "<p class=note>No CLIP score: no CLIP model in the config (filters: clip).</p>"
    return _table(("CLIP score", ""), [*rows, ("paper, ViT-L/14", PAPER_CLIP)])


def _scores(whole: Statistics) -> list[str]:
    found = {name: counts for name, counts in whole.scores.items() if sum(counts)}
    return ["<h2>Classifiers</h2>", _image(_score_plots(found), "histograms of scores")] if found else []


def _contact_sheets(sheets: Mapping[str, list[str]]) -> list[str]:
    parts: list[str] = []
    for reason, pictures in sheets.items():
        title = "Kept" if reason == "kept" else f"Dropped: {reason.replace('_', ' ')}"
        images = "".join(f'<img alt="" src="data:image/jpeg;base64,{picture}">' for picture in pictures)
        parts.append(f"<h2>{html.escape(title)}</h2><div class=sheet>{images}</div>")
    note = "<p class=note>Each strip: composed, foreground, background (the picture where none was made), mask.</p>"
    return [note, *parts] if parts else []


def _sheets(output: Output, sheet: int) -> dict[str, list[str]]:
    """Of each reason some pictures, taken in turn from the shards; kept ones first."""
    by_reason: dict[str, list[list[str]]] = {}
    for entry in output.entries():
        for reason, pictures in entry["thumbnails"].items():
            groups = by_reason.setdefault(reason, [])
            if len(groups) < sheet:
                groups.append(pictures)
    order = sorted(by_reason, key=lambda reason: (reason != "kept", reason))
    return {reason: _in_turn(by_reason[reason], sheet) for reason in order}


def _in_turn(groups: Sequence[Sequence[str]], count: int) -> list[str]:
    longest = max(len(group) for group in groups)
    turns = [group[place] for place in range(longest) for group in groups if place < len(group)]
    return turns[:count]


def _filter_plot(manifest: Mapping[str, Any]) -> str:
    from matplotlib.figure import Figure

    steps = _steps(manifest)
    made = max(steps[0][1], 1)
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    names = [name for name, _, _ in steps]
    axes.barh(names, [100 * left / made for _, _, left in steps], color=_KEPT)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the readable samples left")
    return _png(figure)


def _mask_plots(kept: Statistics) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), layout="constrained")
    area, components = figure.subplots(1, 2)
    edges = np.linspace(0, 1, BINS + 1)
    for threshold, counts in zip(AREA_THRESHOLDS, kept.areas, strict=True):
        area.stairs(_percent(counts), edges, label=f"m > {threshold}", linewidth=1.5)
    area.set_xlabel("share of the picture that the mask covers")
    area.set_ylabel("% of samples")
    area.set_xlim(0, 1)
    area.legend()
    numbers = Counter({min(number, _MOST_COMPONENTS): 0 for number in range(_MOST_COMPONENTS + 1)})
    for number, count in kept.components.items():
        numbers[min(number, _MOST_COMPONENTS)] += count
    labels = [str(number) for number in range(_MOST_COMPONENTS)] + [f"{_MOST_COMPONENTS}+"]
    components.bar(labels, _percent([numbers[number] for number in range(_MOST_COMPONENTS + 1)]), color=_KEPT)
    components.set_xlabel("connected components")
    components.set_ylabel("% of samples")
    return _png(figure)


def _score_plots(found: Mapping[str, list[int]]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(SCORES), 2.6), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, len(SCORES)))
    for axes, name in zip(panels, SCORES, strict=True):
        axes.stairs(_percent(found.get(name, [0] * BINS)), np.linspace(0, 1, BINS + 1), fill=True, color=_KEPT)
        axes.set_xlabel(name.replace("_", " "))
        axes.set_ylabel("% of samples")
    return _png(figure)


def _percent(counts: Sequence[int]) -> list[float]:
    total = max(sum(counts), 1)
    return [100 * count / total for count in counts]


def _png(figure: Any) -> str:  # noqa: ANN401 - matplotlib's figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def _image(data: str, text: str) -> str:
    return f'<p><img alt="{html.escape(text)}" src="data:image/png;base64,{data}"></p>'


def _counts(name: str, counts: Mapping[str, int]) -> str:
    if not counts:
        return f"<p class=note>{name}: none</p>"
    return _table((name, "samples"), [(reason.replace("_", " "), count) for reason, count in counts.items()])


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in header)}</tr>"] if any(header) else []
    lines += [f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"
