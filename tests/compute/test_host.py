"""Free memory of the machine."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sememe.compute import host


def test_a_container_may_have_less_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_GROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=512_000))
    assert host.read_free_memory() == 512_000, "no group"
    for name, text in (("max", "max"), ("current", "90000"), ("stat", "anon 50000\nfile 30000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert host.read_free_memory() == 512_000, "no limit"
    (tmp_path / "memory.max").write_text("100000\n")
    assert host.read_free_memory() == 40_000, "files in memory make room"


def test_swap_is_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that wait there would be read back from a disk in every step."""
    monkeypatch.setattr(host, "_GROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20_000, free=10_000, total=90_000))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=10**9, used=0, free=10**9))
    assert host.read_free_memory() == 20_000
    swap = {"swap.max": "1000000000", "swap.current": "0", "stat": "anon 90000\nfile 5000\n"}
    for name, text in ({"max": "100000", "current": "95000"} | swap).items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert host.read_free_memory() == 10_000
