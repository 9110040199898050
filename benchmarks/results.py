"""Where and with what something was measured, and the files that say so."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sememe.files import write_text
from sememe.workflows.sidecar import describe_software

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def describe_run(device: str = "cpu") -> dict[str, Any]:
    """Machine, commit, versions and date."""
    changes = _ask_git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks/*.py")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _ask_git("rev-parse", "HEAD"),
        # A commit says what was measured only if nothing else was.
        "uncommitted_changes": None if changes is None else bool(changes),
        "versions": describe_software(),
        "machine": _describe_cpu() | (_describe_gpu() if device.startswith("cuda") else {}),
    }


def write_result(path: Path, record: dict[str, Any]) -> None:
    """Writes a result as JSON; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1) + "\n")


def _describe_cpu() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "num_cpus": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        # Above the threads in use, other programs took part of the machine and the times say little.
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def _describe_gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _ask_git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
