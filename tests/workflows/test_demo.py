import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sememe.errors import InputError, ModelError, OutputError
from sememe.files import hash_file
from sememe.video import read_clip, read_image, write_image
from sememe.video_as_prompt.demo import choose_conditions
from sememe.workflows.demo import DemoRequest, run_demo
from sememe.world.catalogue import FAMILIES, condition


def test_everything_is_there(tmp_path: Path, model_folder: Path) -> None:
    result = run_demo(DemoRequest(output_dir=tmp_path / "new" / "demo", model=str(model_folder), seed=1))
    assert tuple(pair.condition for pair in result.pairs) == choose_conditions(1)
    first, second = result.pairs
    assert not np.array_equal(read_image(first.image), read_image(second.image))
    assert read_clip(first.reference) != read_clip(second.reference)
    for pair in result.pairs:
        assert read_image(pair.image).shape == (32, 48, 3)
        assert read_clip(pair.result).frames.shape == (5, 32, 48, 3)
        document = json.loads(pair.result.with_suffix(".json").read_text())
        assert document["inputs"]["references"][0]["path"] == str(pair.reference)
        assert document["inputs"]["image"]["path"] == str(pair.image)
    assert read_image(result.sheet).shape[0] > 4 * 32


def test_your_own_picture_is_used_and_kept(tmp_path: Path, model_folder: Path) -> None:
    own = tmp_path / "own.png"
    write_image(np.full((32, 48, 3), 90, np.uint8), own)
    before = own.read_bytes()
    result = run_demo(DemoRequest(output_dir=tmp_path / "demo", model=str(model_folder), image=own))
    assert [pair.image.name for pair in result.pairs] == ["image.png", "own.png"]
    assert own.read_bytes() == before
    assert not (tmp_path / "demo" / "image_2.png").exists()


def test_files_of_a_person_are_not_overwritten(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = DemoRequest(output_dir=tmp_path, model=str(model_folder))
    monkeypatch.setattr(sys.modules["sememe.workflows.demo"], "load_model", lambda *_: pytest.fail("too late"))
    write_image(np.full((32, 48, 3), 90, np.uint8), tmp_path / "image.png")
    with pytest.raises(OutputError, match=r"but image\.png is another file"):
        run_demo(request)
    record = {"inputs": {"image": {"path": "x/image.png", "sha256": hash_file(tmp_path / "image.png")}}}
    (tmp_path / "result.json").write_text(json.dumps(record))
    (tmp_path / "sheet.png").touch()
    with pytest.raises(pytest.fail.Exception, match="too late"):  # a demonstration of before may be replaced
        run_demo(request)
    (tmp_path / ".hidden").touch()
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(OutputError, match=r"but other\.json is another file"):
        run_demo(request)
    (tmp_path / "other.json").unlink()
    (tmp_path / "image.png").write_bytes(b"changed")
    with pytest.raises(OutputError, match=r"but image\.png is another file"):
        run_demo(request)


def test_a_demonstration_that_fails_leaves_nothing(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["sememe.workflows.demo"], "generate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_demo(DemoRequest(output_dir=tmp_path / "demo", model=str(model_folder)))
    assert list((tmp_path / "demo").iterdir()) == []


def test_the_seed_decides_and_families_take_turns() -> None:
    assert choose_conditions(5) == choose_conditions(5)
    assert len({choose_conditions(seed) for seed in range(40)}) > 35
    for start in range(6):
        names = [name for seed in (start, start + 1) for name in choose_conditions(seed)]
        assert {condition(name).family for name in names} == set(FAMILIES)


def test_mistakes_are_told_before_anything_is_made(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(ModelError, match="'huge' is neither"):
        run_demo(DemoRequest(output_dir=tmp_path / "demo", model="huge"))
    with pytest.raises(InputError, match=r"demonstration \(video-as-prompt, semanticgen, gen1\), got 'dreams'"):
        run_demo(DemoRequest(output_dir=tmp_path / "demo", system="dreams"))
    with pytest.raises(InputError, match="expected a seed of 0 to"):
        run_demo(DemoRequest(output_dir=tmp_path / "demo", model=str(model_folder), seed=-1))
    assert not (tmp_path / "demo").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        run_demo(DemoRequest(output_dir=tmp_path / "file", model=str(model_folder)))
