"""A folder of a tiny random model, as the built-in ones are laid out."""

from pathlib import Path
from typing import Any

from pipelines.factories import make_pipeline

CARD = """---
license: apache-2.0
description: Random weights, for tests.
source: made by a test
---
# random
"""


def save_model(folder: Path, **settings: Any) -> Path:
    """Writes a model of 48x32 pixels and 5 frames, two steps, with guidance by the reference."""
    make_pipeline(**({"reference_guidance_scale": 2.0} | settings)).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder
