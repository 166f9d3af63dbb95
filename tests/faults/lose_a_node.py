"""Refines on a cluster of two nodes and loses one of them while it is at an image: lose_a_node.py RUN MARKS SET…"""

import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from ribray.stages import refine
from tests.faults.cases import ANY, faulty, hung
from tests.tiny import chain


def lose(cluster: Cluster, mark: Path) -> None:
    """Wait for the mark of a node and remove that node, with no time for it to say anything."""
    while not (mark.exists() and (lost := mark.read_text())):
        time.sleep(0.05)
    (node,) = [node for node in cluster.worker_nodes if node.node_id == lost]
    cluster.remove_node(node, allow_graceful=False)
    print("nodes left:", len(cluster.worker_nodes))


def main(out: Path, marks: Path, settings: list[str]) -> None:
    """Refine what is left of a run."""
    memory = 100 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=memory)
    ray.init(address=cluster.address, log_to_driver=False)
    refine.RefineWorker = faulty(marks, {ANY: (hung, 1)})
    losing = threading.Thread(target=lose, args=(cluster, marks / f"{ANY}.0"), daemon=True)
    losing.start()
    _, text = chain(out, settings, stages="refine")
    losing.join()
    print(text)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
