"""The devices of this machine: found by name, and refused with what there is."""

import pytest
import torch

from sememe.compute import devices
from sememe.compute.devices import check_vram, find_device
from sememe.errors import InputError


@pytest.mark.parametrize("name", ["cpu", "cpu:0", torch.device("cpu")])
def test_the_cpu_has_no_number(name: str | torch.device) -> None:
    assert find_device(name) == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "meta", "cpu:5", "quantum", ""])
def test_what_is_not_there_is_refused_with_what_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_find_accelerator", lambda: (None, 0))
    with pytest.raises(InputError, match="expected a device ") as told:
        find_device(name)
    assert str(told.value).endswith(f"got {name!r}; torch finds no accelerator here, only cpu")


@pytest.mark.parametrize("name", ["cuda:2", "mps", "cpu:1"])
def test_accelerators_are_listed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_find_accelerator", lambda: ("cuda", 2))
    with pytest.raises(InputError, match=f"got '{name}'; torch finds cpu, cuda:0, cuda:1$"):
        find_device(name)


def test_a_device_that_does_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_find_accelerator", lambda: ("cuda", 1))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("driver too old\nmore")

    monkeypatch.setattr("torch.empty", fail)
    with pytest.raises(InputError, match=r"but cuda does not \(driver too old\)$"):
        find_device("cuda")


def test_vram_is_compared_with_cuda_devices_only(monkeypatch: pytest.MonkeyPatch) -> None:
    check_vram(torch.device("cpu"), 1000)

    class Card:
        total_memory = 25_300_000_000

    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: Card())
    check_vram(torch.device("cuda"), 26)
    with pytest.raises(InputError, match=r"at most the 25.3 GB that cuda has, got 32"):
        check_vram(torch.device("cuda"), 32)
