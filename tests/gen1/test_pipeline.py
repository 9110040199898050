"""The pipeline on tiny random models: what each argument changes, and what it leaves as it is."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gen1.model_factories import (
    STEPS,
    make_image_encoder,
    make_parts,
    make_picture,
    make_pipeline,
    make_source,
)
from gen1.unet_factories import make_image_model
from sememe.errors import InputError, ModelError
from sememe.gen1.content import Keyframe, blend_contents
from sememe.gen1.pipeline import Gen1Pipeline
from sememe.video import Clip


@pytest.fixture
def pipe(tmp_path: Path) -> Gen1Pipeline:
    return make_pipeline(tmp_path)


@pytest.fixture(scope="module")
def shared_pipe(tmp_path_factory: pytest.TempPathFactory) -> Gen1Pipeline:
    """For tests that leave it as it is."""
    return make_pipeline(tmp_path_factory.mktemp("shared"))


def generate(pipe: Gen1Pipeline, **arguments: Any) -> np.ndarray:
    given: dict[str, Any] = {
        "source": make_source(),
        "content": make_picture(),
        "generator": torch.Generator().manual_seed(0),
    }
    return pipe(**(given | arguments)).clips[0].frames


def count_predictions(pipe: Gen1Pipeline) -> list[tuple[tuple[int, ...], bool]]:
    """Record shape and kind of every call of the network."""
    calls: list[tuple[tuple[int, ...], bool]] = []
    pipe.unet.register_forward_pre_hook(
        lambda _module, args, kwargs: calls.append((tuple(args[0].shape), kwargs["is_temporal"])), with_kwargs=True
    )
    return calls


def test_it_gives_clips_and_structure(shared_pipe: Gen1Pipeline) -> None:
    source = make_source()
    out = shared_pipe(source=source, content="gold", generator=torch.Generator().manual_seed(0))
    assert out.clips[0].frames.shape == source.frames.shape
    assert out.clips[0].fps == source.fps
    assert out.structure[0].frames.shape == source.frames.shape
    assert out.frames.shape == (1, 4, 16, 16, 3)
    assert out.settings == shared_pipe.defaults
    assert [row["weight"] for row in out.guidance] == [-6.5, 7.5]
    again = shared_pipe(source=source, content="gold", generator=torch.Generator().manual_seed(0))
    assert again.clips == out.clips


def test_content_structure_and_level_matter(shared_pipe: Gen1Pipeline) -> None:
    results = [
        generate(shared_pipe),
        generate(shared_pipe, content=make_picture(10)),
        generate(shared_pipe, content="gold"),
        generate(shared_pipe, content="snow"),
        generate(shared_pipe, structure_level=3),
        generate(shared_pipe, structure_kinds={"edges": 1.0, "depth": 1.0}),
        generate(shared_pipe, temporal_guidance_scale=1.5),
        generate(shared_pipe, negative_prompt="snow"),
    ]
    for place, first in enumerate(results):
        for second in results[place + 1 :]:
            assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("scale", "temporal_scale", "expected"),
    [(7.5, 1.2, [False, True, True]), (7.5, 1.0, [True, True]), (1.2, 1.2, [False, True]), (1.0, 1.0, [True])],
)
def test_only_needed_predictions_are_made(
    pipe: Gen1Pipeline, scale: float, temporal_scale: float, expected: list[bool]
) -> None:
    calls = count_predictions(pipe)
    generate(pipe, guidance_scale=scale, temporal_guidance_scale=temporal_scale)
    assert [kind for _, kind in calls] == expected * STEPS


def test_structure_guidance_predicts_once_more_and_changes_the_result(pipe: Gen1Pipeline) -> None:
    plain = generate(pipe)
    calls = count_predictions(pipe)
    guided = generate(pipe, structure_guidance_scale=2.0)
    assert [kind for _, kind in calls] == [True] * 3 * STEPS
    assert not np.array_equal(plain, guided)


def test_batched_guidance_and_batches_of_sources_change_rounding_only(pipe: Gen1Pipeline) -> None:
    def run(**arguments: Any) -> torch.Tensor:
        return pipe(output_type="latent", temporal_guidance_scale=1.2, **arguments).frames

    sources, contents = [make_source(seed=1), make_source(seed=2)], [make_picture(1), "gold"]
    noise = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    def seeds() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (0, 1)]

    both = run(source=sources, content=contents, latents=noise, generator=seeds())
    calls = count_predictions(pipe)
    batched = run(source=sources, content=contents, latents=noise, generator=seeds(), batching="batched")
    assert [shape[0] for shape, _ in calls] == [2, 4] * STEPS
    torch.testing.assert_close(batched, both, atol=1e-3, rtol=1e-3)
    second = run(source=sources[1], content=contents[1], latents=noise[1:], generator=seeds()[1])
    torch.testing.assert_close(second, both[1:], atol=1e-3, rtol=1e-3)


def test_a_batch_gives_what_its_entries_give_alone(shared_pipe: Gen1Pipeline) -> None:
    def run(places: list[int]) -> torch.Tensor:
        given: dict[str, Any] = {
            "source": [make_source(seed=place) for place in places],
            "content": ["gold" for _ in places],
            "generator": [torch.Generator().manual_seed(place) for place in places],
        }
        return shared_pipe(**given, negative_prompt="snow", output_type="latent").frames

    both = run([0, 1])
    for place in (0, 1):
        torch.testing.assert_close(run([place]), both[place : place + 1], atol=1e-3, rtol=1e-3)


def test_long_clips_are_predicted_in_windows(pipe: Gen1Pipeline) -> None:
    calls = count_predictions(pipe)
    source = make_source(9)
    out = pipe(source=source, content="gold", guidance_scale=2.0, temporal_guidance_scale=1.2)
    assert out.clips[0].num_frames == 9
    # At most five frames at once; the image model sees each frame once, the video model every window.
    assert {shape[2] for shape, together in calls if together} == {5}
    assert [shape[2] for shape, together in calls if not together] == [5, 4] * STEPS
    assert sum(together for _, together in calls) == STEPS * 2 * 3


def test_windows_of_frames_alone_are_as_without_windows(tmp_path: Path) -> None:
    """Without content guidance and time, every frame is the image model's; windows then make no difference."""
    pipe = make_pipeline(tmp_path)
    for module in pipe.unet.modules():
        if hasattr(module, "reset_output"):
            module.reset_output()
    noise = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(3))
    arguments: dict[str, Any] = {
        "source": make_source(5),
        "content": make_picture(),
        "latents": noise,
        "output_type": "latent",
    }
    whole = pipe(**arguments).frames
    windowed = pipe(**arguments, window_frames=3, window_overlap=1).frames
    torch.testing.assert_close(windowed, whole, atol=1e-3, rtol=1e-3)


