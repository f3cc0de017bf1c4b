"""The node pack inside ComfyUI against what it must not slow down: `python -m benchmarks.nodes`.

The host's part runs in the host's own Python, set up as its main.py does it, and our core's in this one; both are
worker processes, which time themselves and answer over a pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.common import BUSY, Goal, machine_is_idle, make_parser, positive, print_table, report, seconds_in_turns

if TYPE_CHECKING:
    from tests.host.comfyui import Host, Server

GOALS = {"sampler": Goal(1.05), "generate": Goal(1.1)}
PACK = Path(__file__).resolve().parent.parent
WORKFLOW = PACK / "workflows" / "api" / "text2layer_basic.json"
LOADER = "Text2LayerModelLoader"
LOAD_LINE = "Requested to load"  # the host's log, once per model that it loads
PROMPT = "a fox in the snow"
CFG = 7.5
SEEDS = (0, 1, 2)
CLIP_TOKENS = 77
_SECONDS_OF_A_RUN = 600


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        unet: what differs from preset sd in the sampler's UNet; the host must still recognise it as SD15.
        size: pixels a side for the sampler; its latent has an eighth.
        sampler_steps: for the sampler.
        steps: of the bundled model.
    """

    unet: dict[str, Any]
    size: int
    sampler_steps: int
    steps: int


FULL = Sizes(unet={}, size=512, sampler_steps=4, steps=50)
SMALL_UNET = {"block_out_channels": (320, 320), "attention_levels": (True, False), "layers_per_block": 1}
QUICK = Sizes(unet=SMALL_UNET, size=64, sampler_steps=2, steps=2)


class WorkerError(RuntimeError):
    """A worker or a server failed; the message ends with what it printed."""


