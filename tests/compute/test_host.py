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
