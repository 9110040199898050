"""Files in, files out: what is written, what it says, and what is refused before the slow part."""

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from generation_requests import vary
from sememe.compute.loading_settings import LoadingSettings
from sememe.errors import InputError, OutputError, VideoError
from sememe.events import Progress
from sememe.video import Clip, read_clip, read_image, write_clip, write_image
from sememe.video.picture import WRITTEN_PICTURES
from sememe.video.writer import WRITTEN_VIDEOS
from sememe.video_as_prompt.generation import VideoAsPromptInputs
from sememe.video_as_prompt.system import VIDEO_AS_PROMPT
from sememe.workflows import generate as module
from sememe.workflows import sidecar
from sememe.workflows.generate import GenerationRequest, GenerationResult, generate, generate_all
from sememe.workflows.input_files import VideoFile
from sememe.workflows.loading import LoadedModel, load_model
from sememe.workflows.request_files import read_request
from video_as_prompt.pipeline_factories import make_clip, make_picture


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LoadedModel:
    return load_model(VIDEO_AS_PROMPT, str(model_folder), LoadingSettings(device="cpu"))


@pytest.fixture
def request_of_files(tmp_path: Path, model_folder: Path) -> GenerationRequest:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    write_clip(make_clip(), inputs / "reference.mp4")
    write_clip(make_clip(seed=1, num_frames=4, height=64, width=64), inputs / "other.mp4")
    write_image(make_picture(), inputs / "image.png")
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    return GenerationRequest(
        inputs=VideoAsPromptInputs(references=(inputs / "reference.mp4",), image=inputs / "image.png"),
        output=outputs / "out.mp4",
        model=str(model_folder),
        seed=7,
        loading=LoadingSettings(device="cpu"),
    )


def inputs_of(request: GenerationRequest) -> VideoAsPromptInputs:
    assert isinstance(request.inputs, VideoAsPromptInputs)
    return request.inputs


def run(request: GenerationRequest, loaded: LoadedModel | None = None, **changes: Any) -> GenerationResult:
    return generate(vary(request, **changes), loaded=loaded)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_seed_decides_the_bytes(request_of_files: GenerationRequest, model: LoadedModel) -> None:
    folder = request_of_files.output.parent
    first = run(request_of_files)
    again = run(request_of_files, model, output=folder / "again.mp4")
    other = run(request_of_files, model, output=folder / "other.mp4", seed=8)
    assert first.output.read_bytes() == again.output.read_bytes()
    assert first.output.read_bytes() != other.output.read_bytes()
    assert sorted(os.listdir(folder)) == sorted(
        f"{name}.{kind}" for name in ("out", "again", "other") for kind in ("mp4", "json")
    )


def test_a_seed_by_chance_is_told_and_can_be_used_again(
    request_of_files: GenerationRequest, model: LoadedModel
) -> None:
    first, second = (run(request_of_files, model, seed=None) for _ in range(2))
    assert first.seed != second.seed
    content = second.output.read_bytes()
    assert run(request_of_files, model, seed=second.seed).output.read_bytes() == content


def test_the_sidecar_says_how_it_was_made(request_of_files: GenerationRequest, model: LoadedModel) -> None:
    result = run(request_of_files, model, prompt="a red ball", reference_prompts=("melts",), guidance_scale=3.0)
    document = json.loads(result.sidecar.read_text())
    assert document == result.document
    assert result.sidecar == request_of_files.output.with_suffix(".json")
    assert (document["system"], document["seed"], document["generator_device"]) == ("video-as-prompt", 7, "cpu")
    assert set(document["versions"]) == {"sememe", "python", "torch", "diffusers", "transformers", "av", "numpy"}
    assert document["model"]["name"] == str(request_of_files.model)
    assert document["model"]["sha256"] == model.fingerprint.sha256
    assert document["model"]["attention_mode"] == "cached"
    assert document["inputs"]["image"]["sha256"] == sha256(inputs_of(request_of_files).image)
    (reference,) = document["inputs"]["references"]
    assert reference["sha256"] == sha256(inputs_of(request_of_files).references[0])
    assert (reference["num_frames"], reference["fps"]) == (9, 12.0)
    assert document["reference_prompts"] == ["melts"]
    assert document["output"] | {"path": ""} == {
        "path": "",
        "num_frames": 5,
        "height": 32,
        "width": 48,
        "fps": 8.0,
        "sha256": sha256(result.output),
    }
    assert document["guidance"] == [
        {"text": "negative", "reference": "none", "weight": -1.0},
        {"text": "negative", "reference": "given", "weight": -1.0},
        {"text": "positive", "reference": "given", "weight": 3.0},
    ]
    assert document["settings"]["batching"] == "sequential"
    assert document["exactness"] == {"label": "exact", "shortcuts": [], "adapters": []}
    assert set(document["timings"]) == {"read", "load", "encode", "denoise", "decode", "write", "total"}
    assert document["timings"]["total"] >= sum(document["timings"].values()) - document["timings"]["total"] - 0.01
    assert document["peak_memory"]["process_bytes"] > 50e6
    assert document["influence"] is None