class Worker:
    """A process that measures and answers in JSON, one line per call; what else it prints goes to a log."""

    def __init__(self, host: Host | None = None) -> None:
        """Starts our core or, given a checkout of ComfyUI, a host."""
        self._folder = TemporaryDirectory(prefix="text2layer-")
        self._log = Path(self._folder.name) / "log.txt"
        python, role = (sys.executable, ["core"]) if host is None else (host.python, ["host", str(host.folder)])
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [str(python), "-m", "benchmarks.nodes", "--worker", *role, self._folder.name], cwd=PACK, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=_environment(inside_host=bool(host)),
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None,
                 /) -> None:
        if kind is not None:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._folder.cleanup()

    def call(self, function: str, **arguments: Any) -> Any:  # noqa: ANN401 - what JSON holds
        """Calls a method of the worker.

        Raises:
            WorkerError: it failed; with the end of its log.
        """
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([function, arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            log = self._log.read_text(encoding="utf-8", errors="replace").strip()
            raise WorkerError(f"a worker failed at {function}:\n{log[-4000:]}")
        return json.loads(answer)


def _environment(*, inside_host: bool) -> dict[str, str]:
    """Ours; the host's Python gets none of our packages, and import of diffusers is refused there."""
    if not inside_host:
        return dict(os.environ)
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "PYTHONPATH": str(PACK / "tests" / "host" / "blocked")}


class CoreWorker:
    """Our core, as the command line runs it."""

    def __init__(self, _folder: str) -> None:
        """Loads the bundled model; writes nothing."""
        from text2layer_core.pipeline import Text2LayerPipeline

        self._pipeline = Text2LayerPipeline.from_pretrained()

    def versions(self) -> str:
        """Of what runs here."""
        return _versions()

    def generate(self, seed: int, steps: int, side: int) -> float:
        """Seconds of one picture, from prompt to layers."""
        began = time.perf_counter()
        self._pipeline(PROMPT, seed=seed, steps=steps, guidance_scale=CFG, width=side, height=side)
        return time.perf_counter() - began


class HostWorker:
    """ComfyUI without its queue, on the CPU, with this pack loaded as the host loads it."""

    def __init__(self, host: str, folder: str) -> None:
        """Takes the place of the host's main.py.

        Args:
            host: the checkout.
            folder: for all that the host writes.
        """
        os.chdir(host)
        sys.path[0] = host
        (Path(folder) / "page").mkdir()
        sys.argv = ["main.py", "--cpu", "--base-directory", folder, "--disable-api-nodes",
                    "--front-end-root", str(Path(folder) / "page")]
        import comfy.options

        comfy.options.enable_args_parsing()
        import utils.extra_config  # noqa: F401 - before nodes puts comfy/utils.py in front of it; so does main.py
        from server import PromptServer

        PromptServer(asyncio.new_event_loop())  # becomes PromptServer.instance
        self._pack = _load_pack()
        extension = asyncio.run(self._pack.comfy_entrypoint())
        self._nodes = {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
        self._loaded: tuple[Any, ...] | None = None

    def versions(self) -> str:
        """Of what runs here."""
        return _versions()

    @torch.inference_mode()  # as the host runs a prompt
    def sampler(
        self, unet: dict[str, Any], shapes: dict[str, list[int]], size: int, steps: int, repeats: int
    ) -> dict[str, float]:
        """Median seconds of KSampler's work on both models, and the largest difference of what they drew.

        Args:
            unet: fields of the `UNetConfig`.
            shapes: of its tensors, under diffusers' names.
            size: pixels a side.
            steps: denoising steps.
            repeats: turns.
        """
        import comfy.sample

        generator = torch.Generator().manual_seed(0)
        models = self._models(unet, {name: _weight(name, shape, generator) for name, shape in shapes.items()})
        width = unet["cross_attention_dim"]
        positive, negative = ([[torch.randn(1, CLIP_TOKENS, width, generator=generator), {}]] for _ in range(2))
        latent = torch.zeros(1, unet["in_channels"], size // 8, size // 8)
        noise = comfy.sample.prepare_noise(latent, 0)
        drawn: dict[str, torch.Tensor] = {}

        def sample(name: str) -> None:
            drawn[name] = comfy.sample.sample(
                models[name], noise, steps, CFG, "ddim", "ddim_uniform", positive, negative, latent,
                disable_pbar=True, seed=0,
            )

        seconds = seconds_in_turns({name: lambda name=name: sample(name) for name in models}, repeats)
        return {**seconds, "difference": (drawn["ours"] - drawn["theirs"]).abs().max().item()}

    @torch.inference_mode()
    def generate(self, seed: int, steps: int, side: int) -> float:
        """Seconds of Text2LayerGenerate's `execute` on the bundled model; the first call loads it before."""
        if self._loaded is None:
            name = self._part("nodes.model_files").BUNDLED
            self._loaded = self._nodes[LOADER].execute(name).args
        node = self._nodes["Text2LayerGenerate"].PREPARE_CLASS_CLONE(None)
        began = time.perf_counter()
        node.execute(*self._loaded, PROMPT, "", seed, steps, CFG, "ddim", "ddim_uniform", side, side, 1)
        return time.perf_counter() - began

    def _models(self, unet: dict[str, Any], weights: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The MODEL that our loader builds and the one that the host itself recognises as SD15, same weights."""
        import comfy.sd
        import comfy.utils

        checkpoint, presets = self._part("text2layer_core.checkpoint"), self._part("text2layer_core.autoencoder")
        header = checkpoint.CheckpointHeader(
            autoencoder=presets.AUTOENCODER_PRESETS["sd"],
            unet=checkpoint.parse_config(self._part("text2layer_core.unet").UNetConfig, unet),
            text_encoder=None,
            schedule=self._part("text2layer_core.schedule").ScheduleConfig(),
            tokenizer_json="",
            external_text_encoder=checkpoint.CLIP_L,
            card={},
        )
        ours = self._part("nodes.host_unet").load_unet(header, weights, "random weights")
        names = comfy.utils.unet_to_diffusers(ours.model.model_config.unet_config)
        theirs = comfy.sd.load_diffusion_model_state_dict({names[key]: tensor for key, tensor in weights.items()})
        found = type(theirs.model.model_config).__name__ if theirs is not None else "nothing"
        if found != "SD15":
            raise WorkerError(f"the host must recognise these weights as SD15, got {found}")
        return {"ours": ours, "theirs": theirs}

    def _part(self, name: str) -> ModuleType:
        """A module of the pack, under the name that the host gave the pack."""
        return importlib.import_module(f"{self._pack.__name__}.{name}")


def _load_pack() -> ModuleType:
    """Imports the pack by its path, as the host's load_custom_node."""
    name = str(PACK).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    pack = importlib.util.module_from_spec(spec)
    sys.modules[name] = pack
    spec.loader.exec_module(pack)
    return pack


def _weight(name: str, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Random with the variance that keeps activations in range; norms and biases as they are before training."""
    if len(shape) == 1:
        return torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


def _versions() -> str:
    return f"Python {platform.python_version()}, torch {torch.__version__}, threads {torch.get_num_threads()}"


def _serve(name: str, *arguments: str) -> int:
    """A worker's main loop: requests on stdin, answers on what was stdout; everything printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        worker = {"core": CoreWorker, "host": HostWorker}[name](*arguments)
        for line in sys.stdin:
            function, values = json.loads(line)
            print(json.dumps(getattr(worker, function)(**values)), file=answers, flush=True)
    except Exception:  # whatever it was, the parent shows it
        traceback.print_exc()
        return 1
    return 0


def sampler_case(host: Host, sizes: Sizes, repeats: int) -> bool:
    """Whether KSampler's work on our MODEL takes no longer than on the host's SD15."""
    from text2layer_core.unet import UNET_PRESETS, build_unet

    config = replace(UNET_PRESETS["sd"], **sizes.unet)
    with torch.device("meta"):
        shapes = {name: list(tensor.shape) for name, tensor in build_unet(config).state_dict().items()}
    with Worker(host) as inside:
        versions = inside.call("versions")
        found = inside.call("sampler", unet=asdict(config), shapes=shapes, size=sizes.size,
                            steps=sizes.sampler_steps, repeats=repeats)
    parameters = sum(math.prod(shape) for shape in shapes.values()) / 1e6
    print(f"sampler: {parameters:.1f} M parameters, random weights, {sizes.size} px, {sizes.sampler_steps} steps with "
          f"guidance, median of {repeats}; {versions}")
    print_table([
        ("on our loader's MODEL", f"{found['ours']:.3f} s"),
        ("on the host's SD15", f"{found['theirs']:.3f} s"),
        ("largest difference of the latents", f"{found['difference']:.1e}"),
    ])
    return not report({"sampler": found["ours"] / found["theirs"]}, GOALS["sampler"])


def generate_case(host: Host, sizes: Sizes, repeats: int) -> bool:
    """Whether Generate takes little longer than our core alone."""
    from text2layer_core.checkpoint import bundled_model_path, read_header
    from text2layer_core.pipeline import DEFAULT_RESOLUTION

    side = read_header(bundled_model_path()).card.get("resolution", DEFAULT_RESOLUTION)
    seconds: dict[str, list[float]] = {"node": [], "pipeline": []}
    with Worker(host) as inside, Worker() as core:
        workers = {"node": inside, "pipeline": core}
        versions = {name: worker.call("versions") for name, worker in workers.items()}
        for turn in range(repeats + 1):
            for name in list(workers) if turn % 2 == 0 else reversed(workers):
                seconds[name].append(workers[name].call("generate", seed=turn, steps=sizes.steps, side=side))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first warms up
    print(f"generate: bundled model, {side} px, {sizes.steps} steps with guidance, median of {repeats}")
    print_table([
        ("Text2LayerGenerate", f"{medians['node']:.3f} s ({versions['node']})"),
        ("core pipeline", f"{medians['pipeline']:.3f} s ({versions['pipeline']})"),
    ])
    return not report({"generate": medians["node"] / medians["pipeline"]}, GOALS["generate"])


def reload_case(host: Host, sizes: Sizes, _repeats: int) -> bool:
    """Whether a real server's runs after the first, with other seeds, load nothing."""
    from tests.host.comfyui import Server

    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    loader = next(key for key, node in graph.items() if node["class_type"] == LOADER)
    generate = next(node for node in graph.values() if "seed" in node["inputs"])
    cached: list[bool] = []
    loads: list[int] = []
    seconds: list[float] = []
    server = Server(host)
    try:
        for seed in SEEDS:
            generate["inputs"].update(seed=seed, steps=sizes.steps)
            events = _run(server, graph)
            cached.append(loader in events["execution_cached"]["nodes"])
            loads.append(server.log.count(LOAD_LINE))
            seconds.append((events["execution_success"]["timestamp"] - events["execution_start"]["timestamp"]) / 1000)
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)
    print(f"reload: {WORKFLOW.stem}, {sizes.steps} steps, seeds {', '.join(map(str, SEEDS))}, on a server of its own")
    print_table([
        ("loader node", ", ".join("cached" if found else "ran" for found in cached)),
        (f"{LOAD_LINE!r} in the log so far", ", ".join(map(str, loads))),
        ("seconds of each run", ", ".join(f"{value:.2f}" for value in seconds)),
    ])
    met = cached == [False] + [True] * (len(SEEDS) - 1) and 0 < loads[0] == loads[-1]
    print(f"reload: one run of the loader, no model loaded again: {'met' if met else 'missed'}", flush=True)
    return met


CASES = {"sampler": sampler_case, "generate": generate_case, "reload": reload_case}


def _run(server: Server, graph: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Queues a graph and waits for it; the last event of each kind."""
    queued = _ask(server, "/prompt", {"prompt": graph})["prompt_id"]
    deadline = time.monotonic() + _SECONDS_OF_A_RUN
    while time.monotonic() < deadline:
        found = _ask(server, f"/history/{queued}")
        if queued in found:
            status = found[queued]["status"]
            if status["status_str"] != "success":
                raise WorkerError(f"the server's run failed: {status['messages'][-1]}")
            return dict(status["messages"])
        time.sleep(0.1)
    raise WorkerError(f"the server did not finish a run in {_SECONDS_OF_A_RUN} s:\n{server.log[-4000:]}")


def _ask(server: Server, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{server.address}{path}", data=data)
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return json.load(answer)


def _find_host(version: str | None) -> Host | None:
    """The newest, or the one of that version; None, with one line on stderr, where there is none."""
    from tests.host.comfyui import find_hosts

    hosts = find_hosts()
    chosen = [host for host in hosts if version in (None, host.version)]
    if chosen:
        return chosen[-1]
    found = ", ".join(host.version for host in hosts) or "none"
    print(f"error: a ComfyUI {version or 'checkout'} with its own Python must be there "
          f"(COMFYUI_PATH, COMFYUI_PYTHON), found {found}", file=sys.stderr)
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark: 0 if all goals are met, 1 if one is missed, 2 if nothing was measured."""
    parser = make_parser("nodes", (__doc__ or "").partition("\n")[0], repeats=5)
    parser.add_argument("--case", choices=CASES, help="one case alone (default: all)")
    parser.add_argument("--host", metavar="VERSION", help="of ComfyUI (default: the newest that is found)")
    parser.add_argument("--quick", action="store_true",
                        help="tiny sizes, one turn, on a busy machine too, ratios not judged: shows that it runs")
    arguments = parser.parse_args(argv)
    positive(parser, arguments, "repeats")
    host = _find_host(arguments.host)
    if host is None or not machine_is_idle(force=arguments.force or arguments.quick):
        return BUSY
    print(f"host: ComfyUI {host.version}", flush=True)
    sizes, repeats = (QUICK, 1) if arguments.quick else (FULL, arguments.repeats)
    try:
        met = {name: CASES[name](host, sizes, repeats) for name in ([arguments.case] if arguments.case else CASES)}
    except RuntimeError as error:  # of a worker or the server
        print(f"error: {error}", file=sys.stderr)
        return BUSY
    return 0 if all(met[name] for name in met if not arguments.quick or name not in GOALS) else 1


if __name__ == "__main__":
    raise SystemExit(_serve(*sys.argv[2:]) if sys.argv[1:2] == ["--worker"] else main())
