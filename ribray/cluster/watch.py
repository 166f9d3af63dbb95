"""Whether the cluster that this process is connected to still lives.

What waits for a cluster that is gone waits for ever, so a thread of its own looks after it and, once it is lost, ends
the process (see `ribray.supervisor`). Ray's own judgement comes too late: a node that has stopped counts as alive for
more than a minute, and one that was killed for a quarter of one.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from ribray import supervisor
from ribray.errors import EXIT_STOPPED

LOOK_SECONDS = 1.0  # from one look at the processes of a cluster of this machine to the next
PING_SECONDS = 5.0  # from one ping to the next
ANSWER_SECONDS = 3.0  # how long an answer to a ping may take
SILENT_PINGS = 10  # so many in a row without an answer, and the cluster is lost
SILENT_PINGS_WHEN_STOPPING = 2  # once the user asked to stop: in so short a time nothing of worth can be finished
PROCESSES = ("raylet", "gcs_server")  # of the head of a cluster; without one of them it has ended
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
"""What a connection by gRPC begins with, and an empty frame of settings."""
ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # what only a head can be asked
SETTINGS = 4  # the type of frame that a server answers with


def fault_of(address: str, seconds: float) -> str | None:
    """Say why nobody answers by gRPC at HOST:PORT (no token or protocol is needed for that), in a clause, or None."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return None
            connection.sendall(HELLO)
            answer = connection.recv(64)
    except TimeoutError:
        return f"it does not answer within {seconds:g} s"
    except socket.gaierror:
        return f"there is no host of the name '{host}'"
    except ConnectionRefusedError:
        return "nothing listens there"
    except (OSError, OverflowError) as error:  # OverflowError: there is no such port
        return getattr(error, "strerror", None) or str(error)
    if not answer:
        return "it closes the connection"
    return None if answer[3:4] == bytes([SETTINGS]) else "what answers there is not Ray"


def is_head(address: str, seconds: float) -> bool:
    """Whether the head of a Ray cluster, of any version, answers at HOST:PORT, and no client's port or web server."""
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(ALIVE)(b"", timeout=seconds)
        except grpc.RpcError as error:
            return error.code() is not grpc.StatusCode.UNIMPLEMENTED
    return True


@dataclass(frozen=True)
class Cluster:
    addresses: Sequence[str]  # HOST:PORT of this process's node and of the cluster's head
    processes: Mapping[str, psutil.Process] = field(default_factory=dict)  # by name, where this process started it

    @classmethod
    def connected(cls, address: str | None) -> "Cluster":
        """Return the cluster that this process is connected to: at an address, or its own (None)."""
        if address is not None and address.startswith("ray://"):
            return cls([address.removeprefix("ray://").partition("/")[0]])
        import ray

        context = ray.get_runtime_context()
        here = [node for node in ray.nodes() if node["NodeID"] == context.get_node_id()]
        addresses = [f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}" for node in here]
        children = psutil.Process().children() if address is None else []
        processes = {child.name(): child for child in children}
        own = {name: processes[name] for name in PROCESSES if name in processes}
        return cls([*addresses, context.gcs_address], own)

    def end(self) -> str | None:
        for name, process in self.processes.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    continue
            return f"its process {name} has ended"
        return None

    def silence(self) -> str | None:
        for address in self.addresses:
            if (fault := fault_of(address, ANSWER_SECONDS)) is not None:
                return f"at {address} {fault}"
        return None

    def kill(self) -> None:
        """End what this process has started of it: below a node that has stopped, nobody notices."""
        for process in self.processes.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                for each in (*process.children(recursive=True), process):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()


@contextlib.contextmanager
def watched(cluster: Cluster, stop: threading.Event) -> Iterator[None]:
    """Look after the cluster for the length of a ``with`` block, and end this process if it is lost."""
    end = threading.Event()
    threading.Thread(target=_watch, args=(cluster, stop, end), name="cluster-watch", daemon=True).start()
    try:
        yield
    except Exception:
        if cluster.processes:
            time.sleep(LOOK_SECONDS)  # they take a moment to end
        require_alive(cluster)  # otherwise what was raised is but a sign of it
        raise
    finally:
        end.set()


def require_alive(cluster: Cluster) -> None:
    if (fault := cluster.end() or cluster.silence()) is not None:
        cluster.kill()
        supervisor.lose(fault)


def _watch(cluster: Cluster, stop: threading.Event, end: threading.Event) -> None:
    silent, pinged = 0, time.monotonic()
    while not end.wait(LOOK_SECONDS):
        fault, limit = cluster.end(), 1
        if fault is None:
            if time.monotonic() - pinged < PING_SECONDS and not stop.is_set():
                continue
            pinged = time.monotonic()
            fault, limit = cluster.silence(), SILENT_PINGS_WHEN_STOPPING if stop.is_set() else SILENT_PINGS
        silent = 0 if fault is None else silent + 1
        if fault is None or silent < limit or end.is_set():
            continue
        cluster.kill()
        if stop.is_set():
            supervisor.end(supervisor.STOPPED, EXIT_STOPPED)
        supervisor.lose(fault)
