"""The one place that calls ``ray.init()``: a local cluster of this machine, a running one, or the job's own.

Ray is imported where it is used, so that a command with ``cluster.workers: 0`` does without.
"""

import contextlib
import logging
import os
import signal
import textwrap
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ribray import storage, supervisor
from ribray.cluster import local, watch
from ribray.config import ClusterConfig
from ribray.errors import EXIT_USAGE, RibrayError, UsageError
from ribray.machine import best_precision, usable_cores

if TYPE_CHECKING:
    import ray

PROBE_SECONDS = 60.0  # how long a node may take to show that it shares the run directory
ANSWER_SECONDS = 10.0  # how long a cluster elsewhere may take to answer
START_SECONDS = 180.0  # how long Ray may take to start, or to connect to a cluster that answers
TOO_BUSY = "timed out during startup"  # what Ray says where its processes took more than half a minute to begin
LONGEST = 400  # characters of an error of Ray's that are shown


@dataclass(frozen=True)
class Session:
    """A live connection to a Ray cluster, or this machine where the work is done in this process."""

    cpus: float
    gpus: float
    memory_gb: float
    is_local: bool  # whether this process started the cluster on this machine
    in_process: bool = False  # whether there is no Ray, and this process does the work

    def gpus_per_worker(self, config: ClusterConfig) -> float:
        if config.gpus_per_worker is not None:
            return config.gpus_per_worker
        return 1.0 if self.gpus >= 1 else 0.0

    def pool_size(self, config: ClusterConfig, gpu: bool = True) -> int:
        """Actors in a pool (see `ClusterConfig.workers`), whose work wants a GPU or not; 0 in this process."""
        if self.in_process:
            return 0
        if config.workers is not None:
            return config.workers
        if gpu and (gpus := self.gpus_per_worker(config)):
            return max(1, int(self.gpus / gpus + 1e-9))
        by_cores = int(self.cpus / config.cpus_per_worker + 1e-9)
        return max(1, min(by_cores, int(self.memory_gb / config.memory_gb_per_worker)))

    def gpus_per_training_worker(self, config: ClusterConfig, workers: int) -> float:
        return min(1.0, self.gpus_per_worker(config), self.gpus / workers)

    def resolve_precision(self, precision: str, config: ClusterConfig) -> str:
        """Return what ``auto`` means on the workers of this cluster: bfloat16 where they have fast units for it."""
        if precision != "auto":
            return precision
        gpus = self.gpus_per_worker(config)
        if self.in_process or (self.is_local and not gpus):
            return best_precision(on_gpu=gpus > 0)
        import ray

        from ribray.cluster.pool import PoolPlan
        from ribray.cluster.warm import crew_of

        with crew_of(PoolPlan.of("precision", config, self), lambda: False) as crew:
            assert crew is not None
            return ray.get(crew.actor(0).answer.remote(best_precision, gpus > 0))


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    earlier = {name: os.environ[name]} if name in os.environ else {}
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        os.environ.update(earlier)


def in_thread(work: Callable[[], Any], name: str) -> Future[None]:
    """Do work in a thread, which ends with the process: in the main one, Ray Train and Tune take over Ctrl-C."""
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            work()
            outcome.set_result(None)
        except BaseException as error:  # noqa: BLE001  (raised again where the outcome is asked for)
            outcome.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return outcome


def inside_job() -> bool:
    """Whether this process is the entrypoint of ``ray job submit``."""
    return "job_submission_id" in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")


@contextlib.contextmanager
def connect(config: ClusterConfig, training_workers: int = 1, stop: threading.Event | None = None) -> Iterator[Session]:
    """Connect, for the length of a ``with`` block, to the cluster that is configured or that this job runs on.

    Else one of this machine is started. Where Ray is connected already (a sweep's trial), that connection is used and
    left open; with ``workers: 0`` there is none. If the cluster dies, this process ends (see `ribray.supervisor`).
    """
    if config.workers == 0:
        with _this_machine(config) as session:
            yield session
        return
    import ray

    from ribray.cluster import warm

    if ray.is_initialized():
        with warm.keeping():
            yield _describe(is_local=False)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address, source = address_of(config)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        needed = max(config.workers or 1, training_workers) * config.cpus_per_worker
        what = "Ray cannot be started on this machine"
        options |= local.options(cpus=int(max(usable_cores(), needed) + 0.999))
    else:
        what = f"{source}: there is no way to this Ray cluster"
        options["address"] = require_reachable(address, source)
    sentence = f"error: {what}: it takes longer than {START_SECONDS:g} s."
    limit = threading.Timer(START_SECONDS, supervisor.end, (sentence, EXIT_USAGE))
    limit.daemon = True
    limit.start()
    try:
        _init(options, what)
    finally:
        limit.cancel()
    with supervisor.connected(is_own=address is None), contextlib.ExitStack() as connection:
        connection.callback(ray.shutdown)
        cluster = watch.Cluster.connected(address)
        connection.callback(watch.require_alive, cluster)  # what has stopped would never be shut down
        connection.enter_context(watch.watched(cluster, stop or threading.Event()))
        connection.enter_context(warm.keeping())
        yield _describe(address is None)