def test_a_result_can_be_made_again_from_its_record(request_of_files: GenerationRequest, model: LoadedModel) -> None:
    first = run(request_of_files, model, prompt="a red ball", guidance_scale=3.0, reference_end=0.5)
    stored = read_request(first.sidecar, VIDEO_AS_PROMPT)
    assert stored.model == str(request_of_files.model)
    again = GenerationRequest(
        inputs=VideoAsPromptInputs(**stored.inputs),
        output=first.output.with_name("again.mp4"),
        model=stored.model,
        seed=stored.seed,
        settings=stored.settings,
        loading=LoadingSettings().override(**stored.loading),
    )
    assert generate(again, loaded=model).output.read_bytes() == first.output.read_bytes()
    whole = run(request_of_files, model, prompt="a red ball", guidance_scale=3.0)
    assert whole.document["output"]["sha256"] != first.document["output"]["sha256"]


def test_a_record_holds_in_any_folder(
    request_of_files: GenerationRequest, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()  # a built-in model goes before a folder of its name
    # The loaded model stands for the one that is asked for.
    loading = {"model": "tiny", "lora": ("style.safetensors:0.5", "a.safetensors"), "expert": "inputs"}
    result = run(request_of_files, model, **loading, negative_references="inputs/other.mp4")
    stored = read_request(result.sidecar, VIDEO_AS_PROMPT)
    assert stored.model == "tiny"
    lora = [f"{tmp_path}/style.safetensors:0.5", f"{tmp_path}/a.safetensors:1.0"]
    assert stored.loading == {"device": "cpu", "lora": lora, "expert": str(tmp_path / "inputs")}
    assert stored.settings["negative_references"] == [str(tmp_path / "inputs" / "other.mp4")]


def test_the_video_itself_says_the_essentials(request_of_files: GenerationRequest, model: LoadedModel) -> None:
    result = run(request_of_files, model)
    with av.open(str(result.output)) as container:
        comment = json.loads(container.metadata["comment"])
    assert comment["seed"] == "7"
    assert comment["model"] == "random"
    assert comment["image_sha256"] == sha256(inputs_of(request_of_files).image)
    assert str(inputs_of(request_of_files).image.parent) not in json.dumps(comment)


def test_the_reference_and_the_picture_decide(request_of_files: GenerationRequest, model: LoadedModel) -> None:
    base = read_clip(run(request_of_files, model).output)
    other = inputs_of(request_of_files).references[0].with_name("other.mp4")
    both = (*inputs_of(request_of_files).references, other)
    white = inputs_of(request_of_files).image.with_name("white.png")
    write_image(np.full((40, 40, 3), 255, np.uint8), white)
    changes: list[dict[str, Any]] = [{"references": (other,)}, {"references": both}, {"image": white}]
    changes += [{"reference_sampling": "first"}, {"reference_sampling": "fps"}, {"reference_prompts": ("melts",)}]
    for change in changes:
        assert read_clip(run(request_of_files, model, **change).output) != base, change


def test_influence_is_the_distance_to_the_result_without_reference(
    request_of_files: GenerationRequest, model: LoadedModel
) -> None:
    lossless = request_of_files.output.with_name("lossless.mkv")
    with_it = run(request_of_files, model, influence=True).document["influence"]
    assert with_it["rms"] > 0
    assert with_it["unit"] == "levels of 255"
    # The same by hand, but for what the codec loses.
    clips = []
    for scale in (None, 0.0):
        run(request_of_files, model, output=lossless, reference_guidance_scale=scale)
        clips.append(read_clip(lossless).frames.astype(float))
    assert with_it["rms"] == pytest.approx(np.sqrt(np.mean((clips[0] - clips[1]) ** 2)), abs=6)
    alone = run(request_of_files, model, references=(), reference_guidance_scale=0.0)
    assert alone.document["inputs"]["references"] == []
    # The second generation leaves out all that is about the reference.
    weaker = {"reference_strength": 0.5, "reference_prompts": ("melts",)}
    assert run(request_of_files, model, influence=True, **weaker).document["influence"]["rms"] > 0


def test_the_contact_sheet_has_a_row_for_each_clip(request_of_files: GenerationRequest, model: LoadedModel) -> None:
    sheet = request_of_files.output.with_name("sheet.png")
    other = inputs_of(request_of_files).references[0].with_name("other.mp4")
    one = read_image(run(request_of_files, model, sheet=sheet).sheet or "")
    two = read_image(run(request_of_files, model, sheet=sheet, references=(other, other)).sheet or "")
    assert two.shape[1] == one.shape[1]
    assert 1.4 * one.shape[0] < two.shape[0] < 1.6 * one.shape[0]
    side_by_side = read_clip(run(request_of_files, model, sheet=sheet.with_suffix(".mkv")).sheet or "")
    assert (side_by_side.size, side_by_side.num_frames) == ((256, 2 * 384), 5)


def test_progress_tells_stages_steps_and_time(request_of_files: GenerationRequest, model_folder: Path) -> None:
    told: list[Progress] = []
    generate(vary(request_of_files, num_inference_steps=3), told.append)
    stages = list(dict.fromkeys(progress.stage for progress in told))
    assert stages == ["reading the inputs", f"loading {model_folder}", "generating", "writing"]
    steps = [progress for progress in told if progress.num_steps]
    assert [(progress.step, progress.num_steps) for progress in steps] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert steps[0].seconds_left is None
    assert steps[-1].seconds_left == 0


@pytest.mark.parametrize("suffix", WRITTEN_VIDEOS)
def test_every_kind_of_video_is_written(suffix: str, request_of_files: GenerationRequest, model: LoadedModel) -> None:
    output = request_of_files.output.with_suffix(suffix)
    run(request_of_files, model, output=output)
    assert read_clip(output).size == (32, 48)


def test_suffixes_that_are_promised_can_be_written(tmp_path: Path) -> None:
    for suffix in WRITTEN_VIDEOS:
        write_clip(make_clip(num_frames=2), tmp_path / f"a{suffix}")
    for suffix in WRITTEN_PICTURES:
        write_image(make_picture(), tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed of 0 to"),
        ({"seed": 2**63}, "seed of 0 to"),
        ({"num_inference_steps": 0}, "num_inference_steps of at least 1, got 0"),
        ({"num_frames": 0}, "num_frames of at least 1"),
        ({"height": -32}, "height of at least 1"),
        ({"guidance_scale": -1.0}, "guidance_scale of at least 0"),
        ({"reference_guidance_scale": float("nan")}, "reference_guidance_scale of at least 0"),
        ({"reference_sampling": "all"}, "even, fps, first"),
        ({"references": ()}, "at least one reference"),
        ({"reference_prompts": ("a", "b")}, "got 2 for 1"),
        ({"influence": True, "reference_guidance_scale": 0.0}, "influence has no meaning"),
        ({"reference_prompts": ("a",), "reference_guidance_scale": 0.0}, "reference_prompts has no effect"),
        (
            {"reference_strength": 0.5, "reference_guidance_scale": 0.0, "references": ()},
            "reference_strength has no effect",
        ),
        ({"approximate": True, "reference_refresh": 2, "reference_guidance_scale": 0.0}, "approximate has no effect"),
        ({"model": "huge"}, "'huge' is neither"),
        ({"steps": 3}, "nearest is sampling.num_inference_steps"),
        ({"batching": "sometimes"}, "sequential, batched"),
        ({"autocast": "int4"}, "off, bfloat16"),
        ({"output": Path("out.txt")}, "ends in .mp4"),
        ({"sheet": Path("sheet.txt")}, "ends in .png"),
    ],
)
def test_mistakes_are_refused_before_torch_is_needed(
    changes: dict[str, Any], message: str, request_of_files: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_model", None)
    with pytest.raises((InputError, OutputError), match=message):
        run(request_of_files, **changes)
    assert os.listdir(request_of_files.output.parent) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 6}, "got 6; the nearest is 5"),
        ({"num_frames": 4 * 10**9 + 1}, "GB; ask for fewer frames"),
        ({"height": 33}, "the nearest is 32"),
        ({"device": "abacus"}, "device of this machine"),
        ({"device": "meta"}, "device that computes"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    changes: dict[str, Any], message: str, request_of_files: GenerationRequest
) -> None:
    with pytest.raises(InputError, match=message):
        run(request_of_files, **changes)
    assert os.listdir(request_of_files.output.parent) == []


