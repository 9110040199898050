"""How much memory the machine itself has left, where offloaded weights wait."""

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
# Limits of a container, by the second and the first version of control groups: the limit, what is used, and where the
# files in memory are told, which make room.
_LIMITS = (
    ("memory.max", "memory.current", "file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_cache"),
)
_GROUPS = Path("/sys/fs/cgroup")


def read_free_memory() -> int | None:
    """Bytes that a program can still take without swapping; None where the system does not say."""
    free = _read_meminfo()
    if free is None:
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):  # Windows, macOS
            return None
    limits = (_read_limit(*names) for names in _LIMITS)
    return min([free, *(limit for limit in limits if limit is not None)])


def _read_meminfo() -> int | None:
    try:
        return 1024 * _find_number(_MEMINFO.read_text(), "MemAvailable:")
    except (OSError, LookupError, ValueError):
        return None


def _read_limit(limit: str, used: str, cached: str) -> int | None:
    try:
        most = int((_GROUPS / limit).read_text())
        reclaimable = _find_number((_GROUPS / used).with_name("memory.stat").read_text(), cached)
        return max(0, most - int((_GROUPS / used).read_text()) + reclaimable)
    except (OSError, LookupError, ValueError):  # no such group, or no limit ("max")
        return None


def _find_number(text: str, name: str) -> int:
    found = {words[0]: words[1] for words in map(str.split, text.splitlines()) if len(words) > 1}
    return int(found[name])
