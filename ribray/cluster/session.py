"""The one place that calls ``ray.init()``: a local cluster of this machine, a running one, or the job's own."""

import contextlib
import logging
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ribray import storage
from ribray.config import ClusterConfig
from ribray.errors import RibrayError, UsageError

OBJECT_STORE_BYTES = 256 * 2**20
"""Of a local cluster: images never pass through Ray's object store, so it stays small."""

PROBE_SECONDS = 60.0


@dataclass(frozen=True)
class Session:
    """A live connection to a Ray cluster."""

    cpus: float
    gpus: float
    memory_gb: float
    is_local: bool
    """Whether this process started the cluster on this machine."""

    def gpus_per_worker(self, config: ClusterConfig) -> float:
        """GPUs of one worker: as configured, or a whole one where the cluster has any."""
        if config.gpus_per_worker is not None:
            return config.gpus_per_worker
        return 1.0 if self.gpus >= 1 else 0.0

    def pool_size(self, config: ClusterConfig, gpu: bool = True) -> int:
        """Actors in a pool (see `ClusterConfig.workers`), whose work wants a GPU or not; at least one."""
        if config.workers is not None:
            return config.workers
        if gpu and (gpus := self.gpus_per_worker(config)):
            return max(1, int(self.gpus / gpus + 1e-9))
        by_cores = int(self.cpus / config.cpus_per_worker + 1e-9)
        return max(1, min(by_cores, int(self.memory_gb / config.memory_gb_per_worker)))

    def gpus_per_training_worker(self, config: ClusterConfig, workers: int) -> float:
        """GPUs of one of `workers` training workers: at most one, a share of one where there are fewer."""
        return min(1.0, self.gpus_per_worker(config), self.gpus / workers)

    def resolve_precision(self, precision: str, config: ClusterConfig) -> str:
        """Return what ``auto`` means on the workers of this cluster: bfloat16 where they have fast units for it."""
        if precision != "auto":
            return precision
        gpus = self.gpus_per_worker(config)
        if self.is_local and not gpus:
            fast = _fast_bfloat16(on_gpu=False)
        else:
            # Named, so that it does not wait for a place among what a sweep's trial has reserved, which is nothing.
            options = {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": "DEFAULT"}
            fast = ray.get(ray.remote(_fast_bfloat16).options(**options).remote(gpus > 0))
        return "bfloat16" if fast else "float32"


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def inside_job() -> bool:
    """Whether this process is the entrypoint of ``ray job submit``."""
    return "job_submission_id" in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")


@contextlib.contextmanager
def connect(config: ClusterConfig, training_workers: int = 1) -> Iterator[Session]:
    """Connect to Ray for the length of a ``with`` block.

    Without an address the cluster of the surrounding job is used, else one of this machine is started; it has as
    many CPUs as the machine, or as the configuration asks for. Where Ray is connected already (a test, a sweep's
    trial), that connection is used and left open.

    Raises:
        UsageError: the cluster at ``cluster.address`` cannot be reached.
    """
    if ray.is_initialized():
        yield _describe(is_local=False)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = config.address or os.environ.get("RAY_ADDRESS")
    local = address is None and not inside_job()
    options: dict[str, object] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if local:
        needed = max(config.workers or 1, training_workers) * config.cpus_per_worker
        options |= {
            "address": "local",
            "num_cpus": int(max(usable_cores(), needed) + 0.999),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    else:
        options["address"] = address or "auto"
    try:
        with _own_handler(signal.SIGTERM):
            ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"Cannot reach a Ray cluster at {address or 'this machine'}: {first_line}") from None
    try:
        yield _describe(local)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own_handler(number: signal.Signals) -> Iterator[None]:
    """Keep this process's own handler of a signal, which Ray would replace by one that ends the process at once."""
    handler = signal.getsignal(number)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def _describe(is_local: bool) -> Session:
    resources = ray.cluster_resources()
    memory_gb = resources.get("memory", psutil.virtual_memory().available) / 2**30
    return Session(resources.get("CPU", 0.0), resources.get("GPU", 0.0), memory_gb, is_local)


def require_shared(directory: Path) -> None:
    """Prove, where the cluster has several nodes, that each can read and write ``directory``.

    Raises:
        UsageError: names the nodes that see another directory, or none.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    token = f".probe-{uuid.uuid4().hex}"
    storage.write_text(directory / token, token)
    try:
        probes = {
            node["NodeID"]: _probe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(directory), token)
            for node in nodes
        }
        failed = [node["NodeManagerAddress"] for node in nodes if not _answers(probes[node["NodeID"]])]
    finally:
        (directory / token).unlink(missing_ok=True)
    if failed:
        raise UsageError(
            f"The run directory {directory} is not the same, readable and writable directory on node(s) "
            f"{', '.join(failed)}; put --out on storage that every node shares."
        )


def _answers(probe: "ray.ObjectRef[bool]") -> bool:
    try:
        return ray.get(probe, timeout=PROBE_SECONDS)
    except ray.exceptions.RayError:
        return False


@ray.remote(num_cpus=0)
def _probe(directory: str, token: str) -> bool:
    location = storage.path(directory)
    answer = location / f"{token}-{uuid.uuid4().hex}"
    try:
        if (location / token).read_text() != token:
            return False
        storage.write_text(answer, token)
        answer.unlink()
    except (OSError, RibrayError):
        return False
    return True


def _fast_bfloat16(on_gpu: bool) -> bool:
    """Whether this process's GPU, or CPU, multiplies bfloat16 matrices faster than float32 ones."""
    import torch

    if on_gpu:
        return torch.cuda.get_device_capability() >= (8, 0)
    return torch.cpu._is_amx_tile_supported()
