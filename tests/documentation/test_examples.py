"""The scripts in `examples/` run as they are, with few steps."""

import inspect
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
FEW: dict[str, Any] = {"num_inference_steps": 1, "num_cases": 1}
WRITTEN = {
    "evaluate_a_model": ["examples.png", "report.json"],
    "follow_a_reference": ["result.mp4", "result.png"],
    "one_reference_many_pictures": ["many.png"],
    "read_and_write_clips": ["square.gif", "square.mp4", "square.png"],
    "render_the_world": ["clip.mp4", "conditions.png", "depth.mp4"],
    "swap_the_scheduler": ["unipc.mp4"],
    "train_a_recipe": ["smoke-autoencoder"],
}


def test_every_script_is_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == WRITTEN.keys()


@pytest.mark.parametrize("name", WRITTEN)
def test_a_script_writes_what_it_shows(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(FOLDER / f"{name}.py"))
    main: Callable[..., None] = script["main"]
    main(tmp_path, **{key: value for key, value in FEW.items() if key in inspect.signature(main).parameters})
    assert [path.name for path in sorted(tmp_path.iterdir())] == WRITTEN[name]
    assert script["__doc__"]
    capsys.readouterr()
