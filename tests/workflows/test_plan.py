"""Plans: what is chosen for which card, what is said of it, and that a planned generation is the plain one."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from generation_requests import vary
from model_folders import make_stock, save_published
from sememe.compute.loading_settings import LoadingSettings
from sememe.errors import InputError, ModelError
from sememe.pipelines.planning import Generation, ModelMemory, Strategy, estimate_memory
from sememe.video import write_clip, write_image
from sememe.video_as_prompt.generation import VideoAsPromptInputs
from sememe.workflows import model_memory
from sememe.workflows.candidates import Candidate, Wish, list_candidates
from sememe.workflows.generate import GenerationRequest, generate
from sememe.workflows.loading import choose_device, load_model
from sememe.workflows.plan import MemoryPlan, PlanRequest, plan_document, plan_memory
from video_as_prompt.pipeline_factories import make_clip, make_picture


@pytest.fixture(scope="module")
def released() -> Callable[..., MemoryPlan]:
    """Plans for the released models, of which each is described once."""
    described = {name: model_memory.read_model_memory(name) for name in model_memory.RELEASED}

    def plan(name: str, vram: float, **settings: Any) -> MemoryPlan:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sememe.workflows.plan.read_model_memory", lambda asked, *_: described[asked])
            return plan_memory(name, PlanRequest(vram, **settings))

    return plan


def test_the_released_models_are_counted(released: Callable[..., MemoryPlan]) -> None:
    wan, cogvideox = (released(name, 500.0).model for name in ("wan-14b", "cogvideox-5b"))
    assert wan.transformer.total / 1e9 == pytest.approx(20.67, abs=0.01)
    assert cogvideox.transformer.total / 1e9 == pytest.approx(11.11, abs=0.01)
    assert wan.text_encoder.total / 1e9 == pytest.approx(5.68, abs=0.01)
    assert cogvideox.text_encoder.total / 1e9 == pytest.approx(4.76, abs=0.01)
    assert wan.image_encoder is not None
    assert wan.image_encoder.total / 1e6 == pytest.approx(632, abs=2)
    assert (wan.num_text_tokens, wan.num_image_tokens, cogvideox.num_text_tokens) == (512, 257, 226)
    assert (wan.height, wan.width, wan.num_frames, cogvideox.width) == (480, 832, 49, 720)
    # One forward: 20280 tokens of 5120 numbers each, and the same of the reference.
    assert wan.shape.count_tokens(13, 60, 104) == 20280


def test_encoders_are_counted_as_they_are_built() -> None:
    text = {"vocab_size": 11, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 3, "num_heads": 2}
    for kind, config_class, model_class in (("t5", T5Config, T5EncoderModel), ("umt5", UMT5Config, UMT5EncoderModel)):
        model = model_class(config_class(**text, feed_forward_proj="gated-gelu"))
        built = sum(parameter.numel() for parameter in model.parameters())
        assert model_memory._count_text_encoder(text | {"model_type": kind}) == built
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    clip = CLIPVisionModel(CLIPVisionConfig(**vision, num_attention_heads=2))
    assert model_memory._count_clip(vision) == sum(parameter.numel() for parameter in clip.parameters())


@pytest.mark.parametrize(
    ("name", "vram", "offload", "label"),
    [
        ("wan-14b", 80, "none", "exact"),
        ("wan-14b", 24, "group", "exact"),
        ("wan-14b", 8, "group-leaf", "approximate"),
        ("cogvideox-5b", 80, "none", "exact"),
        ("cogvideox-5b", 24, "group", "approximate"),
    ],
)
def test_what_is_chosen(released: Callable[..., MemoryPlan], name: str, vram: float, offload: str, label: str) -> None:
    plan = released(name, vram)
    document = plan_document(plan)
    assert (document["offload"], document["label"], document["dtype"]) == (offload, label, "bfloat16")
    assert plan.chosen.estimate.peak <= vram * 1e9
    assert all(candidate.estimate.peak > vram * 1e9 for candidate in plan.rejected)
    assert len(document["why"]) >= len(plan.rejected) + 1
    assert json.loads(json.dumps(document)) == document


def test_savings_that_cost_little_go_before_the_next_slower_offload(released: Callable[..., MemoryPlan]) -> None:
    """Keys of texts cost a little in every step, a block that is moved much; the result is the same."""
    keys, freed = released("wan-14b", 48), released("wan-14b", 52)
    assert (keys.strategy.offload, keys.strategy.keeps_texts, keys.label) == ("model", False, "exact")
    assert released("wan-14b", 48, text_keys="kept").strategy.offload == "group"
    assert (freed.strategy.offload, freed.strategy.frees_texts, freed.strategy.resting) == ("none", True, ("encoders",))
    assert plan_document(keys)["text_keys"] == "recomputed"
    assert plan_document(freed)["resting"] == ["encoders"]
    asked = released("wan-14b", 80, text_keys="recomputed")
    assert asked.strategy.keeps_texts is False
    assert asked.chosen.estimate.phases["steps"].record < released("wan-14b", 80).chosen.estimate.phases["steps"].record


def test_an_expert_rests_where_that_saves(released: Callable[..., MemoryPlan]) -> None:
    two_way = released("wan-14b", 500)
    one_way = replace(two_way.model, attention_mode="cached")
    ways = [each.strategy for each in list_candidates(one_way, two_way.generation, Wish()) if not each.strategy.tiles]
    told = [(way.offload, way.frees_texts, way.resting, way.keeps_texts) for way in ways[:9]]
    assert told[:2] == [("none", False, (), True), ("none", True, (), True)]
    assert ("none", True, ("encoders", "expert"), True) in told
    assert told.index(("model", False, ("expert",), True)) == told.index(("model", False, (), True)) + 1
    offloads = [way.offload for way in ways]
    assert offloads == sorted(offloads, key=["none", "model", "group", "group-leaf", "sequential"].index)
    assert not any("expert" in each.strategy.resting for each in two_way.rejected)


def test_no_saving_that_saves_nothing(released: Callable[..., MemoryPlan]) -> None:
    plan = released("wan-14b", 6.9)
    by_way: dict[tuple[str, bool], list[int]] = {}
    for candidate in (*plan.rejected, plan.chosen):
        strategy = candidate.strategy
        by_way.setdefault((strategy.offload, strategy.tiles), []).append(candidate.estimate.peak)
    assert any(len(peaks) > 1 for peaks in by_way.values())
    assert all(peaks == sorted(set(peaks), reverse=True) for peaks in by_way.values())


def test_more_memory_never_makes_it_slower(released: Callable[..., MemoryPlan]) -> None:
    order = ["none", "model", "group", "group-leaf", "sequential"]
    exact: dict[str, list[int]] = {"exact": [], "approximate": []}
    for vram in (7, 12, 20, 30, 45, 60, 80):
        plan = released("wan-14b", vram)
        exact[plan.label].append(order.index(plan.strategy.offload))
    assert all(ranks == sorted(ranks, reverse=True) for ranks in exact.values())


def test_fewer_bits_on_request(released: Callable[..., MemoryPlan]) -> None:
    full, stored = released("wan-14b", 80), released("wan-14b", 80, storage="int8wo")
    assert full.strategy.storage == "full"
    assert stored.label == "approximate"
    assert stored.shortcuts == ["weights stored as int8wo"]
    parts = [plan_document(plan)["parts_gb"]["weights"] for plan in (full, stored)]
    # A byte less for each number in a block.
    assert parts[0] - parts[1] == pytest.approx(20, abs=1)
    faster = released("cogvideox-5b", 24).faster
    assert faster is not None
    assert faster.strategy.storage == "fp8"
    # Eight bits do not bring all of it on the card, four do.
    faster = released("wan-14b", 24).faster
    assert faster is not None
    assert (faster.strategy.storage, faster.strategy.offload) == ("nf4", "none")
    assert released("wan-14b", 24, storage="nf4").strategy == faster.strategy


@pytest.mark.parametrize(("batching", "batch_size", "num_texts"), [("sequential", 1, 2), ("batched", 2, 3)])
def test_as_many_texts_are_counted_as_are_kept(
    batching: str, batch_size: int, num_texts: int, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales: dict[str, Any] = {"guidance_scale": 3.0, "reference_guidance_scale": 2.0, "batching": batching}
    model = model_memory.read_model_memory(model_folder, guided=model_memory.Guided(**scales))
    assert (model.num_texts, model.num_readers, model.batch_size) == (num_texts, 2, batch_size)
    pipeline, kept = load_model(str(model_folder), LoadingSettings(device="cpu")).pipeline, []
    original = pipeline.transformer.cache_text

    def counted(text: torch.Tensor, *args: Any) -> Any:
        kept.append(len(text))
        return original(text, *args)

    monkeypatch.setattr(pipeline.transformer, "cache_text", counted)
    told: dict[str, Any] = {"prompt": "a cat", "negative_prompt": "blurry", "output_type": "latent"}
    pipeline(image=make_picture(), references=[make_clip()], **told, **scales)
    assert sum(kept) == num_texts


def test_negative_references_are_kept_beside_the_others(model_folder: Path) -> None:
    def plan(**settings: Any) -> MemoryPlan:
        return plan_memory(model_folder, PlanRequest(24, guided=model_memory.Guided(None, 2.0), **settings))

    alone, both, two = plan(), plan(num_negative_references=1), plan(num_references=2)
    steps = [each.chosen.estimate.phases["steps"] for each in (alone, both, two)]
    assert steps[1].record == steps[2].record > steps[0].record
    assert steps[1].activations == steps[0].activations < steps[2].activations, "a forward carries one at a time"
    assert (alone.model.num_readers, both.model.num_readers) == (2, 3), "as if texts differed"
    assert plan_document(both)["num_negative_references"] == 1


def test_a_plan_takes_an_expert_as_a_generation_does(model_folder: Path, tmp_path: Path) -> None:
    stock = tmp_path / "stock"
    shutil.copytree(model_folder, stock)
    make_stock(stock, "WanImageToVideoPipeline")
    size: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 5}
    plans = [plan_memory(stock, PlanRequest(24, **size), each) for each in (model_folder, model_folder / "expert")]
    assert plans[0].model.transformer == plans[1].model.transformer == read(model_folder).transformer
    with pytest.raises(ModelError, match=r"is a stock WanImageToVideoPipeline without an expert; say which"):
        plan_memory(stock, PlanRequest(24, **size))
    with pytest.raises(ModelError, match="expected an expert in"):
        plan_memory(stock, PlanRequest(24, **size), stock)
    with pytest.raises(ModelError, match="has an expert merged in"):
        plan_memory(save_published(tmp_path / "published"), PlanRequest(24), model_folder)
    with pytest.raises(ModelError, match="but wan-14b has one"):
        plan_memory("wan-14b", PlanRequest(24), model_folder)


def read(folder: Path) -> Any:
    return model_memory.read_model_memory(folder)


def test_learned_positions_have_one_size(released: Callable[..., MemoryPlan]) -> None:
    assert released("cogvideox-5b", 80, height=480, width=720).strategy.offload == "none"
    with pytest.raises(InputError, match="learned positions for 480x720 pixels only, got 256x720"):
        released("cogvideox-5b", 80, height=256)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("model_index.json", "vae", ["diffusers"]),
        ("model_index.json", "generation_defaults", 3),
        ("text_encoder/config.json", "d_model", None),
        ("vae/config.json", "dim_mult", "wide"),
    ],
)
def test_a_folder_that_is_not_whole_is_told_in_one_line(
    file: str, key: str, value: Any, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | {key: value}))
    with pytest.raises(ModelError, match="no plan can be made") as told:
        plan_memory(folder, PlanRequest(24))
    assert "\n" not in str(told.value)


def test_storage_that_takes_more_says_so(released: Callable[..., MemoryPlan]) -> None:
    with pytest.raises(InputError, match=r"does not fit in 24 GB; .* leave storage out, or ask for a smaller size"):
        released("wan-14b", 24, storage="int8")
    assert released("wan-14b", 24).chosen.estimate.peak <= 24e9


def test_what_is_to_be_compiled_is_not_offloaded_layer_by_layer(released: Callable[..., MemoryPlan]) -> None:
    assert released("wan-14b", 24, compiles=True).strategy.offload == "group"
    assert released("wan-14b", 8).strategy.offload == "group-leaf"
    # The text encoder alone takes more, so that no size would help.
    with pytest.raises(InputError, match=r"does not fit in 8 GB; .* offload group\); leave compiling out$"):
        released("wan-14b", 8, compiles=True)
    with pytest.raises(InputError, match=r"fp8 storage .* cannot be compiled; use fp8wo or int8wo"):
        released("wan-14b", 24, compiles=True, storage="fp8")
    plan = released("cogvideox-5b", 24, compiles=True)
    assert plan.faster is not None
    assert plan.faster.strategy.storage == "int8wo"


def test_only_what_would_help_is_advised(released: Callable[..., MemoryPlan]) -> None:
    with pytest.raises(InputError, match=r"does not fit in 2 GB; .*; use a larger card$"):
        released("wan-14b", 2, compiles=True)
    with pytest.raises(InputError, match=r"8 GB; .*; leave compiling out$"):
        released("wan-14b", 8, compiles=True, storage="int8wo")
    with pytest.raises(InputError, match=r"8 GB; .*; leave storage and compiling out$"):
        released("wan-14b", 8, compiles=True, storage="nf4")
    with pytest.raises(InputError, match=r"offload sequential, .*; ask for fewer frames$"):
        released("cogvideox-5b", 6)


def test_the_least_does_for_small_models(model_folder: Path) -> None:
    with pytest.raises(InputError, match="the least that would do is") as told:
        plan_memory(model_folder, PlanRequest(1e-6))
    least = float(str(told.value).split("would do is ")[1].split(" GB")[0])
    peak = plan_memory(model_folder, PlanRequest(least)).chosen.estimate.peak
    assert least * 1e9 / 1.1 < peak <= least * 1e9


def test_references_that_are_smaller_take_less(released: Callable[..., MemoryPlan]) -> None:
    plain, small = (released("wan-14b", 80, height=512, reference_downscale=scale) for scale in (1, 2))
    steps = [plan.chosen.estimate.phases["steps"] for plan in (plain, small)]
    assert steps[1].activations + steps[1].record < 0.8 * (steps[0].activations + steps[0].record)


def test_nothing_fits(released: Callable[..., MemoryPlan]) -> None:
    with pytest.raises(
        InputError, match=r"wan-14b at 832x480, 49 frames does not fit in 2 GB; the least .* is"
    ) as told:
        released("wan-14b", 2)
    least = float(str(told.value).split("would do is ")[1].split(" GB")[0])
    assert released("wan-14b", least).chosen.estimate.peak <= least * 1e9
    with pytest.raises(InputError, match="does not fit"):
        released("wan-14b", least - 0.2)
    small = released("wan-14b", least - 0.2, height=240, width=416, num_frames=17)
    assert small.chosen.estimate.peak < least * 1e9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vram": 0.0}, "above 0"),
        ({"vram": float("nan")}, "above 0"),
        ({"vram": 24, "storage": "int3"}, "expected storage to be one of full, fp8"),
        ({"vram": 24, "dtype": "float8"}, "expected dtype to be one of"),
        ({"vram": 24, "height": 0}, "height of at least 1"),
        ({"vram": 24, "reference_downscale": 0}, "reference_downscale of at least 1"),
        ({"vram": 24, "text_keys": "lost"}, "text_keys to be kept or recomputed"),
        ({"vram": 24, "num_references": -1}, "num_references of 0 or more"),
        ({"vram": 24, "num_negative_references": -1}, "num_negative_references of 0 or more"),
    ],
)
def test_bad_requests(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_memory("wan-14b", PlanRequest(**settings))


def test_unknown_models() -> None:
    with pytest.raises(ModelError, match="plans are also made for wan-14b and cogvideox-5b"):
        plan_memory("wan-15b", PlanRequest(24))
    with pytest.raises(ModelError, match="a built-in model or a folder"):
        plan_memory("owner/name", PlanRequest(24))


def test_released_models_are_known_by_their_repositories() -> None:
    assert model_memory.find_released("ByteDance/Video-As-Prompt-CogVideoX-5B") == "cogvideox-5b"
    plan = plan_memory("ByteDance/Video-As-Prompt-CogVideoX-5B", PlanRequest(24))
    assert plan.chosen == plan_memory("cogvideox-5b", PlanRequest(24)).chosen
    assert plan_document(plan)["model"] == "Video-As-Prompt-CogVideoX-5B"


def test_folders_are_read_and_not_loaded(model_folder: Path, tmp_path: Path) -> None:
    plan = plan_memory(model_folder, PlanRequest(24, num_frames=9))
    assert (plan.strategy.dtype, plan.strategy.offload, plan.label) == ("float32", "none", "exact")
    assert plan.generation.num_frames == 9
    weights = plan.chosen.estimate.phases["steps"].weights
    files = list(model_folder.rglob("*.safetensors"))
    assert weights == pytest.approx(sum(path.stat().st_size for path in files), rel=0.25)
    published = plan_memory(save_published(tmp_path / "published"), PlanRequest(24))
    assert published.model.num_image_tokens == 5
    assert published.model.attention_mode == "joint"


@pytest.fixture
def request_of_files(tmp_path: Path, model_folder: Path) -> GenerationRequest:
    write_clip(make_clip(), tmp_path / "reference.mp4")
    write_image(make_picture(), tmp_path / "image.png")
    inputs = VideoAsPromptInputs(
        references=(tmp_path / "reference.mp4",),
        image=tmp_path / "image.png",
        prompt="a red ball",
        reference_prompts=("a cat",),
    )
    loading = LoadingSettings(device="cpu")
    return GenerationRequest(
        inputs=inputs, output=tmp_path / "out.mp4", model=str(model_folder), seed=7, loading=loading
    )


def run(request: GenerationRequest, **changes: Any) -> dict[str, Any]:
    return generate(vary(request, **changes)).document


def choose(strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this the only way there is."""

    def only(model: ModelMemory, generation: Generation, _: Wish) -> Iterator[Candidate]:
        return iter([Candidate(strategy, estimate_memory(model, generation, strategy))])

    monkeypatch.setattr("sememe.workflows.plan.list_candidates", only)


