"""The model itself, as it is and in ways that may be quicker: `python -m benchmarks.speed` (speed.md)."""

from __future__ import annotations

import copy
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import BUSY, machine_is_idle, make_parser, positive, print_table, seconds_in_turns
from benchmarks.sampling import CASES, GUIDANCE_SCALE, Case
from benchmarks.speed_cuda import measure_cuda
from text2layer_core.autoencoder import CaT2IAutoencoder, fold_batch_norm
from text2layer_core.compositing import compose
from text2layer_core.layers import TwoLayerImage
from text2layer_core.metrics import psnr
from text2layer_core.sampling import initial_noise, sample_ddim

PLAIN = "plain"
COMPILED = "torch.compile"
LEAST_PSNR = 40.0
PROFILED = 6  # operators that are named
SIZES = {"bundled": 256, "sd": 256}

T = TypeVar("T")
_Network = TypeVar("_Network", bound=nn.Module)
Change = Callable[[Any], object]
"""Changes a network in place."""


@dataclass(frozen=True)
class Figures:
    """What came of one variant.

    Attributes:
        first: seconds of its first call, which compiles.
        seconds: median of the others.
        ratio: seconds over those of the plain network.
        decibel: PSNR of its picture against the plain network's, the least over foreground, background, mask, composed.
    """

    first: float
    seconds: float
    ratio: float
    decibel: float

    def __str__(self) -> str:
        low = "" if self.decibel >= LEAST_PSNR else f" (below {LEAST_PSNR:.0f})"
        return f"{self.seconds:8.3f} s  ratio {self.ratio:.3f}  {self.decibel:5.1f} dB{low}"


def unchanged(network: nn.Module) -> None:
    """Float32, eager, both halves of guidance in one batch, scaled_dot_product_attention."""


def channels_last(network: nn.Module) -> None:
    """Kernels of convolutions, and with them what they give, in the order N, H, W, C."""
    _replace_tensors(network, lambda kept: kept.to(memory_format=torch.channels_last) if kept.ndim == 4 else kept)


def autocast(network: nn.Module) -> None:
    """Float32 weights, convolutions and matrix products in bfloat16."""
    device = next(network.parameters()).device.type
    _wrap(network, lambda run: torch.autocast(device, torch.bfloat16)(run))


def bfloat16(network: nn.Module) -> None:
    """Everything in bfloat16, as `Text2LayerPipeline.from_pretrained(dtype=torch.bfloat16)` reads it."""
    _replace_tensors(network, lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor)


def both(*changes: Change) -> Change:
    """One change after another."""

    def change(network: nn.Module) -> None:
        for each in changes:
            each(network)

    return change


def separate_guidance(unet: nn.Module) -> None:
    """One call of the UNet for each half of guidance."""

    def split(run: Callable[..., tuple[Tensor]]) -> Callable[..., tuple[Tensor]]:
        def forward(latents: Tensor, timestep: int, *, encoder_hidden_states: Tensor, **options: bool) -> tuple[Tensor]:
            halves = zip(latents.chunk(2), encoder_hidden_states.chunk(2), strict=True)
            return (torch.cat([run(one, timestep, encoder_hidden_states=text, **options)[0] for one, text in halves]),)

        return forward

    _wrap(unet, split)


def plain_attention(unet: Any) -> None:  # noqa: ANN401
    """Attention by two matrix products and a softmax, diffusers' `AttnProcessor`; the default is its SDPA."""
    from diffusers.models.attention_processor import AttnProcessor

    unet.set_attn_processor(AttnProcessor())


def folded(autoencoder: CaT2IAutoencoder) -> None:
    """The heads' BatchNorm becomes part of the convolution before it."""
    weights = fold_batch_norm(autoencoder.state_dict())
    for name, head in autoencoder.heads.items():
        head.norm = nn.Identity()
        head.conv1.weight, head.conv1.bias = (
            nn.Parameter(weights[f"heads.{name}.conv1.{key}"], requires_grad=False) for key in ("weight", "bias")
        )


