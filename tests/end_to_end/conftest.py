from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    from model_folders import save_model  # not above: this file may be loaded before the shape checks are installed

    return save_model(tmp_path_factory.mktemp("models") / "random")
