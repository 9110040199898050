"""Memory of the machine itself, where offloaded weights wait."""

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
