from pathlib import Path

import pytest

from model_folders import save_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    return save_model(tmp_path_factory.mktemp("models") / "random")
