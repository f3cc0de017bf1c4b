"""docs/tables.md: the paper's figures beside ours, and which of its claims hold here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.tables import TablesConfig

Results = Mapping[int, Mapping[str, Mapping[str, Any]]]
"""Seed -> system -> what `train.tables` measured."""

PAPER: dict[str, tuple[str, str, str]] = {
    "cat2i": ("10.51", "0.251", "0.885"),
    "no-sup": ("13.84", "0.241", "0.904"),
    "sd-ae": ("18.53", "0.219", "0.779"),
    "sd-ae-ft": ("20.15", "0.234", "0.670"),
    "flat": ("11.80", "0.250", "-"),
    "flat-own": ("-", "-", "-"),
    "unfiltered": ("13.82", "0.234", "0.736 (human; filtered 0.799)"),
    "filtered": ("10.51", "0.251", "0.799 (human)"),
    "balanced": ("-", "-", "-"),
}
"""FID on LL2I-E, CLIP score, IOU (ICON), 256 px; the unfiltered row is from the paper's ablation of the filter."""

_COLUMNS = (
    ("Frechet distance", "frechet_distance", 3), ("kernel distance x 1000", "kernel_distance", 2),
    ("similarity", "similarity", 3), ("soft IOU", "soft_iou_saliency", 3), ("thing", "thing_top1", 3),
    ("place", "place_top1", 3), ("leakage", "leakage", 3), ("fringe", "fringe", 1), ("ghost", "ghost", 2),
)


@dataclass(frozen=True)
class Claim:
    """One of the paper's findings: what is compared, and whether the first should be below the second.

    Attributes:
        text: the finding.
        paper: its figures there.
        first: system.
        second: system.
        figure: of ours.
        below: the first should be lower.
    """

    text: str
    paper: str
    first: str
    second: str
    figure: str
    below: bool


CLAIMS = (
    Claim("joint beats concatenated in picture quality", "FID 10.51 against 18.53", "cat2i", "sd-ae",
          "frechet_distance", below=True),
    Claim("joint beats concatenated in the text's match", "CLIP score 0.251 against 0.219", "cat2i", "sd-ae",
          "similarity", below=False),
    Claim("joint beats concatenated in masks", "IOU 0.885 against 0.779", "cat2i", "sd-ae", "soft_iou_saliency",
          below=False),
    Claim("from scratch beats flat weights tuned further", "FID 18.53 against 20.15", "sd-ae", "sd-ae-ft",
          "frechet_distance", below=True),
    Claim("layered at least matches flat", "FID 10.51 against 11.80", "cat2i", "flat", "frechet_distance", below=True),
    Claim("layered at least matches flat in the text's match", "CLIP score 0.251 against 0.250", "cat2i", "flat",
          "similarity", below=False),
    Claim("auxiliary I helps the picture", "FID 10.51 against 13.84", "cat2i", "no-sup", "frechet_distance",
          below=True),
    Claim("auxiliary I helps the text's match", "CLIP score 0.251 against 0.241", "cat2i", "no-sup", "similarity",
          below=False),
    Claim("auxiliary I hurts the mask", "IOU 0.885 against 0.904", "cat2i", "no-sup", "soft_iou_saliency", below=True),
    Claim("filtering helps the picture", "FID 10.51 against 13.82", "cat2i", "unfiltered", "frechet_distance",
          below=True),
    Claim("filtering helps the text's match", "CLIP score 0.251 against 0.234", "cat2i", "unfiltered", "similarity",
          below=False),
    Claim("filtering helps the mask", "IOU (human) 0.799 against 0.736", "cat2i", "unfiltered", "soft_iou_saliency",
          below=False),
)

