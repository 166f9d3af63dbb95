"""What is recorded and what is played. Recordings need a GPU, where `python -m benchmarks gpu` compares them."""

import pytest
import torch
from torch import Tensor

from ribray.networks import recording
from ribray.networks.recording import Recorder


class Worker:
    """An object with a function to record."""

    def __init__(self) -> None:
        self.calls = 0

    def double(self, *inputs: Tensor) -> list[Tensor]:
        self.calls += 1
        return [2 * each for each in inputs]


class Played:
    """A recording that a CPU can make: it notes when it is made and played."""

    log: list[str] = []

    def __init__(self, work: recording.Work, inputs: list[Tensor], pool: object) -> None:
        self.log.append(f"recorded {tuple(inputs[0].shape)}")
        self._work = work

    def play(self, inputs: list[Tensor]) -> list[Tensor]:
        self.log.append(f"played {tuple(inputs[0].shape)}")
        return list(self._work(*inputs))


def test_on_a_cpu_a_function_is_just_called() -> None:
    recorder, worker = Recorder(torch.device("cpu")), Worker()
    with recorder.at_work():
        for _ in range(3):
            assert recorder(worker.double, torch.ones(2), torch.ones(1))[0].tolist() == [2, 2]
    assert worker.calls == 3


def test_each_size_is_recorded_the_second_time_and_the_last_played_ones_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recording, "_Recording", Played)
    monkeypatch.setattr(recording, "_MOST", 2)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(Played, "log", [])
    recorder, worker = Recorder(torch.device("cpu")), Worker()
    recorder.is_on = True

    def log(*sizes: int) -> list[str]:
        Played.log.clear()
        with recorder.at_work():
            for size in sizes:
                assert recorder(worker.double, torch.ones(size))[0].tolist() == [2] * size
        return list(Played.log)

    assert log(1, 2, 3) == []
    assert log(1, 1, 2) == ["recorded (1,)", "played (1,)", "played (1,)", "recorded (2,)", "played (2,)"]
    assert log(1, 3) == ["played (1,)", "recorded (3,)", "played (3,)"]
    assert log(1, 2) == ["played (1,)", "recorded (2,)", "played (2,)"]
    with recorder.at_work():
        recorder(worker.double, torch.ones(1, dtype=torch.int64))
    recorder(worker.double, torch.ones(1))
    assert Played.log[-1] == "played (2,)", "another type was not met before, and nothing is played outside"
