"""Keeping freed memory for the next tensor, on Linux.

glibc maps every large block from the system and unmaps it when it is freed. Training on a CPU allocates and frees
hundreds of large tensors in each step, and the system has to clear every page again each time. How much that costs
depends on the machine and the network (`docs/log.md`). GPUs have allocators of their own,
and other systems other ones on the CPU.
"""

import ctypes
import sys

# Their numbers in malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory instead of returning it to the system; call it before the first tensor.

    The process then holds the most memory that it ever needed at once.

    Returns:
        Whether this system's allocator has the setting; without glibc nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # No block in a mapping of its own, and the heap's end never given back.
    return bool(set_option(_MMAP_MAX, 0)) and bool(set_option(_TRIM_THRESHOLD, _NEVER))
