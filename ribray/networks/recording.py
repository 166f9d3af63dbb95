"""Work on a GPU that is queued at once: a function of tensors is recorded for their sizes, and played again.

A GPU is faster than Python can name its kernels: on an H100 an image of RIB is 0.2 s of computing, in 16,000 kernels
that took 0.75 s to queue (`benchmarks/README.md`). A CUDA graph is queued in one call.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_MOST = 64
"""Recordings that are kept, those played last: three of a size of images, of which a data set has many."""

Work = Callable[..., Sequence[Tensor]]


class Recorder:
    """Calls functions of tensors; on a GPU each is recorded the second time that it meets tensors of some sizes.

    A function may read and change other tensors that stay where they are in memory, such as weights, but must not
    depend on anything else that changes, nor wait for the GPU. On other devices it is just called.

    Each object with methods to record has a recorder of its own, which tells them by their functions alone.

    Args:
        device: that the tensors are on.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_on = device.type == "cuda"
        self._is_at_work = False
        self._stream = torch.cuda.Stream(device) if self.is_on else None
        self._met: set[Any] = set()
        self._recordings: dict[Any, _Recording] = {}
        self._pool: Any = None  # memory of what recordings compute in between: no two are played at once

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Queue what the ``with`` block computes apart from other work, as recording needs it."""
        self._is_at_work = True
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        try:
            with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                yield
        finally:
            self._is_at_work = False
            if self._stream is not None:
                torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def __call__(self, work: Work, *inputs: Tensor) -> list[Tensor]:
        """Return what a function returns; outside of `at_work` it is just called."""
        if not (self.is_on and self._is_at_work):
            return list(work(*inputs))
        key = (getattr(work, "__func__", work), *((each.shape, each.stride(), each.dtype) for each in inputs))
        if key not in self._met:  # what libraries set up on their first call cannot be recorded
            self._met.add(key)
            return list(work(*inputs))
        recording = self._recordings.pop(key, None)
        if recording is None:
            while len(self._recordings) >= _MOST:
                del self._recordings[next(iter(self._recordings))]
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            recording = _Recording(work, inputs, self._pool)
        self._recordings[key] = recording  # the last one again
        return recording.play(inputs)


class _Recording:
    """One function at one size."""

    def __init__(self, work: Work, inputs: Sequence[Tensor], pool: Any) -> None:
        self._inputs = [each.detach().clone() for each in inputs]
        self._graph = torch.cuda.CUDAGraph()
        # Threads that load images take memory from the GPU's driver meanwhile, which "global" would forbid them.
        self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            self._outputs = [each.detach() for each in work(*self._inputs)]
        finally:
            self._graph.capture_end()

    def play(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return copies of what the function gives: the next recording may compute where they were."""
        if inputs:
            torch._foreach_copy_(self._inputs, list(inputs))
        self._graph.replay()
        return list(torch._foreach_mul(self._outputs, 1)) if self._outputs else []