def test_a_planned_generation_is_the_plain_one(
    request_of_files: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(request_of_files)
    assert plain["computing"] == {"attention": None, "compiled": False, "plan": None}
    strategies = (
        Strategy("float32", offload="group-leaf"),
        Strategy("float32", offload="group"),
        Strategy("float32", offload="sequential"),
        Strategy("float32", offload="model", resting=("expert",), keeps_texts=False),
        Strategy("float32", resting=("expert",)),
        Strategy("float32", frees_texts=True, resting=("encoders", "expert"), keeps_texts=False),
    )
    for strategy in strategies:
        choose(strategy, monkeypatch)
        planned = run(request_of_files, vram=24.0)
        told = planned["computing"]["plan"]
        assert (told["offload"], told["resting"]) == (strategy.offload, list(strategy.resting))
        assert told["texts"] == ("freed" if strategy.frees_texts else "kept")
        assert told["label"] == planned["exactness"]["label"] == "exact"
        assert planned["output"]["sha256"] == plain["output"]["sha256"], strategy
        are_kept = strategy.keeps_texts and not strategy.offload.startswith("group")
        assert planned["settings"]["text_keys"] == told["text_keys"] == ("kept" if are_kept else "recomputed")
    # Once more without reference, of whose captions the encoded texts know.
    influenced = run(request_of_files, vram=24.0, influence=True)
    assert influenced["computing"]["plan"]["texts"] == "freed"
    assert influenced["influence"]["rms"] > 0


def test_an_image_encoder_may_leave(
    request_of_files: GenerationRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = str(save_published(tmp_path / "published"))
    size: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2}
    request = vary(request_of_files, model=published, **size)
    plain = run(request)
    choose(Strategy("float32", frees_texts=True, resting=("encoders",)), monkeypatch)
    planned = run(request, vram=24.0)
    assert planned["computing"]["plan"]["resting"] == ["encoders"]
    assert planned["output"]["sha256"] == plain["output"]["sha256"]


def test_shortcuts_of_a_plan_are_told(request_of_files: GenerationRequest) -> None:
    planned = run(request_of_files, vram=24.0, storage="fp8", dtype="bfloat16")
    assert planned["exactness"] == {
        "label": "approximate",
        "shortcuts": ["weights stored as fp8", "bfloat16 in place of float32"],
        "adapters": [],
    }
    assert planned["model"]["dtype"] == "bfloat16"


def test_attention_is_chosen(request_of_files: GenerationRequest) -> None:
    assert run(request_of_files, attention="native")["computing"]["attention"] == "native"
    with pytest.raises(InputError, match="expected an attention backend"):
        run(request_of_files, attention="quick")


def test_refused_before_anything_is_read(request_of_files: GenerationRequest) -> None:
    with pytest.raises(InputError, match="storage has an effect only with vram"):
        run(request_of_files, storage="fp8")
    with pytest.raises(InputError, match="does not fit in 1e-06 GB; the least"):
        run(request_of_files, vram=1e-6)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="expected a device of this machine"):
            choose_device("cuda")
