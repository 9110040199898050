"""Live bytes, counted tensor by tensor."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sememe.compute.tracker import measure_peak, track_memory


def test_birth_and_death() -> None:
    with track_memory() as memory:
        first = torch.zeros(1000)
        second = first + 1
        assert (memory.live_bytes, memory.peak_bytes) == (8000, 8000)
        del first
        assert (memory.live_bytes, memory.peak_bytes) == (4000, 8000)
        memory.reset_peak()
        third = second * 2
        assert memory.peak_bytes == 8000
        del second, third
        assert memory.live_bytes == 0


def test_a_view_is_no_memory_and_keeps_its_source_alive() -> None:
    with track_memory() as memory:
        whole = torch.zeros(10, 100)
        part = whole.t()[3:4]
        del whole
        assert memory.live_bytes == 4000
        del part
        assert memory.live_bytes == 0


def test_what_was_there_before_counts_nothing() -> None:
    before = torch.zeros(1000)
    with track_memory() as memory:
        view = before.view(10, 100)
        before.add_(1)
        assert memory.peak_bytes == 0
        del view, before
        assert memory.live_bytes == 0


def test_the_peak_of_composed_operations() -> None:
    tensor = torch.zeros(1000)
    # Two factors and the sum are alive together.
    assert measure_peak(lambda: tensor * 2 + tensor * 3) == 3 * 4000
    layers = torch.nn.Sequential(torch.nn.Linear(10, 1000), torch.nn.GELU(), torch.nn.Linear(1000, 10))
    # Before the activation is done its input is alive too.
    assert measure_peak(lambda: layers(torch.ones(4, 10))) >= 2 * 4 * 1000 * 4


def test_nothing_need_be_computed() -> None:
    with FakeTensorMode():
        huge = torch.empty(10**6, 10**6)
        assert measure_peak(lambda: huge + 1) == 4 * 10**12
