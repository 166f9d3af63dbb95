"""What tests of benchmarks share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ribray.commands import bench


@pytest.fixture(scope="session")
def folder() -> Path:
    """The benchmarks of this checkout."""
    return bench.ROOT / bench.FOLDER


@pytest.fixture
def companion(folder, monkeypatch):
    """Import a module that benchmarks share, as they do."""
    monkeypatch.syspath_prepend(str(folder))
    return lambda name: __import__(name)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread of torch, as `ribray bench` gives a benchmark."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
