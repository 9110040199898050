"""What every test shares: shape checks on the package's public functions, and a modest number of threads."""

import os
import sys
from collections.abc import Iterator

# Before numpy and torch load: tests run beside other work, and results must not depend on the number of cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gc
import importlib

import hypothesis
import pytest

# A test judges results and no times, which depend on what else the machine does.
hypothesis.settings.register_profile("sememe", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("sememe")


def pytest_configure(config: pytest.Config) -> None:
    """Have every function of sememe check shapes and types; a process that only hands out tests needs no checks.

    The hook also compiles again what sememe imports, so large libraries are imported before it.
    """
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return
    from shape_checks import install  # not above: it loads torch, which that process does without

    os.fsync = lambda fd: None  # no test takes the power away, and waiting for the disk takes longer than the writing
    gc.disable()  # until all is imported: little is garbage before, and there is much to look at
    for name in ("peft", "diffusers.models.transformers", "diffusers.models.autoencoders", "diffusers.models.unets"):
        importlib.import_module(name)
    install()


def pytest_collection_finish() -> None:
    """Leave the libraries' objects out of garbage collections, each of which would look at all of them; have few."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def same_attention_backend() -> Iterator[None]:
    """Put back diffusers' attention backend, which is one for the process, after a test that chose another."""
    module = sys.modules.get("diffusers.models.attention_dispatch")
    before = None if module is None else module._AttentionBackendRegistry._active_backend
    yield
    if module is not None:
        module._AttentionBackendRegistry._active_backend = before