def compiled(network: nn.Module) -> None:
    """Inductor's kernels; the timestep becomes a tensor, as each number would be compiled anew."""

    def compile_run(run: Callable[..., Any]) -> Callable[..., Any]:
        quick = torch.compile(run)
        return lambda latents, *timestep, **text: quick(latents, *map(torch.tensor, timestep), **text)

    _wrap(network, compile_run)


SAMPLING: dict[str, Change] = {
    PLAIN: unchanged,
    "channels_last": channels_last,
    "bf16 autocast": autocast,
    "channels_last, bf16 autocast": both(channels_last, autocast),
    "bf16 weights": bfloat16,
    "channels_last, bf16 weights": both(channels_last, bfloat16),
    "separate guidance": separate_guidance,
    "attention without SDPA": plain_attention,
    COMPILED: compiled,
}
DECODE: dict[str, Change] = {
    PLAIN: unchanged,
    "channels_last": channels_last,
    "bf16 autocast": autocast,
    "channels_last, bf16 autocast": both(channels_last, autocast),
    "bf16 weights": bfloat16,
    "channels_last, bf16 weights": both(channels_last, bfloat16),
    "BatchNorm folded": folded,
    COMPILED: compiled,
}


def prepared(network: _Network, change: Change) -> _Network:
    """A changed copy that shares the weights that the change leaves alone; the SD UNet's are 3.4 GB."""
    shared = [*network.parameters(), *network.buffers()]
    network = copy.deepcopy(network, {id(tensor): tensor for tensor in shared})
    change(network)
    return network


def picture(layers: TwoLayerImage) -> tuple[Tensor, ...]:
    """Foreground, background, mask and composed, float32."""
    layers = layers.to(torch.float32)
    return layers.foreground, layers.background, layers.mask, compose(layers)