@contextlib.contextmanager
def _this_machine(config: ClusterConfig) -> Iterator[Session]:
    gpus = 0
    if is_seen := config.gpus_per_worker != 0:
        import torch

        gpus = min(1, torch.cuda.device_count())
    cpus = max(usable_cores(), config.cpus_per_worker)  # which nobody reserves here
    with contextlib.nullcontext() if is_seen else environment("CUDA_VISIBLE_DEVICES", ""):
        yield Session(cpus, gpus, psutil.virtual_memory().available / 2**30, is_local=True, in_process=True)


def _init(options: dict[str, Any], what: str) -> None:
    """Start Ray, or connect to it; where the machine was too busy for that, a second time."""
    import ray

    for tries_left in (1, 0):
        handler = signal.getsignal(signal.SIGTERM)  # Ray replaces it by one that ends the process at once
        try:
            ray.init(**options)
            if callable(handler) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
            return
        except Exception as error:  # noqa: BLE001  (Ray raises almost anything)
            ray.shutdown()
            if not tries_left or TOO_BUSY not in str(error):
                cause = error.__cause__ or error
                reason = textwrap.shorten(str(cause) or type(cause).__name__, LONGEST, placeholder=" …")
                raise UsageError(f"{what}: {reason}") from None


def address_of(config: ClusterConfig) -> tuple[str | None, str]:
    address, source = config.address, f"cluster.address={config.address}"
    if not address:
        address = os.environ.get("RAY_ADDRESS")
        source = f"RAY_ADDRESS={address}"
    if not address and inside_job():
        address, source = "auto", "This job"
    return (None if not address or address == "local" else address), source


def require_reachable(address: str, source: str) -> str:
    """Return, for `ray.init`, the address of a cluster that answers; ``source`` is the setting that it is from."""
    from ray._private.services import canonicalize_bootstrap_address

    scheme, separator, rest = address.rpartition("://")
    no_address = UsageError(f"{source} is no address of a Ray cluster: it is HOST:PORT, such as 10.0.0.1:6379.")
    if separator and scheme != "ray":
        raise no_address
    way_out = "Start that cluster, correct the address, or leave it out: then Ray is started on this machine."
    try:
        host_and_port = rest.partition("/")[0] if separator else canonicalize_bootstrap_address(address)
    except ConnectionError:
        raise UsageError(f"{source}: no Ray cluster runs on this machine. {way_out}") from None
    except ValueError:
        raise no_address from None
    if not host_and_port.rpartition(":")[2].isdecimal():
        raise no_address
    if (fault := watch.fault_of(host_and_port, ANSWER_SECONDS)) is not None:
        raise UsageError(f"{source}: no Ray cluster answers at {host_and_port} ({fault}). {way_out}")
    if not separator and not watch.is_head(host_and_port, ANSWER_SECONDS):
        raise UsageError(
            f"{source}: what answers at {host_and_port} is not the head of a Ray cluster, whose port is 6379 unless it "
            "was told otherwise; an address for Ray's client begins with ray://."
        )
    if not separator and not any(process.name() == "raylet" for process in psutil.process_iter()):
        raise UsageError(
            f"{source}: this machine is no node of that cluster. Make it one by `ray start --address={address}`, or "
            "submit the command as a job."
        )
    return address if separator else host_and_port


def _describe(is_local: bool) -> Session:
    import ray

    resources = ray.cluster_resources()
    memory_gb = resources.get("memory", psutil.virtual_memory().available) / 2**30
    return Session(resources.get("CPU", 0.0), resources.get("GPU", 0.0), memory_gb, is_local)


def require_shared(directory: Path, session: Session) -> None:
    """Prove, where the session's cluster has several nodes, that each can read and write ``directory``."""
    if session.in_process:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    token = f".probe-{uuid.uuid4().hex}"
    storage.write_text(directory / token, token)
    try:
        probe = ray.remote(num_cpus=0)(_probe)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        answers = [probe.options(scheduling_strategy=place).remote(str(directory), token) for place in places]
        asked = zip(nodes, answers, strict=True)
        failed = [node["NodeManagerAddress"] for node, answer in asked if not _is_yes(answer)]
    finally:
        (directory / token).unlink(missing_ok=True)
    if failed:
        raise UsageError(
            f"The run directory {directory} is not the same, readable and writable directory on node(s) "
            f"{', '.join(failed)}; put --out on storage that every node shares."
        )


def _is_yes(answer: "ray.ObjectRef[bool]") -> bool:
    import ray

    try:
        return ray.get(answer, timeout=PROBE_SECONDS)
    except ray.exceptions.RayError:
        return False


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