def test_outside_a_mask_frames_are_the_sources(shared_pipe: Gen1Pipeline) -> None:
    source = make_source()
    mask = np.zeros((4, 16, 16, 3), np.uint8)
    mask[:, 4:12, 4:12] = 255
    for feather in (0, 2):
        frames = generate(shared_pipe, mask=Clip(mask, 8.0), mask_feather=feather)
        outside = mask[..., 0] == 0
        assert np.array_equal(frames[outside], source.frames[outside])
        assert not np.array_equal(frames[~outside], source.frames[~outside])
    # Of masks as of sources the beginning is used.
    given: dict[str, Any] = {
        "source": [make_source(count) for count in (6, 9)],
        "mask": [Clip(np.full((count, 16, 16, 3), 255, np.uint8), 8.0) for count in (6, 9)],
    }
    assert len(shared_pipe(**given, content="gold", num_frames=4).clips) == 2
    everything = np.full((16, 16, 3), 255, np.uint8)
    assert np.array_equal(generate(shared_pipe, mask=everything), generate(shared_pipe))


def test_structure_that_was_given_back_saves_the_estimation(pipe: Gen1Pipeline) -> None:
    out = pipe(source=make_source(), content=make_picture())
    pipe.estimators.clear()
    again = generate(pipe, structure=out.structure[0])
    # Grey levels are rounded, so twice the same clip gives twice the same result, near that of the estimate.
    assert np.array_equal(generate(pipe, structure=out.structure[0]), again)
    assert not np.array_equal(generate(pipe, structure=Clip(255 - out.structure[0].frames, 8.0)), again)
    with pytest.raises(InputError, match="no depth_estimator"):
        generate(pipe)
    with pytest.raises(InputError, match="structure_kinds out of depth, edges, motion, got 'depht'"):
        generate(pipe, structure=out.structure[0], structure_kinds={"depht": 1.0})
    with pytest.raises(InputError, match="at least the source's 4 frames, got 3"):
        generate(pipe, structure=Clip(out.structure[0].frames[:3], 8.0))


def test_contents_are_blended_and_change_over_time(shared_pipe: Gen1Pipeline) -> None:
    first, second = shared_pipe.encode_content(make_picture(1)), shared_pipe.encode_content(make_picture(2))
    assert np.array_equal(generate(shared_pipe, content=first), generate(shared_pipe, content=make_picture(1)))
    mixed = blend_contents(first, second, 0.5)
    assert not np.array_equal(generate(shared_pipe, content=mixed), generate(shared_pipe, content=first))
    keyframes = [Keyframe(0.0, make_picture(1)), Keyframe(0.375, make_picture(2))]
    # At 8 frames a second, four frames end at the second keyframe.
    assert not np.array_equal(generate(shared_pipe, content=keyframes), generate(shared_pipe, content=first))
    same = [Keyframe(0.0, first), Keyframe(1.0, first)]
    both = shared_pipe(source=[make_source(), make_source()], content=keyframes)
    assert len(both.clips) == 2
    difference = generate(shared_pipe, content=same).astype(int) - generate(shared_pipe, content=first)
    assert np.abs(difference).max() <= 1


