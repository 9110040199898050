import shutil
from pathlib import Path

import pytest

from model_folders import save_model
from sememe.checkpoints import zoo
from sememe.checkpoints.zoo import describe_model, is_hub_id, list_models, qualify_name, resolve_model
from sememe.errors import ModelError
from video_as_prompt.pipeline_factories import make_pipeline


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_model(folder / "video-as-prompt" / "random")
    (folder / "video-as-prompt" / "unfinished").mkdir()
    return folder


@pytest.fixture(autouse=True)
def shelf_in_place(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "WEIGHTS_FOLDER", shelf)


def test_a_record_tells_what_the_files_say(shelf: Path) -> None:
    (record,) = list_models()
    assert (record.name, record.pipeline) == ("video-as-prompt/random", "VideoAsPromptPipeline")
    assert (record.width, record.height, record.num_frames) == (48, 32, 5)
    assert (record.license, record.source) == ("apache-2.0", "made by a test")
    assert record.description == "Random weights, for tests."
    pipe = make_pipeline()
    parts = [pipe.transformer, pipe.vae, pipe.text_encoder]
    # A text encoder's embedding is one tensor with two names, of which the file may hold one or both.
    assert record.num_parameters >= sum(p.numel() for part in parts for p in part.parameters())
    assert record.num_parameters < 1.1 * sum(p.numel() for part in parts for p in part.parameters())
    assert record.num_bytes == sum(path.stat().st_size for path in record.folder.rglob("*.safetensors"))


def test_names_and_folders_are_found(shelf: Path, tmp_path: Path) -> None:
    folder = shelf / "video-as-prompt" / "random"
    assert resolve_model("random") == resolve_model("video-as-prompt/random") == folder
    assert resolve_model("random", "video-as-prompt") == folder
    assert resolve_model("video-as-prompt/random/vae") == folder / "vae"
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"\(video-as-prompt/random\).*'randon' is neither; did you mean random\?"):
        resolve_model("randon")
    with pytest.raises(ModelError, match="random"):
        resolve_model("/nowhere/at/all")


def test_a_short_name_is_one_of_the_system_that_asks(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "WEIGHTS_FOLDER", tmp_path)
    for name in ("gen1/tiny", "video-as-prompt/tiny", "video-as-prompt/small"):
        shutil.copytree(shelf / "video-as-prompt" / "random", tmp_path / name)
    assert resolve_model("tiny", "gen1") == tmp_path / "gen1" / "tiny"
    assert resolve_model("gen1/tiny", "video-as-prompt") == tmp_path / "gen1" / "tiny"
    assert resolve_model("small") == tmp_path / "video-as-prompt" / "small"
    assert [qualify_name(name, "gen1") for name in ("tiny", "small", "runs/tiny")] == [
        "gen1/tiny",
        "small",
        "runs/tiny",
    ]
    with pytest.raises(ModelError, match="gen1/tiny, video-as-prompt/tiny"):
        resolve_model("tiny")
    with pytest.raises(ModelError, match="is neither"):
        resolve_model("small", "gen1")


def test_an_empty_shelf_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "WEIGHTS_FOLDER", tmp_path / "none")
    assert list_models() == []
    with pytest.raises(ModelError, match="there is none"):
        resolve_model("tiny")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", True),
        ("video-as-prompt/random", False),
        ("video-as-prompt/none", False),
        ("tiny", False),
        ("./here", False),
        ("a/b/c", False),
        ("/a/b", False),
        ("../a", False),
    ],
)
def test_names_of_the_hub(name: str, *, expected: bool) -> None:
    assert is_hub_id(name) is expected


def test_a_folder_may_look_like_a_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("owner/name")
    assert resolve_model("owner/name") == Path("owner/name")


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        describe_model(tmp_path)
    (tmp_path / "model_index.json").write_text("[1]")
    with pytest.raises(ModelError, match="JSON object"):
        describe_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8 + b"{}", (2).to_bytes(8, "little") + b"[]"])
def test_damaged_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "VideoAsPromptPipeline"}')
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="no safetensors file"):
        describe_model(tmp_path)


def test_a_card_without_front_matter_states_nothing(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "VideoAsPromptPipeline"}')
    (tmp_path / "README.md").write_text("# A model\n")
    assert describe_model(tmp_path).license == "not stated"
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(ModelError, match="front matter"):
        describe_model(tmp_path)


def test_a_system_without_built_in_models_says_how_to_get_one() -> None:
    with pytest.raises(ModelError, match="semanticgen comes with no built-in model yet, got 'tiny'; train one"):
        resolve_model("tiny", "semanticgen")
