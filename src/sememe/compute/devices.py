"""The devices of this machine."""

import os
import shutil

import torch

from sememe.compute.strategy import GIGABYTE
from sememe.errors import InputError, tell_reason

# A card reports a few per cent less than its nominal size where part of its memory is for error correction.
_VRAM_TOLERANCE = 1.05


def find_device(name: torch.device | str) -> torch.device:
    """Return the device of that name, "cpu:0" as "cpu".

    Raises:
        InputError: This machine has no such device, or it does not compute; the message names those that it has.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(_refuse(name)) from error
    if device.type == "cpu" and not device.index:
        return torch.device("cpu")
    if device.type == "meta":
        raise InputError(_refuse(name, "device that computes"))
    kind, count = _find_accelerator()
    if device.type != kind or (device.index or 0) >= count:
        raise InputError(_refuse(name))
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"expected a device that computes, but {device} does not ({tell_reason(error)})") from error
    return device


def choose_device(name: torch.device | str | None) -> torch.device:
    """Return the device of that name; for "auto" or None CUDA where it is there, the CPU otherwise.

    Raises:
        InputError: This machine has no device of that name.
    """
    return find_device(("cuda" if torch.cuda.is_available() else "cpu") if name in ("auto", None) else name)


def is_fast_in_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 faster than float32.

    A CPU needs instructions for it. Without them bfloat16 is emulated: an AMD EPYC with AVX2 alone did 0.5 GFLOP/s per
    core, and 42 in float32 (measured on 2026-11-25); one with AVX-512 and bf16 did 205 and 90.
    """
    if device.type == "cpu":
        # torch before 2.12 does not list what the CPU can do.
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(has and name.endswith("bf16") for name, has in capabilities.items())
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def can_compile(device: torch.device) -> bool:
    """Return whether torch can compile for a device: on a CPU it needs a C++ compiler."""
    return device.type != "cpu" or any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")))


def check_vram(device: torch.device, vram: float) -> None:
    """Raise `InputError` for more GB than a CUDA device has, and 5 %; what other devices have is not known."""
    if device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(device).total_memory
    if vram * GIGABYTE > _VRAM_TOLERANCE * total:
        has = int(total / GIGABYTE * 10) / 10
        raise InputError(f"expected a vram of at most the {has:g} GB that {device} has, got {vram:g}")


def read_free_vram(device: torch.device) -> float:
    """Return the GB of a CUDA device that can be used: 93 % of what is free, because driver and allocator take some."""
    free, _ = torch.cuda.mem_get_info(device)
    return free / 2**30


def _find_accelerator() -> tuple[str | None, int]:
    """Return kind and number of the accelerators that torch finds."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return (None, 0) if found is None else (found.type, torch.accelerator.device_count())


def _refuse(name: torch.device | str, what: str = "device of this machine") -> str:
    kind, count = _find_accelerator()
    numbered = [f"{kind}:{index}" for index in range(count)]
    found = f"cpu, {', '.join(numbered)}" if numbered else "no accelerator here, only cpu"
    return f"expected a {what}, got {str(name)!r}; torch finds {found}"