def test_a_still_is_no_reference(request_of_files: GenerationRequest) -> None:
    still = inputs_of(request_of_files).references[0].with_name("still.mp4")
    write_clip(make_clip(num_frames=1), still)
    with pytest.raises(VideoError, match=r"at least 2 frames, but .* has 1"):
        run(request_of_files, references=(still,))
    with pytest.raises(VideoError, match=r"at least 2 frames, but .* has 1 in the section that is read"):
        run(request_of_files, reference_end=0.01)


def test_the_pictures_of_several_results_are_read_before_the_first_is_made(
    request_of_files: GenerationRequest, tmp_path: Path
) -> None:
    folder = request_of_files.output.parent
    missing = vary(request_of_files, image=tmp_path / "missing.png", output=folder / "second.mp4")
    with pytest.raises(VideoError, match=r"missing\.png"):
        next(generate_all([request_of_files, missing]))
    assert os.listdir(folder) == []


def test_an_input_is_never_overwritten(request_of_files: GenerationRequest) -> None:
    (reference,) = inputs_of(request_of_files).references
    before = reference.read_bytes()
    with pytest.raises(InputError, match="would overwrite an input"):
        run(request_of_files, output=reference)
    with pytest.raises(InputError, match="would overwrite an input"):
        run(request_of_files, sheet=inputs_of(request_of_files).image)
    assert reference.read_bytes() == before


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("x")])
def test_all_files_are_written_or_none(
    failure: BaseException,
    request_of_files: GenerationRequest,
    model: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = run(request_of_files, model)
    before = {path.name: path.read_bytes() for path in result.output.parent.iterdir()}

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(sidecar, "write_sidecar", fail)
    rescued = tmp_path / "temporary"
    rescued.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(rescued))
    expected = OutputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected) as caught:
        run(request_of_files, model, seed=8, sheet=result.output.with_name("sheet.png"))
    saved = list(rescued.rglob("*.mp4"))
    assert len(saved) == isinstance(failure, OSError)
    if saved:
        assert str(caught.value).endswith(f"the video alone is saved as {saved[0]}")
        assert read_clip(saved[0]).num_frames == 5
    assert {path.name: path.read_bytes() for path in result.output.parent.iterdir()} == before


def test_a_disk_that_is_nearly_full_is_noticed_before_the_generation(
    request_of_files: GenerationRequest, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match=r"got 0\.0 MB; free some space"):
        run(request_of_files, model)


def test_autocast_is_called_approximate(request_of_files: GenerationRequest, model: LoadedModel) -> None:
    document = run(request_of_files, model, autocast="bfloat16").document
    assert document["exactness"] == {"label": "approximate", "shortcuts": ["autocast bfloat16"], "adapters": []}


def test_a_long_reference_is_read_at_the_size_the_model_needs(
    request_of_files: GenerationRequest, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Clip] = []

    original = VideoFile.read

    def watched(file: VideoFile, reading: Any) -> Clip:
        seen.append(original(file, reading))
        return seen[-1]

    monkeypatch.setattr(VideoFile, "read", watched)
    run(request_of_files, model)
    assert [clip.frames.shape for clip in seen] == [(5, 32, 48, 3)]
