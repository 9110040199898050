"""Models on disk: a round trip through a fresh process, and folders that are not what they should be."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from model_folders import make_stock, save_published
from sememe.checkpoints.components import load_component
from sememe.checkpoints.zoo import find_folder, resolve_model
from sememe.compute.storage import find_storage
from sememe.errors import InputError, ModelError
from sememe.video_as_prompt import model_folders
from sememe.video_as_prompt.model_folders import load_components, save_components
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.transformer_files import format_of_model, load_merged, open_separate, save_merged
from video_as_prompt import cogvideox_factories
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline
from video_as_prompt.wan_factories import make_transformer, make_wan_vae


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_pipeline(reference_guidance_scale=2.0).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_round_trip(saved: Path) -> None:
    picture, clip = make_picture(), make_clip()
    loaded = VideoAsPromptPipeline.from_pretrained(saved)
    loaded.set_progress_bar_config(disable=True)
    original = make_pipeline(reference_guidance_scale=2.0)
    before, after = (
        pipe(picture, [clip], generator=torch.Generator().manual_seed(1)).clips[0] for pipe in (original, loaded)
    )
    assert np.abs(before.frames.astype(int) - after.frames).max() <= 1


def test_the_layout_is_stock_with_the_expert_apart(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {
        "expert", "model_index.json", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"
    }  # fmt: skip
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "VideoAsPromptPipeline"
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]
    assert index["image_encoder"] == [None, None]
    assert index["generation_defaults"]["num_frames"] == 5
    stock = WanTransformer3DModel.from_pretrained(saved / "transformer")
    assert not any("expert" in key for key in stock.state_dict())
    suffixes = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors"}
    loaded = VideoAsPromptPipeline.from_pretrained(str(saved))
    assert loaded.defaults.guidance.reference_guidance_scale == 2.0
    assert loaded.transformer.config.attention_mode == "cached"
    assert not loaded.transformer.training


def test_clip_components_travel_too(tmp_path: Path) -> None:
    pipe = make_pipeline("joint", clip=True)
    pipe.save_pretrained(tmp_path)
    loaded = VideoAsPromptPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    results = [
        given(make_picture(), [make_clip()], generator=torch.Generator().manual_seed(1), output_type="latent").frames
        for given in (pipe, loaded)
    ]
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_shards_precision_and_replaced_components(tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path, max_shard_size=100_000)
    assert (tmp_path / "expert" / "diffusion_pytorch_model.safetensors.index.json").exists()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=9.0)
    loaded = VideoAsPromptPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16, scheduler=scheduler)
    assert loaded.scheduler is scheduler
    assert loaded.transformer.dtype == torch.bfloat16
    assert loaded.text_encoder.dtype == torch.bfloat16
    assert loaded.vae.dtype == torch.float32
    loaded.set_progress_bar_config(disable=True)
    assert loaded(make_picture(), [make_clip()]).clips[0].num_frames == 5
    by_name = {"vae": torch.bfloat16}
    placed = VideoAsPromptPipeline.from_pretrained(tmp_path, by_name, device_map="cpu")
    assert (placed.transformer.dtype, placed.vae.dtype) == (torch.float32, torch.bfloat16)
    placed.set_progress_bar_config(disable=True)
    assert placed(make_picture(), [make_clip()]).clips[0].num_frames == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"variant": "fp16"}, "got variant; weights come in the precision of torch_dtype"),
        ({"dtype": torch.bfloat16}, "got dtype; say torch_dtype"),
        ({"quantization_config": {}}, r"got quantization_config; .*storage='nf4'"),
        ({"unet": None}, "got unet; its components are transformer, vae"),
        ({"torch_dtype": {"unet": torch.bfloat16}}, "got one for unet"),
        ({"torch_dtype": torch.int8}, "floating point.* got torch.int8"),
        ({"device_map": "balanced"}, "got 'balanced'"),
    ],
)
def test_arguments_are_refused_before_anything_is_read(
    given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sememe.pipeline.find_folder", None)
    with pytest.raises(InputError, match=message):
        VideoAsPromptPipeline.from_pretrained("owner/name", **given)


def test_the_hub_is_asked_as_in_diffusers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **given: asked.update(given) or tmp_path)
    with pytest.raises(ModelError, match=r"model_index\.json"):
        VideoAsPromptPipeline.from_pretrained(
            "owner/name", revision="abc", cache_dir=tmp_path, token=False, local_files_only=True
        )
    del asked["allow_patterns"]
    assert asked == {"revision": "abc", "cache_dir": tmp_path, "token": False, "local_files_only": True}


def add_tensor(folder: Path, name: str) -> None:
    path = next(folder.glob("*.safetensors"))
    save_file(load_file(path) | {name: torch.zeros(4)}, path, {"format": "pt"})


def test_released_files_as_they_are(tmp_path: Path) -> None:
    """In their own precision, with tensors that the stock classes leave out."""
    folder = save_published(tmp_path / "published")
    transformer = load_merged(folder / "transformer", torch.bfloat16)
    save_merged(transformer, folder / "transformer")
    add_tensor(folder / "transformer", "blocks.0.attn2.norm_added_q.weight")
    add_tensor(folder / "image_encoder", "visual_projection.weight")
    loaded = VideoAsPromptPipeline.from_pretrained(folder)
    dtypes = {name: getattr(loaded, name).dtype for name in ("transformer", "text_encoder", "vae", "image_encoder")}
    assert dtypes.pop("vae") == dtypes.pop("image_encoder") == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}
    for key, tensor in transformer.state_dict().items():
        assert torch.equal(loaded.transformer.state_dict()[key], tensor)
    transformer.save_backbone(tmp_path / "backbone")
    transformer.save_expert(tmp_path / "expert")
    add_tensor(tmp_path / "backbone", "blocks.0.attn2.norm_added_q.weight")
    assert open_separate(tmp_path / "backbone", tmp_path / "expert").tensors.keys() == transformer.state_dict().keys()


@pytest.mark.parametrize("name", ["shared.weight", "encoder.embed_tokens.weight"])
def test_the_embedding_of_a_text_encoder_has_either_name(name: str, copy: Path) -> None:
    path = next((copy / "text_encoder").glob("*.safetensors"))
    tensors = load_file(path)
    (stored,) = {"shared.weight", "encoder.embed_tokens.weight"} & tensors.keys()
    embedding = tensors.pop(stored)
    save_file({**tensors, name: embedding}, path, {"format": "pt"})
    encoder = VideoAsPromptPipeline.from_pretrained(copy).text_encoder
    assert torch.equal(encoder.get_input_embeddings().weight, embedding)
    assert torch.equal(encoder.encoder.embed_tokens.weight, embedding)


def change_index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "MyPipeline"}, "one of the classes VideoAsPromptPipeline, .* names MyPipeline"),
        ({"_class_name": None}, "model_index.json names None"),
        ({"_class_name": "WanPipeline"}, r"is a stock WanPipeline without an expert; say .* \(expert=FOLDER\)"),
        ({"transformer": ["diffusers", "WanTransformer3DMOTModel"]}, "expected one of diffusers.WanTransformer3DModel"),
        ({"transformer": ["sememe", "Other"]}, r"transformer of .* is a sememe\.Other; expected one of"),
        ({"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "expected a model with one transformer"),
        ({"vae": ["os", "system"]}, r"expected one of .* got os\.system"),
        ({"text_encoder": ["transformers", "AutoModel"]}, "expected one of"),
        ({"scheduler": None}, "expected library and class of scheduler"),
        ({"generation_defaults": {"steps": 3}}, "no setting steps"),
        ({"generation_defaults": {"batching": "both"}}, "batching must be one of"),
    ],
)
def test_an_index_that_names_something_else_is_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    change_index(copy, **changes)
    with pytest.raises(ModelError, match=message):
        VideoAsPromptPipeline.from_pretrained(copy)


@pytest.mark.parametrize("name", ["vae", "text_encoder", "transformer", "expert"])
@pytest.mark.parametrize("change", ["missing", "extra"])
def test_every_tensor_is_accounted_for(copy: Path, name: str, change: str) -> None:
    path = next((copy / name).glob("*.safetensors"))
    tensors = load_file(path)
    if change == "missing":
        del tensors[next(key for key in sorted(tensors) if tensors[key].ndim > 1)]
    else:
        tensors["surplus"] = torch.zeros(2)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing|surplus") as caught:
        VideoAsPromptPipeline.from_pretrained(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vae", "text_encoder", "transformer", "expert", "scheduler", "tokenizer"])
def test_every_folder_is_needed(copy: Path, name: str) -> None:
    for path in (copy / name).iterdir():
        path.unlink()
    with pytest.raises(ModelError) as caught:
        VideoAsPromptPipeline.from_pretrained(copy)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_read(copy: Path) -> None:
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(
        ModelError, match=r"LinearVideoAutoencoder .* got diffusion_pytorch_model\.bin; such files are pickles"
    ):
        VideoAsPromptPipeline.from_pretrained(copy)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index\.json"):
        VideoAsPromptPipeline.from_pretrained(tmp_path)
    for name in (tmp_path / "absent", str(tmp_path / "absent"), "./absent"):
        with pytest.raises(ModelError, match="is neither"):
            VideoAsPromptPipeline.from_pretrained(name)
    with pytest.raises(ModelError, match="cannot be had from the hub"):
        VideoAsPromptPipeline.from_pretrained("nobody/nothing-of-this-name")
    for name, reason in (("model.ckpt", "pickles"), ("model.safetensors", "give the folder of a whole model")):
        (tmp_path / name).touch()
        with pytest.raises(ModelError, match=f"got the file .*{name}; .*{reason}"):
            find_folder(tmp_path / name)
    with pytest.raises(ModelError, match=r"expected a repository .* to go with revision v1, got"):
        find_folder(tmp_path, "v1")


def test_a_folder_does_not_hide_a_built_in_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    built_in = resolve_model("video-as-prompt/tiny")
    assert find_folder("tiny", system="video-as-prompt") == built_in != Path("tiny")
    assert find_folder("./tiny") == find_folder(Path("tiny")) == Path("tiny")


def test_all_that_is_missing_is_named_at_once(copy: Path) -> None:
    shutil.rmtree(copy / "vae")
    (copy / "scheduler" / "scheduler_config.json").unlink()
    (copy / "expert" / "config.json").unlink()
    message = (
        r"3 of its files are missing: vae/config\.json, scheduler/scheduler_config\.json, expert/config\.json; download"
    )
    with pytest.raises(ModelError, match=message):
        VideoAsPromptPipeline.from_pretrained(copy)
    given = {"vae": make_wan_vae(), "scheduler": None, "transformer": make_transformer()}
    parts = load_components(copy, None, given, "VideoAsPromptPipeline")
    assert parts["vae"] is given["vae"]
    assert parts["scheduler"] is None


@pytest.mark.parametrize("name", ["vae", "transformer", "expert", "text_encoder"])
def test_a_half_downloaded_file_is_named(copy: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folders, "check_pair", lambda *_: pytest.fail("weights are read before all are checked"))
    path = next((copy / name).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=rf"{path.name} is cut short: expected \d+ bytes") as caught:
        VideoAsPromptPipeline.from_pretrained(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_a_published_folder_is_read(tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture) -> None:
    parts = load_components(save_published(tmp_path, family), None, {}, "VideoAsPromptPipeline")
    transformer = parts["transformer"]
    assert format_of_model(transformer).name == family
    assert transformer.config.attention_mode == "joint"
    assert transformer.config.reference_timestep == (1.0 if family == "wan" else None)
    assert transformer.dtype == torch.float32
    expected = load_merged(tmp_path / "transformer").state_dict()
    assert all(torch.equal(value, expected[key].float()) for key, value in transformer.state_dict().items())
    defaults = parts["generation_defaults"]
    if family == "wan":
        assert type(parts["image_processor"]).__name__ == "CLIPImageProcessorPil"
        assert (defaults["height"], defaults["width"], defaults["guidance_scale"]) == (480, 832, 5.0)
    else:
        assert parts["image_encoder"] is None
        assert (defaults["height"], defaults["width"], defaults["num_frames"]) == (64, 48, 9)
        assert (defaults["guidance_scale"], defaults["max_sequence_length"]) == (6.0, cogvideox_factories.TEXT_LENGTH)
    assert (defaults["fps"], defaults["num_inference_steps"]) == (16.0, 50)
    assert not caplog.records
    with pytest.raises(ModelError, match="has an expert merged in; leave expert out"):
        load_components(tmp_path, None, {}, "VideoAsPromptPipeline", expert=tmp_path)


def test_a_published_folder_in_another_precision(tmp_path: Path) -> None:
    parts = load_components(save_published(tmp_path), torch.bfloat16, {}, "VideoAsPromptPipeline")
    assert parts["transformer"].dtype == torch.bfloat16
    assert parts["transformer"].blocks[0].expert.output.norm2.weight.dtype == torch.float32
    assert parts["vae"].dtype == parts["image_encoder"].dtype == torch.float32


@pytest.mark.parametrize("class_name", ["WanImageToVideoPipeline", "WanPipeline"])
def test_a_stock_model_takes_an_expert(saved: Path, copy: Path, class_name: str) -> None:
    make_stock(copy, class_name)
    expected = load_components(saved, None, {}, "VideoAsPromptPipeline")["transformer"].state_dict()
    # The expert's folder itself, or that of a model which has one.
    for expert in (saved / "expert", saved, str(saved)):
        parts = load_components(copy, None, {}, "VideoAsPromptPipeline", expert=expert)
        assert all(torch.equal(expected[key], value) for key, value in parts["transformer"].state_dict().items())
        assert parts["generation_defaults"]["height"] == 480


def test_a_model_takes_another_expert(copy: Path, tmp_path: Path) -> None:
    other = make_transformer(seed=9)
    other.save_expert(tmp_path / "other")
    parts = load_components(copy, None, {}, "VideoAsPromptPipeline", expert=tmp_path / "other")
    key = "blocks.1.expert.projection.to_q.weight"
    assert torch.equal(parts["transformer"].state_dict()[key], other.state_dict()[key])
    assert parts["generation_defaults"]["height"] == 32
    with pytest.raises(ModelError, match="got both"):
        load_components(copy, None, {"transformer": other}, "VideoAsPromptPipeline", expert=tmp_path / "other")


def test_experts_that_do_not_fit_are_told(copy: Path, tmp_path: Path) -> None:
    make_stock(copy, "WanPipeline")
    cogvideox_factories.make_transformer().save_expert(tmp_path / "cogvideox")
    with pytest.raises(
        ModelError, match=r"expected a WanVideoAsPromptExpert .*CogVideoXVideoAsPromptExpert; give an exp"
    ):
        load_components(copy, None, {}, "VideoAsPromptPipeline", expert=tmp_path / "cogvideox")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"expected an expert in .*empty"):
        load_components(copy, None, {}, "VideoAsPromptPipeline", expert=tmp_path / "empty")
    with pytest.raises(ModelError, match="is neither"):
        load_components(copy, None, {}, "VideoAsPromptPipeline", expert=tmp_path / "absent")


def test_cogvideox_travels_in_our_layout(tmp_path: Path) -> None:
    parts = load_components(save_published(tmp_path / "a", "cogvideox"), None, {}, "VideoAsPromptPipeline")
    settings = {name: parts.pop(name) for name in ("generation_defaults", "expand_timesteps")}
    save_components(tmp_path / "b", parts, settings, "VideoAsPromptPipeline", None)
    index = json.loads((tmp_path / "b" / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "CogVideoXTransformer3DModel"]
    assert index["expert"] == ["sememe", "CogVideoXVideoAsPromptExpert"]
    loaded = load_components(tmp_path / "b", None, {}, "VideoAsPromptPipeline")
    assert loaded["generation_defaults"] == settings["generation_defaults"]
    expected = parts["transformer"].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded["transformer"].state_dict().items())


def test_a_timestep_for_each_token_goes_with_wan_alone(tmp_path: Path) -> None:
    make_cogvideox_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["generation_defaults"]
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"expand_timesteps": True}))
    with pytest.raises(ModelError, match="expected expand_timesteps with a Wan transformer alone"):
        VideoAsPromptPipeline.from_pretrained(tmp_path)


def test_a_tokenizer_file_is_read_as_it_is(copy: Path) -> None:
    """The class of this name would build another tokenizer from the vocabulary alone."""
    path = copy / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text()) | {"normalizer": {"type": "Lowercase"}}
    path.write_text(json.dumps(content))
    change_index(copy, tokenizer=["transformers", "T5TokenizerFast"])
    parts = load_components(copy, None, {}, "VideoAsPromptPipeline")
    assert parts["tokenizer"]("A RED ball").input_ids == [3, 4, 5, 1]


def test_weights_are_stored_before_anything_else_is_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def load(name: str, *arguments: Any) -> Any:
        events.append(name)
        return load_component(name, *arguments)

    monkeypatch.setattr(model_folders, "load_component", load)
    load_components(copy, None, {}, "VideoAsPromptPipeline", store=lambda _: events.append("store"))
    assert events[0] == "store"
    assert len(events) > 3
    pipe = VideoAsPromptPipeline.from_pretrained(copy, storage="fp8")
    assert find_storage(pipe.transformer.parameters()) == "fp8"
    with pytest.raises(InputError, match="storage to be one of full, fp8"):
        VideoAsPromptPipeline.from_pretrained(copy, storage="int3")


def test_a_tokenizer_needs_its_vocabulary(copy: Path) -> None:
    folder = copy / "tokenizer"
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"vocabulary .* \(tokenizer\.json, vocab\.json with merges\.txt, spiece\.model\)"
    ):
        load_component("tokenizer", folder)


COMMIT = "0123456789012345678901234567890123456789"


@pytest.fixture
def hub(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, which holds the model as owner/model at revision v1; nothing else can be reached."""
    place = tmp_path / "hub" / "models--owner--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "v1").write_text(COMMIT)
    (place / "snapshots").mkdir()
    copy.rename(place / "snapshots" / COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return place / "snapshots" / COMMIT


def test_a_revision_of_the_hub_is_found_without_a_network(hub: Path) -> None:
    assert find_folder("owner/model", "v1") == hub
    assert find_folder("owner/model", COMMIT) == hub
    with pytest.raises(
        ModelError, match="owner/model at revision v2 is no local folder and cannot be had from the hub"
    ):
        find_folder("owner/model", "v2")
    with pytest.raises(ModelError, match="owner/model is no local folder"):
        find_folder("owner/model")


def test_what_was_never_downloaded_is_named(hub: Path) -> None:
    next((hub / "vae").glob("*.json")).unlink()
    with pytest.raises(
        ModelError, match=r"1 of its files are missing: vae/config\.json; download it again while the hub"
    ):
        load_components(find_folder("owner/model", "v1"), None, {}, "VideoAsPromptPipeline")
