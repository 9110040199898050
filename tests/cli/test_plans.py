"""`sememe plans`: each edit from files to a file."""

from pathlib import Path

import numpy as np
import pytest

from sememe.cli.app import run
from sememe.semanticgen.plan import Plan
from sememe.video import read_image


def save(path: Path, values: list[int]) -> Path:
    features = np.array(values, np.float32)[:, None, None, None] * np.ones((1, 2, 2, 4), np.float32)
    Plan(features, 0.5, "encoder", "compressor", tuple(map(str, values))).save(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["cut", "A", "--start", "0.5", "--stop", "1.5"], [1, 2]),
        (["splice", "A", "B"], [0, 1, 2, 7, 8, 9]),
        (["repeat", "A", "--count", "2"], [0, 1, 2, 0, 1, 2]),
        (["reverse", "A"], [2, 1, 0]),
        (["hold", "A", "--at", "0.6", "--seconds", "1"], [0, 1, 1, 1, 2]),
        (["blend", "A", "B", "--weight", "1"], [7, 8, 9]),
        (["replace-span", "B", "A", "--start", "0"], [0, 1, 2]),
    ],
)
def test_plans_are_edited(arguments: list[str], values: list[int], tmp_path: Path) -> None:
    files = {"A": str(save(tmp_path / "a.plan", [0, 1, 2])), "B": str(save(tmp_path / "b.plan", [7, 8, 9]))}
    output = tmp_path / "c.plan"
    assert run(["plans", *(files.get(each, each) for each in arguments), "-o", str(output)]) == 0
    assert Plan.load(output).features[:, 0, 0, 0].tolist() == values


def test_a_plan_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plans", "show", str(save(tmp_path / "a.plan", [0, 1, 0])), "-o", str(tmp_path / "a.png")]) == 0
    assert read_image(tmp_path / "a.png").ndim == 3
    assert capsys.readouterr().out.splitlines() == ["0", "1", f"{tmp_path / 'a.png'}: 3 slices of 0.5 s"]


def test_mistakes_take_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = str(save(tmp_path / "a.plan", [0]))
    assert run(["plans", "reverse", plan, "-o", str(tmp_path / "a.mp4")]) == 2
    assert capsys.readouterr().err.startswith("error: expected a name for the plan that ends in .plan")
    assert run(["plans", "cut", plan, "--start", "0", "--stop", "9", "-o", plan]) == 2
    assert "within the plan's 0.5 s" in capsys.readouterr().err
    assert run(["plans", "encode", "a.mp4", "-o", plan, "--set", "num_frames=9", "--set", "height=64"]) == 2
    assert "size.num_frames has no effect on the plan of a video" in capsys.readouterr().err
