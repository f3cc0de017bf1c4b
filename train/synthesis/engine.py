"""The stages on Ray Data: models as pools of workers, all else as tasks, on this machine or a cluster."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from text2layer_core.checkpoint import one_line
from train.synthesis.config import LEAST_CPUS
from train.synthesis.inputs import InputShard, plan
from train.synthesis.rows import Sample, Table, from_table, to_table
from train.synthesis.stages import FillHole, FindMask, cut, decode, encode

if TYPE_CHECKING:
    from train.synthesis.config import EngineConfig, PoolConfig, SynthesisConfig

_ROOT = Path(__file__).resolve().parents[2]
_REACHED_WITHIN = 10  # seconds for a cluster's machine to answer; Ray itself tries for minutes
_WAITING = 4  # batches at a worker, so that it never waits for its next one
_STAGES = 3  # on CPUs beside the planning: decode, cut, encode
_APPENDIX = " Failed to apply UDF transform"  # what Ray Data adds to a worker's message
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_DEDUP_LOGS": "0",
          "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}


@dataclass
class Clock:
    """When models and samples were at work, for benchmarks.

    Attributes:
        began: when the first model began, seconds of the clock.
        ended: when the last sample was finished.
    """

    began: float = 0.0
    ended: float = 0.0

    def note(self, sample: Sample) -> None:
        """Takes a finished sample into account."""
        self.ended = time.time()
        if sample.began:
            self.began = min(self.began or sample.began, sample.began)


@contextmanager
def started(config: EngineConfig) -> Generator[None]:
    """Ray for the time of a run: on this machine, or a cluster's; one that is there already stays.

    Raises:
        ValueError: the cluster cannot be reached, or the workers ask for more than there is.
    """
    os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    if config.address is not None:
        _check_reachable(config.address)
        packages = [str(_ROOT / name) for name in ("train", "text2layer_core")]
        options = {"log_to_driver": False, "logging_level": logging.ERROR, "address": config.address,
                   "runtime_env": {"py_modules": packages, "excludes": ["node_modules", "__pycache__"]}}
    else:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        options |= {"num_cpus": config.num_cpus or max(LEAST_CPUS, os.cpu_count() or 0),
                    "object_store_memory": config.object_store_mb << 20}
    try:
        with _silent():
            ray.init(**options)
    except Exception as error:  # a start that takes too long is a bare one of Ray's
        raise ValueError(f"engine: Ray must start, got {one_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises ValueError where nothing listens at "host:port"; Ray looks for what else there is, as "auto", itself."""
    place = urlsplit(f"//{address}")
    if place.hostname is None or place.port is None:
        return
    try:
        socket.create_connection((place.hostname, place.port), timeout=_REACHED_WITHIN).close()
    except OSError as error:
        raise ValueError(f"engine: address must be that of a Ray cluster, got {address}: {one_line(error)}") from error


@contextmanager
def _silent() -> Generator[None]:
    """Without what Ray's C++ writes to stderr past Python, such as the log level that it was told to have."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def samples(config: SynthesisConfig, shards: Sequence[InputShard]) -> Iterator[Sample]:
    """Finished samples of some shards as they come, in whatever order.

    Args:
        config: of the run.
        shards: those that are not done; Ray must be started.

    Raises:
        RuntimeError: a worker failed; the message is that of its error.
    """
    from ray.exceptions import RayError

    _hush()
    _check_resources(config.engine)
    dataset = _dataset(config, shards)
    try:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            yield from from_table(table)
    except RayError as error:
        raise RuntimeError(_root_cause(error)) from error


def _dataset(config: SynthesisConfig, shards: Sequence[InputShard]) -> Any:  # noqa: ANN401 - ray.data.Dataset
    import ray

    pools = config.engine
    rows = min(pools.saliency.batch_size, pools.inpainting.batch_size)
    options: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None, "zero_copy_batch": True,
                               "num_cpus": _share(pools), "fn_kwargs": {"config": config}}
    texts = [{"shard": shard.to_json()} for shard in shards]
    dataset: Any = ray.data.from_items(texts, override_num_blocks=len(texts))
    dataset = dataset.map_batches(_planned, **options | {"num_cpus": 1}).repartition(target_num_rows_per_block=rows)
    dataset = dataset.map_batches(decode, **options)
    dataset = _pool(dataset, FindMask, config, pools.saliency)
    dataset = dataset.map_batches(cut, **options)
    dataset = _pool(dataset, FillHole, config, pools.inpainting)
    return dataset.map_batches(encode, **options)


def _share(config: EngineConfig) -> float:
    """CPUs of a task, so that each stage has room for one beside the planning, which holds a whole CPU.

    Ray Data reserves for the first stages first: where CPUs do not suffice for all, the last ones would wait until the
    first are through, and the run would take twice its time.
    """
    free = _there("CPU") - _held(config, "CPU") - 1
    return min(1.0, math.floor(free / _STAGES * 100) / 100)


def _held(config: EngineConfig, name: str) -> float:
    """What the models' workers hold."""
    return sum(pool.workers * {"CPU": pool.num_cpus, "GPU": pool.num_gpus}[name]
               for pool in (config.saliency, config.inpainting))


def _there(name: str) -> float:
    import ray

    return ray.cluster_resources().get(name, 0)


def _planned(table: Table, config: SynthesisConfig) -> Table:
    shards = [InputShard.from_json(text.as_py()) for text in table.column("shard")]
    return to_table([sample for shard in shards for sample in plan(shard, config.input)])


def _pool(
    dataset: Any, stage: type[FindMask | FillHole], config: SynthesisConfig, pool: PoolConfig,  # noqa: ANN401
) -> Any:  # noqa: ANN401 - ray.data.Dataset
    from ray.data import ActorPoolStrategy

    return dataset.map_batches(
        _Worker, fn_constructor_kwargs={"stage": stage, "config": config}, batch_size=pool.batch_size,
        batch_format="pyarrow", num_gpus=pool.num_gpus, num_cpus=pool.num_cpus,
        compute=ActorPoolStrategy(size=pool.workers, max_tasks_in_flight_per_actor=_WAITING))


class _Worker:
    """A model's worker; what fails while it loads is raised at the first call, where Ray hands it on as it is."""

    def __init__(self, stage: type[FindMask | FillHole], config: SynthesisConfig) -> None:
        self._stage, self._error = None, ""
        try:
            self._stage = stage(config)
        except Exception as error:  # whatever it is: out of a constructor, Ray would tell that its worker died, no more
            self._error = one_line(error) or type(error).__name__

    def __call__(self, table: Table) -> Table:
        if self._stage is None:
            raise ValueError(self._error)
        return self._stage(table)


def _check_resources(config: EngineConfig) -> None:
    """Ray would wait for ever for what there is not."""
    for name, others in (("CPU", LEAST_CPUS), ("GPU", 0)):
        if (wanted := _held(config, name) + others) > _there(name):
            extra = f", {others} of them for planning and decoding," if others else ""
            raise ValueError(f"engine: workers ask for {wanted:g} {name}s{extra} there must be as many, "
                             f"got {_there(name):g}")


def _hush() -> None:
    """Progress is ours to show; warnings of the engine's own go to its log files."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.execution_options.preserve_order = False
    context.execution_options.verbose_progress = False
    context.raise_original_map_exception = True
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _root_cause(error: BaseException) -> str:
    """The message of the error that a worker raised."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None and cause is not error:
        error = cause
    return one_line(error).partition(_APPENDIX)[0]
