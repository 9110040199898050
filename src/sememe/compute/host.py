"""Memory of this machine: what is left of it, and the most that this process has held."""

import sys
from pathlib import Path

import psutil

_GROUP = Path("/sys/fs/cgroup")


def read_free_memory() -> int:
    """Return the bytes that a program can still take without swapping."""
    free = psutil.virtual_memory().available
    # psutil sees the whole machine. A container may have less, which only its control group says.
    try:
        limit, used = (int((_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        return min(free, max(0, limit - used + int(stat["file"])))  # files in memory make room
    except (OSError, ValueError, KeyError):  # no such group, or no limit ("max")
        return free


def peak_memory(device: str) -> dict[str, int | None]:
    """Return the most bytes that this process has held (`process_bytes`) and that its tensors took on its GPU
    (`device_bytes`); None where that is not known."""
    import torch

    on_device = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None
    try:
        import resource
    except ImportError:  # Windows
        return {"process_bytes": None, "device_bytes": on_device}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"process_bytes": peak if sys.platform == "darwin" else 1024 * peak, "device_bytes": on_device}
