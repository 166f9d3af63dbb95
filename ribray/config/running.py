"""How an experiment is carried out and tracked. No result depends on it."""

from typing import Annotated, Literal

from pydantic import Field

from ribray.config.section import Count, Integer, NotNegative, Positive, Section


class ClusterConfig(Section):
    """How the work is spread. No result depends on any of these keys."""

    workers: Annotated[Integer, Field(ge=0)] | None = None
    """Actors in a pool; default: GPUs over gpus_per_worker, without GPU as many as cores and memory allow; 0: no Ray,
    pools and trainings work in the command's own process."""
    gpus_per_worker: NotNegative | None = None
    """GPUs of one worker, fractions allowed; default: 1 where the cluster has GPUs, otherwise 0."""
    cpus_per_worker: Positive = 1.0
    """CPUs that Ray reserves for one worker."""
    threads_per_worker: Count = 1
    """Threads of one worker's arithmetic; maps are the same bytes only at one number of threads."""
    loader_threads: Count | None = None
    """Threads of one worker that decode the images to come; default: 2, with a GPU as many as its machine has cores, at
    most 6. Of a training on a GPU: processes, by default 2."""
    memory_gb_per_worker: Positive = 3.0
    """Memory that a CPU worker is taken to need, in GB, when `workers` is left to default."""
    checkpoint_steps: Count = 500
    """Steps of a training from one checkpoint to the next."""
    tries: Count = 3
    """How often an image may kill its worker before it is given up."""
    seconds_per_image: Positive | None = 3600.0
    """A worker that is longer at an image hangs: it is replaced, and a try counted; null: no limit."""
    address: str | None = None
    """A running Ray cluster (auto, HOST:PORT, ray://…); default: RAY_ADDRESS, else a cluster of this machine."""


class TrackingConfig(Section):
    """Experiment tracking beside the run's own plain files."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    """W&B: offline needs no key and no network."""
    project: str = "ribray"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; default: the account's own."""
    group: str | None = None
    """W&B group of this run."""
    tags: tuple[str, ...] = ()
    """W&B tags of this run."""