FILTER_CLAIMS = tuple(
    Claim(f"learned filters {text}", paper, "filtered", "unfiltered", figure, below)
    for text, paper, figure, below in (
        ("help the picture", "FID 10.51 against 13.82", "frechet_distance", True),
        ("help the text's match", "CLIP score 0.251 against 0.234", "similarity", False),
        ("help the mask", "IOU (human) 0.799 against 0.736", "soft_iou_saliency", False),
    )
)
"""The same findings with filters that had to be learned, as the paper's; shown where their row is."""

BALANCE = (
    Claim("picture at least as good as with the auxiliary head", "10.51", "balanced", "cat2i", "frechet_distance",
          below=True),
    Claim("picture at least as good as without it", "13.84", "balanced", "no-sup", "frechet_distance", below=True),
    Claim("picture at least as good as the flat model's", "11.80", "balanced", "flat", "frechet_distance", below=True),
    Claim("picture at least as good as the flat model's with an autoencoder of its own", "-", "balanced", "flat-own",
          "frechet_distance", below=True),
    Claim("mask at least as good as with it", "0.885", "balanced", "cat2i", "soft_iou_saliency", below=False),
    Claim("mask at least as good as without it", "0.904", "balanced", "no-sup", "soft_iou_saliency", below=False),
    Claim("no more of the thing left in the background than with it", "-", "balanced", "cat2i", "leakage", below=True),
    Claim("place found at least as often as with it", "-", "balanced", "cat2i", "place_top1", below=False),
)
"""What the paper leaves open, its auxiliary head buys the picture's quality with the mask's; and what it may cost."""


def claim_verdict(results: Results, claim: Claim) -> tuple[str, str]:
    """Our figures seed by seed, and whether the finding held: "yes", "no", or "undecided" where the seeds disagree.

    A finding holds where the difference has its sign in every seed of at least two and no seed's intervals overlap;
    where some overlap, or there is one seed alone, "leans yes" or "leans no" if all seeds have one sign.
    """
    run = [(found[claim.first], found[claim.second]) for found in results.values()
           if claim.first in found and claim.second in found]
    pairs = [(first[claim.figure], second[claim.figure]) for first, second in run
             if claim.figure in first and claim.figure in second]
    if not pairs:
        return "-", "no figure" if run else "not run"
    shown = "; ".join(f"{_with_interval(first, 3)} against {_with_interval(second, 3)}" for first, second in pairs)
    signs = {(first["value"] < second["value"]) == claim.below for first, second in pairs}
    if len(signs) > 1:
        return shown, "undecided"
    apart = len(pairs) > 1 and all(first["high"] < second["low"] or second["high"] < first["low"]
                                   for first, second in pairs)
    word = "yes" if signs == {True} else "no"
    return shown, word if apart else f"leans {word}"


