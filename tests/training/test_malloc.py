import subprocess
import sys

import pytest

from sememe.training.malloc import keep_freed_memory

# Ten times 64 MB, allocated and freed: how often did the system have to hand out a fresh page?
COUNT_FAULTS = """
import resource, sys
if sys.argv[1] == "keep":
    from sememe.training.malloc import keep_freed_memory
    assert keep_freed_memory()
for _ in range(10):
    block = bytearray(64_000_000)
    block[::4096] = b"x" * len(block[::4096])
    del block
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt))
"""


def count_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept() -> None:
    assert count_faults("keep") < 0.5 * count_faults("return")


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory()
