"""What a report of a problem should say of the machine and the software."""

import platform
from importlib.util import find_spec
from typing import Any

from sememe.compute.host import read_free_memory
from sememe.compute.strategy import GIGABYTE
from sememe.workflows.sidecar import describe_software

_EXTRAS = ("torchao", "bitsandbytes", "kernels", "triton", "xformers", "flash_attn", "sageattention")


def describe_environment() -> dict[str, Any]:
    """Return versions, operating system, memory, accelerators and optional packages, as plain values."""
    import psutil
    import torch

    from sememe.compute.devices import is_fast_in_bfloat16

    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append({"name": properties.name, "memory_gb": round(properties.total_memory / GIGABYTE, 1)})
    return {
        "versions": describe_software(),
        "system": platform.platform(),
        "cpus": psutil.cpu_count(),
        "cpu_is_fast_in_bfloat16": is_fast_in_bfloat16(torch.device("cpu")),
        "memory_gb": round(psutil.virtual_memory().total / GIGABYTE, 1),
        "free_memory_gb": round(read_free_memory() / GIGABYTE, 1),
        "cuda": torch.version.cuda,
        "devices": devices,
        "mps": torch.backends.mps.is_available(),
        "optional_packages": [name for name in _EXTRAS if find_spec(name) is not None],
    }