def write_tables(
    config: TablesConfig, results: Results, truth: Mapping[str, Any], titles: Mapping[str, str],
    tried: Collection[str], notes: str | None = None,
) -> str:
    """The whole page in Markdown.

    Args:
        config: the recipe.
        results: what was measured.
        truth: the same figures of true layers, without a training.
        titles: of the systems, in the page's order.
        tried: systems that have a table of their own.
        notes: a file beside the page that says more of these very runs.

    Returns:
        Text with a final line feed.
    """
    seeds = sorted(results)
    found = [name for name in titles if any(name in systems for systems in results.values())]
    names, tries = [name for name in found if name not in tried], [name for name in found if name in tried]
    lines = [_INTRODUCTION.format(
        size=config.data.size, things=len(config.data.icons.things) if config.data.icons else 0,
        places=len(config.data.icons.places) if config.data.icons else 0,
        autoencoder=config.autoencoder_training.images, diffusion=config.diffusion_training.images,
        count=config.drawing.count, steps=config.drawing.steps, cfg=config.drawing.guidance_scale,
        references=config.references, share=config.unfiltered_share, tuned=config.fine_tuning_share,
    )]
    if notes is not None:
        lines += [f"What these very runs were made with, and what was seen in them: [{notes}]({notes}).", ""]
    lines += ["## Systems", "", "| system | paper: FID, CLIP score, IOU (ICON) | seed | "
              + " | ".join(title for title, _, _ in _COLUMNS) + " |", "|---" * (3 + len(_COLUMNS)) + "|"]
    for name in names:
        for seed in seeds:
            if name in results[seed]:
                cells = [_cell(results[seed][name], key, digits) for _, key, digits in _COLUMNS]
                lines.append(f"| {titles[name]} | {', '.join(PAPER[name])} | {seed} | {' | '.join(cells)} |")
    cells = [_cell(truth, key, digits) for _, key, digits in _COLUMNS]
    lines.append(f"| true layers | -, -, - | - | {' | '.join(cells)} |")
    lines += ["", _COLUMNS_NOTE, "", "## The paper's claims", "",
              "| claim | the paper | here, seed by seed | held here |", "|---|---|---|---|"]
    learned = FILTER_CLAIMS if "filtered" in names else ()
    for claim in (*CLAIMS, *learned):
        shown, verdict = claim_verdict(results, claim)
        lines.append(f"| {claim.text} | {claim.paper} | {_UNITS[claim.figure]} {shown} | {verdict} |")
    lines += ["", f"{_VERDICT_NOTE} Seeds here: {', '.join(map(str, seeds))}.", "",
              "## The open problem: both at once", "", _BALANCE_NOTE, "",
              "| aim | the paper's figure there | balanced against it, seed by seed | reached |", "|---|---|---|---|"]
    for claim in BALANCE:
        shown, verdict = claim_verdict(results, claim)
        lines.append(f"| {claim.text} | {claim.paper} | {_UNITS[claim.figure]} {shown} | {verdict} |")
    if tries:
        lines += ["", _TRIES_NOTE, "", "| try | seed | Frechet distance | soft IOU | thing | leakage | ghost | "
                  "foreground where m > 0.5, dB | background, dB | mask, soft IoU |", "|---" * 10 + "|"]
        for name in (*(name for name in _COMPARED if name in names), *tries):
            for seed in seeds:
                if name in results[seed]:
                    figures = results[seed][name]
                    cells = [_cell(figures, key, 3) for key in _TRIED] + [
                        f"{figures['reconstruction'][key]:.3f}" for key in _TRIED_RECONSTRUCTION]
                    lines.append(f"| {titles[name]} | {seed} | {' | '.join(cells)} |")
    lines += ["", "## The autoencoders alone", "",
              "| system | seed | " + " | ".join(title for title, _ in _RECONSTRUCTION) + " |",
              "|---" * (2 + len(_RECONSTRUCTION)) + "|"]
    for name in names:
        for seed in seeds:
            if name in results[seed]:
                kept = results[seed][name]["reconstruction"]
                cells = [f"{kept[key]:.3f}" if kept.get(key) is not None else "-" for _, key in _RECONSTRUCTION]
                lines.append(f"| {titles[name]} | {seed} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_COMPARED = ("cat2i", "no-sup", "balanced")
_TRIED = ("frechet_distance", "soft_iou_saliency", "thing_top1", "leakage", "ghost")
_TRIED_RECONSTRUCTION = ("foreground_psnr", "background_psnr", "mask_soft_iou")
_UNITS = {"frechet_distance": "Frechet", "soft_iou_saliency": "soft IOU", "similarity": "similarity",
          "leakage": "share", "place_top1": "share"}
_RECONSTRUCTION = (
    ("composed, dB", "composed_psnr"), ("foreground where m > 0.5, dB", "foreground_psnr"),
    ("background, dB", "background_psnr"), ("mask, soft IoU", "mask_soft_iou"),
    ("mask, SAD in the soft band", "mask_soft_band_sad"), ("predicted I, dB", "predicted_composed_psnr"),
)


def _cell(figures: Mapping[str, Any], key: str, digits: int) -> str:
    found = figures.get(key)
    if found is None or found["value"] != found["value"]:
        return "-"
    if key == "kernel_distance":
        if all(round(number, 3) == number for number in found.values()):
            return f"{1000 * found['value']:.0f}"
        found = {name: 1000 * number for name, number in found.items()}
    return _with_interval(found, digits)


def _with_interval(figure: Mapping[str, float], digits: int) -> str:
    return f"{figure['value']:.{digits}f} ± {(figure['high'] - figure['low']) / 2:.{digits}f}"


_INTRODUCTION = """# The paper's tables in miniature

Made by `python -m train.tables`, a call for some `--systems` and `--seeds` at a time, which add to the page; the recipe
is `train/configs/tables.yaml`, and `--set filters.mask=FILE --set filters.inpainting=FILE` asks for the row of learned
filters. All systems see the same icon scenes ({things} things at {places} places, {size} x {size} pixels) in the same
order: {autoencoder:,} images for each autoencoder, {diffusion:,} for each UNet, the same seed for all of them. {count}
pictures of each are drawn with {steps} DDIM steps at guidance {cfg} and compared with {references:,} other true scenes
of the same kinds.

What differs from the paper: its size by far; icons whose layers are exact instead of segmented photographs; no
discriminator, and a gradient loss in LPIPS's place; v-prediction, with the latent cells that the mask covers weighted
more; a small text encoder, trained before and frozen; Frechet distance, similarity and soft IOU are those of the icon
evaluator (models/README.md) instead of Inception, CLIP and ICON, so that only comparisons within a column mean
anything. The image autoencoder of SD-AE-UNet and SD-L2I has CaT2I-AE's trunk and saw F, B, m and I in equal shares,
so that, unlike Stable Diffusion's, it knows masks; its latents have as many channels each as CaT2I-AE's. "Its
autoencoder on composed pictures alone", where that row stands, saw I and nothing else. The fine-tuned system starts
from SD-L2I's weights and sees {tuned:.0%} of the images. A share of {share:.0%} of the unfiltered samples has one of
the paper's five defects (thing cut in half, background in the mask, a speck of a mask; the thing left in the hole, a
filling that does not fit). But for what the learned filters let through the other systems see none: "through learned
filters" is what those of `train.train_quality` leave. SD-L2I's mask is the saliency reference's own, so its soft IOU
is 1 by definition and its layers are the picture.
"""
_COLUMNS_NOTE = """Frechet and kernel distance: lower is better, 95 % intervals by a jackknife over ten groups; a kernel
distance in whole numbers was recorded rounded, too coarsely for an interval. The others are means over the pictures
with bootstrapped 95 % intervals: similarity is the evaluator's cosine of picture and caption; soft IOU, sum of minima
over sum of maxima, that of the mask and the saliency reference run on the composed picture, where the paper has IOU
(ICON); thing and place the share found by text; leakage the share of backgrounds in which the evaluator sees the thing
rather than nothing, with a threshold that 1 % of true ones reach (models/README.md tells how little it takes); fringe
in 1/255, low where an outline is blurred; ghost 1 is no trace."""
_VERDICT_NOTE = """"yes" and "no": two seeds or more agree and the intervals are apart in each. "leans": the
seeds agree but some intervals overlap, or there is one seed alone. "undecided": the seeds disagree. The intervals are
those of the pictures drawn; another training, with the other seed, can move a figure further than they say, as the rows
above show."""
_TRIES_NOTE = """Every try, beside the paper's two variants and the balanced one. "F by area" is the
foreground's L1 normalised by the mask's area, and "B by area" the background's where the mask covers it, with the same
weight as the rest of B."""
_BALANCE_NOTE = """"Balanced" keeps the auxiliary head and changes the autoencoder's loss in four places: the
foreground's L1 is normalised by the mask's area, with a tenth of the plain one beside it; its perceptual term is taken
where the mask shows it; the composition of the predicted layers is compared with I (weight 1), and the auxiliary head's
picture with that composition (weight 0.2)."""