def test_modules_come_and_go_under_offload(pipe: Gen1Pipeline) -> None:
    expected = generate(pipe, content="gold")
    pipe.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(generate(pipe, content="gold"), expected)


def test_size_and_length_follow_the_settings(shared_pipe: Gen1Pipeline) -> None:
    frames = generate(shared_pipe, source=make_source(5, 17, 30), num_frames=2, width=20)
    assert frames.shape == (2, 18, 20, 3)


def test_callbacks_see_and_replace_latents_and_stop(pipe: Gen1Pipeline) -> None:
    seen: list[int] = []

    def stop(own: Gen1Pipeline, step: int, _timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        own.interrupt = step == 1
        return {"latents": tensors["latents"] * 0}

    given: dict[str, Any] = {"source": make_source(), "content": make_picture(), "num_inference_steps": 3}
    out = pipe(**given, callback_on_step_end=stop, output_type="latent")
    assert seen == [0, 1]
    assert out.frames.abs().max() == 0
    assert out.clips == []


def test_it_is_saved_and_loaded(pipe: Gen1Pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    loaded = Gen1Pipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.defaults == pipe.defaults
    for content in ("gold", make_picture()):
        assert np.array_equal(generate(loaded, content=content), generate(pipe, content=content))
    with pytest.raises(InputError, match="got transformer"):
        Gen1Pipeline.from_pretrained(folder, transformer=None)
    halved = Gen1Pipeline.from_pretrained(folder, {"vae": torch.float16}, device_map="cpu")
    assert (halved.vae.dtype, halved.unet.dtype) == (torch.float16, torch.float32)
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"1 of its files are missing: vae/config\.json"):
        Gen1Pipeline.from_pretrained(folder)


def test_prior_and_encoder_are_a_pair(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    with pytest.raises(ModelError, match="expected a prior for this image encoder"):
        Gen1Pipeline(**(parts | {"image_encoder": make_image_encoder(seed=8)}))
    with pytest.raises(ModelError, match="content_space"):
        Gen1Pipeline(**(parts | {"content_space": None}))
    with pytest.raises(ModelError, match="prior needs tokenizer"):
        Gen1Pipeline(**(parts | {"tokenizer": None}))
    without = Gen1Pipeline(**(parts | {"prior": None}))
    with pytest.raises(ModelError, match="needs a prior"):
        generate(without, content="gold")
    with pytest.raises(ModelError, match="expected a Gen1UNet or a UNetMotionModel"):
        Gen1Pipeline(**(parts | {"unet": make_image_model()}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None}, "expected source as a Clip"),
        ({"source": [make_source(), make_source(5)]}, "sources of one size, length"),
        ({"content": None}, "expected content as a text or a picture, got none"),
        ({"content": 3}, "got int"),
        ({"content": []}, "got list"),
        ({"content": [Keyframe(1.0, "a"), Keyframe(0.0, "b")]}, "rising times"),
        ({"structure_level": 8}, "structure_level of at most 7"),
        ({"num_frames": 9}, "at least num_frames 9, got 4"),
        ({"height": 17}, "height must be a multiple of 2"),
        ({"window_frames": 6}, "window_frames of at most 5"),
        ({"window_overlap": 5}, "window_overlap below"),
        ({"mask_feather": 2}, "only with a mask"),
        ({"controlnet_scale": 0.5}, "only on models with a ControlNet"),
        ({"guidance_scale": -1.0}, "guidance_scale of at least 0"),
        ({"output_type": "gif"}, "output_type"),
        ({"generator": [torch.Generator()] * 2}, "one generator per source, got 2 for 1"),
        ({"latents": torch.zeros(1, 4, 4, 8, 9)}, "expected latents of shape"),
        ({"structure": "depth.mp4"}, "structure as a Clip, got str"),
    ],
)
def test_what_does_not_fit_is_refused(shared_pipe: Gen1Pipeline, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(shared_pipe, **changes)


def test_lora_weights_of_stable_diffusion_act_on_the_unet(pipe: Gen1Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    layer = pipe.unet.get_submodule(name)
    ends = {"lora_A.weight": torch.ones(2, layer.in_features), "lora_B.weight": torch.ones(layer.out_features, 2)}
    tensors = {f"unet.{name}.{end}": tensor for end, tensor in ends.items()}
    before = layer.weight.clone()
    with caplog.at_level(logging.WARNING):
        pipe.load_lora_weights(tensors | {"text_encoder.layer.lora_A.weight": torch.ones(2, 2)}, adapter_name="style")
    assert "text_encoder" in caplog.text
    pipe.set_adapters(["style"], [0.5])
    pipe.fuse_lora()
    torch.testing.assert_close(pipe.unet.get_submodule(name).base_layer.weight, before + 1.0)
