import json
from pathlib import Path

import pytest

from sememe.errors import InputError, ModelError, OutputError
from sememe.video import read_clip, read_image
from sememe.workflows.demo import CONDITIONS, DemoRequest, run_demo
from sememe.world import conditions


def test_everything_is_there_and_the_reference_matters(tmp_path: Path, model_folder: Path) -> None:
    result = run_demo(DemoRequest(output_dir=tmp_path / "new" / "demo", model=str(model_folder)))
    assert [pair.condition for pair in result.pairs] == list(CONDITIONS)
    assert set(CONDITIONS) <= set(conditions())
    assert read_image(result.image).shape == (32, 48, 3)
    first, second = (read_clip(pair.result) for pair in result.pairs)
    assert first.frames.shape == (5, 32, 48, 3)
    assert first != second
    assert read_clip(result.pairs[0].reference) != read_clip(result.pairs[1].reference)
    assert read_image(result.sheet).shape[0] > 4 * 32
    for pair in result.pairs:
        document = json.loads(pair.result.with_suffix(".json").read_text())
        assert document["inputs"]["references"][0]["path"] == str(pair.reference)
        assert document["inputs"]["image"]["path"] == str(result.image)


def test_mistakes_are_told_before_anything_is_made(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(ModelError, match="'huge' is neither"):
        run_demo(DemoRequest(output_dir=tmp_path / "demo", model="huge"))
    with pytest.raises(InputError, match="expected a seed of 0 to"):
        run_demo(DemoRequest(output_dir=tmp_path / "demo", model=str(model_folder), seed=-1))
    assert not (tmp_path / "demo").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        run_demo(DemoRequest(output_dir=tmp_path / "file", model=str(model_folder)))