def shares(run: Callable[[], object], device: str) -> list[tuple[str, float]]:
    """Which operators take the time of a run, each with its share of all, the largest first."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]) as profiler:
        run()
    kind = f"self_{'device' if device == 'cuda' else 'cpu'}_time_total"
    times = {event.key: float(getattr(event, kind)) for event in profiler.key_averages()}
    whole = sum(times.values())
    return sorted(((name, spent / whole) for name, spent in times.items()), key=lambda pair: pair[1], reverse=True)


def measure(
    network: _Network,
    changes: Mapping[str, Change],
    run: Callable[[_Network], Tensor | TwoLayerImage],
    show: Callable[[Any], tuple[Tensor, ...]],
    repeats: int,
) -> dict[str, Figures]:
    """Runs every variant, the plain one first: once for its picture, then in turns."""
    networks = {name: prepared(network, change) for name, change in changes.items()}
    first: dict[str, float] = {}
    decibels: dict[str, float] = {}
    plain: tuple[Tensor, ...] = ()
    for name, variant in networks.items():
        began = time.perf_counter()
        output = run(variant)
        first[name] = time.perf_counter() - began
        shown = show(output)
        plain = plain or shown
        decibels[name] = min(float(psnr(ours, theirs)) for ours, theirs in zip(shown, plain, strict=True))
    seconds = seconds_in_turns({name: partial(run, variant) for name, variant in networks.items()}, repeats, warm=True)
    return {name: Figures(first[name], seconds[name], seconds[name] / seconds[PLAIN], decibels[name])
            for name in networks}


@torch.no_grad()
def measure_case(name: str, case: Case, repeats: int, device: str = "cpu", *, compiling: bool) -> dict[str, str]:
    """Prints sampling and decoding of one case; of each, the quickest variant that keeps the picture."""
    scale = case.schedule.latent_scale
    noise = initial_noise(0, (1, case.unet.config["in_channels"], case.side, case.side)).to(device)
    case = replace(case, context=case.context.to(device))
    for network in (case.unet, case.autoencoder):
        network.to(device)
    print(f"{name} on {device} ({case.origin}): {case.size} px, median of {repeats}; "
          "the first line is what the others change")

    def finished(output: T) -> T:
        if device == "cuda":
            torch.cuda.synchronize()
        return output

    def sample(unet: Any) -> Tensor:  # noqa: ANN401
        return finished(sample_ddim(unet, case.schedule, noise, case.context[1:], case.context[:1],
                                    steps=case.steps, guidance_scale=GUIDANCE_SCALE))

    def decode(autoencoder: CaT2IAutoencoder) -> TwoLayerImage:
        return finished(autoencoder.decode(latents.to(autoencoder.quant_conv.weight.dtype)).layers)

    def drawn(sampled: Tensor) -> tuple[Tensor, ...]:
        return picture(case.autoencoder.decode(sampled / scale).layers)

    latents = sample(case.unet) / scale
    quickest: dict[str, str] = {}
    measured = (
        ("sampling", case.unet, SAMPLING, sample, drawn),
        ("decode", case.autoencoder, DECODE, decode, picture),
    )
    for work, network, changes, run, show in measured:
        chosen = {title: change for title, change in changes.items() if compiling or title != COMPILED}
        figures = measure(network, chosen, run, show, repeats)
        print(f"{work}, {case.steps} steps with guidance" if work == "sampling" else work)
        operators = shares(partial(run, network), device)[:PROFILED]
        print("  " + ", ".join(f"{name} {share:.0%}" for name, share in operators))
        print_table([(title, f"{figure}{f', first call {figure.first:.0f} s' if title == COMPILED else ''}")
                     for title, figure in figures.items()])
        keeping = {title: figure.ratio for title, figure in figures.items() if figure.decibel >= LEAST_PSNR}
        title = min(keeping, key=lambda title: keeping[title])
        quickest[f"{name} {work} on {device}"] = f"{keeping[title]:.3f} ({title})"
    return quickest


def can_compile() -> bool:
    """Whether Inductor's C++ compiler is there; says so in one line if not."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        print(f"torch.compile is left out: it needs a C++ compiler, found no {compiler}")
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark: 0, or 1 if CUDA misses its memory, or 2 if nothing was measured."""
    parser = make_parser("speed", __doc__ or "", repeats=3)
    parser.add_argument("--case", choices=list(CASES), help="one case alone, sd then compiled too (default: all)")
    parser.add_argument("--size", type=int, help="pixels a side (default: 256)")
    parser.add_argument("--steps", type=int, help="of one sample (default: 20, for sd 1)")
    parser.add_argument("--no-compile", action="store_true", help="leaves torch.compile out")
    arguments = parser.parse_args(argv)
    chosen = {name: getattr(arguments, name) for name in ("size", "steps") if getattr(arguments, name) is not None}
    positive(parser, arguments, "repeats", *chosen)
    if not machine_is_idle(force=arguments.force):
        return BUSY
    torch.manual_seed(0)
    compiling = not arguments.no_compile and can_compile()
    quickest: dict[str, str] = {}
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device, name in product(devices, [arguments.case] if arguments.case else CASES):
        case = replace(CASES[name](), **{"size": SIZES[name], **chosen})
        if case.size % case.stride:
            parser.error(f"--size must be a multiple of {name}'s stride {case.stride}, got {case.size}")
        here = compiling and (name != "sd" or arguments.case == "sd")  # minutes for the UNet of sd
        quickest |= measure_case(name, case, arguments.repeats, device, compiling=here)
    fits = measure_cuda(arguments.repeats) if torch.cuda.is_available() else True
    listed = ", ".join(f"{name} {ratio}" for name, ratio in quickest.items())
    print(f"ratio: {listed} (the least at {LEAST_PSNR:.0f} dB or more)")
    return 0 if fits else 1


def _wrap(network: nn.Module, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Puts something around what `sample_ddim` or `CaT2IAutoencoder.decode` calls."""
    name = "decode_heads" if isinstance(network, CaT2IAutoencoder) else "forward"
    setattr(network, name, wrapper(getattr(network, name)))


def _replace_tensors(network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """New weights and buffers where they change, so that networks that share them keep theirs."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(change(parameter.detach()), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, change(buffer))


if __name__ == "__main__":
    raise SystemExit(main())
