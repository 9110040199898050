"""Conversion between the layout of the released models and ours: exact, whole or not there at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from model_folders import make_stock, save_model, save_published
from sememe.errors import InputError, ModelError, OutputError
from sememe.events import Progress
from sememe.video_as_prompt.convert import ConversionRequest, ConversionResult, convert_model
from sememe.video_as_prompt.model_folders import load_components
from video_as_prompt.wan_factories import make_transformer


def convert(source: Path, output: Path, **settings: Any) -> ConversionResult:
    return convert_model(ConversionRequest(source=source, output=output, **settings))


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor below a folder, by the folder that it is in and its name."""
    tensors = {}
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                tensors[f"{path.parent.name}/{key}"] = file.get_tensor(key)
    return tensors


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]) for key in first
    )


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_there_and_back_nothing_changes(tmp_path: Path, family: str) -> None:
    source = save_published(tmp_path / "source", family)
    (source / "LICENSE.txt").write_text("terms")
    (source / "vae" / "notes.bin").write_bytes(b"left behind")
    seen: list[Progress] = []
    split = convert_model(ConversionRequest(source, tmp_path / "own"), seen.append)
    assert {path.name for path in (tmp_path / "own").iterdir()} > {"expert", "transformer", "vae", "LICENSE.txt"}
    assert not list((tmp_path / "own").rglob("*.bin"))
    assert not any("expert" in key for key in read_tensors(tmp_path / "own" / "transformer"))
    assert seen[-1].step == seen[-1].num_steps

    merged = convert(tmp_path / "own", tmp_path / "back", layout="published", max_shard_size="20KB")
    assert len(list((tmp_path / "back" / "transformer").glob("*.safetensors"))) > 2
    assert equal(read_tensors(source), read_tensors(tmp_path / "back"))
    for name in ("model_index.json", "transformer/config.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (source, tmp_path / "back"))
        before.pop("_diffusers_version", None)
        assert {key: after[key] for key in before} == before
    assert split.family == merged.family == family
    assert split.num_parameters == merged.num_parameters
    assert 0 < split.num_expert_parameters < split.num_parameters
    assert split.num_bytes == sum(path.stat().st_size for path in (tmp_path / "own").rglob("*") if path.is_file())
    assert json.loads(json.dumps(split.to_document()))["expert_blocks"] == list(merged.expert_blocks)


def test_what_was_split_loads_as_what_was_published(tmp_path: Path) -> None:
    source = save_published(tmp_path / "source")
    convert(source, tmp_path / "own")
    first, second = (
        load_components(folder, None, {}, "VideoAsPromptPipeline") for folder in (source, tmp_path / "own")
    )
    assert first["generation_defaults"] == second["generation_defaults"]
    for name in ("transformer", "vae", "text_encoder", "image_encoder"):
        assert equal(first[name].state_dict(), second[name].state_dict())
    assert type(first["image_processor"]) is type(second["image_processor"])


def test_settings_of_our_own_travel_through_a_published_folder(tmp_path: Path) -> None:
    save_model(tmp_path / "own", attention_mode="joint")
    make_transformer(attention_mode="joint", reference_timestep=1.0).save_expert(tmp_path / "own" / "expert")
    convert(tmp_path / "own", tmp_path / "merged", layout="published")
    parts = load_components(tmp_path / "merged", None, {}, "VideoAsPromptPipeline")
    assert (parts["generation_defaults"]["height"], parts["generation_defaults"]["num_frames"]) == (32, 5)


def test_a_stock_model_and_an_expert_become_one(tmp_path: Path) -> None:
    save_model(tmp_path / "own", attention_mode="joint")
    make_transformer(attention_mode="joint", reference_timestep=1.0).save_expert(tmp_path / "expert")
    stock = make_stock(Path(shutil.copytree(tmp_path / "own", tmp_path / "stock")), "WanImageToVideoPipeline")
    with pytest.raises(ModelError, match=r"is a stock model without an expert; say .* \(--expert FOLDER\)"):
        convert(stock, tmp_path / "a")
    for layout in ("own", "published"):
        convert(stock, tmp_path / layout / "out", layout=layout, expert=tmp_path / "expert")
        parts = load_components(tmp_path / layout / "out", None, {}, "VideoAsPromptPipeline")
        assert parts["transformer"].config.reference_timestep == 1.0


def test_what_cannot_be_converted_is_told(tmp_path: Path) -> None:
    source = save_published(tmp_path / "source")
    save_model(tmp_path / "own")
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (source, {"layout": "published"}, "has the layout 'published' already; ask for 'own'"),
        (tmp_path / "own", {}, "has the layout 'own' already"),
        (tmp_path / "own", {"layout": "published"}, r"attention_mode = joint, .* got cached"),
        (source, {"expert": tmp_path / "own"}, "has an expert merged in; leave the expert"),
        (tmp_path / "absent", {}, "is neither"),
        (source, {"revision": "v1"}, "expected a repository of the hub"),
    ]
    for folder, settings, message in cases:
        with pytest.raises(ModelError, match=message):
            convert(folder, tmp_path / "out", **settings)
    for settings, message in (({"layout": "other"}, "got 'other'"), ({"max_shard_size": "5 boxes"}, "such as 5GB")):
        with pytest.raises(InputError, match=message):
            convert(source, tmp_path / "out", **settings)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "own"}


def test_an_output_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    source = save_published(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OutputError, match=r"does not exist yet, got .*out; choose another"):
        convert(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_published(tmp_path / "source")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=r"it takes .* GB, and the disk has .* GB left; free some space"):
        convert(source, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_conversion_that_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    source = save_published(tmp_path / "source")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises((OutputError, KeyboardInterrupt)) as caught:
        convert(source, tmp_path / "out")
    if isinstance(error, OSError):
        assert "the disk is full; free some space" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_half_a_download_is_told_before_anything_is_written(tmp_path: Path) -> None:
    source = save_published(tmp_path / "source")
    for name in ("text_encoder", "transformer"):
        path = next((source / name).glob("*.safetensors"))
        content = path.read_bytes()
        path.write_bytes(content[:-8])
        with pytest.raises(ModelError, match="is cut short"):
            convert(source, tmp_path / "out")
        path.write_bytes(content)
    (source / "vae" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"missing: vae/config\.json"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
