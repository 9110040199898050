"""The public names, and what importing them may do."""

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import sememe


def module_names() -> list[str]:
    # ComfyUI's nodes import what only a running ComfyUI has.
    found = pkgutil.walk_packages(sememe.__path__, "sememe.", onerror=lambda name: None)
    return [name for _, name, _ in found if not name.startswith("sememe.comfyui")]


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_are_sorted_and_importable() -> None:
    assert sememe.__all__ == sorted(sememe.__all__)
    for name in sememe.__all__:
        value = getattr(sememe, name)
        assert not isinstance(value, ModuleType)
        assert name in dir(sememe)
        if name != "__version__":
            assert value.__module__.startswith("sememe.")


def test_names_in_all_are_those_with_a_home() -> None:
    assert set(sememe.__all__) == {*sememe._HOMES, "__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sememe.nothing


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert sememe.__version__ == version("sememe")


def test_every_module_imports_and_exports_what_it_says() -> None:
    for name in module_names():
        module = importlib.import_module(name)
        exported = getattr(module, "__all__", [])
        # Constants, classes, functions, each by name: the order that ruff keeps as well.
        order = sorted(exported, key=lambda item: (not item.isupper(), not item[0].isupper(), item))
        assert list(exported) == order, name
        assert all(hasattr(module, item) for item in exported), name


def test_imports_leave_the_process_alone() -> None:
    """Importing the lower layers sets no environment variable, starts no thread and opens no file for writing."""
    code = """
import os, sys, threading
sys.dont_write_bytecode = True
opened = []
def audit(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        opened.append(arguments[0])
import av, cv2, numpy, PIL.Image, jaxtyping  # what others do on import is not ours to answer for
before, threads = dict(os.environ), threading.active_count()
sys.addaudithook(audit)
import sememe.errors, sememe.files, sememe.video
assert dict(os.environ) == before, set(os.environ) ^ set(before)
assert threading.active_count() == threads
assert not opened, opened
"""
    run(code)
