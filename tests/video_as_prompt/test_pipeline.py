"""Generation with tiny random models: what follows what, how often things run, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.callbacks import PipelineCallback, SDXLCFGCutoffCallback
from peft import LoraConfig, get_peft_model_state_dict

from sememe.backbones.autoencoder import clips_to_video, decode_latents
from sememe.backbones.first_frame import frame_condition
from sememe.backbones.text import encode_prompts
from sememe.errors import InputError, ModelError
from sememe.semanticgen.pipeline import SemanticGenPipeline
from sememe.video import Clip, resize_image
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.pipeline import VideoAsPromptOutput, VideoAsPromptPipeline
from sememe.video_as_prompt.references import ReferenceCache
from video_as_prompt.pipeline_factories import make_clip, make_picture, make_pipeline


def run(pipe: VideoAsPromptPipeline, seed: int = 1, **changes: Any) -> VideoAsPromptOutput:
    arguments: dict[str, Any] = {"image": make_picture(), "references": [make_clip()]}
    return pipe(**(arguments | {"generator": torch.Generator().manual_seed(seed)} | changes))


def count_calls(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    original = getattr(module, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)
    return calls


@pytest.fixture(scope="module")
def shared_pipe() -> VideoAsPromptPipeline:
    """For tests that leave it as it is."""
    return make_pipeline()


@pytest.mark.parametrize(("mode", "vae"), [("cached", "wan"), ("joint", "linear")])
def test_a_clip_comes_out_and_the_seed_decides(mode: str, vae: str) -> None:
    pipe = make_pipeline(mode, vae)
    first, again, other = run(pipe), run(pipe), run(pipe, seed=2)
    assert first.clips[0].frames.shape == (5, 32, 48, 3)
    assert first.clips[0].fps == 8.0
    assert first.clips[0] == again.clips[0]
    assert np.array_equal(first.frames, again.frames)
    assert first.clips[0] != other.clips[0]


@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_every_input_matters(mode: str) -> None:
    pipe = make_pipeline(mode, reference_guidance_scale=2.0)
    base = run(pipe, output_type="latent").frames
    for change in (
        {"references": [make_clip(seed=1)]},
        {"image": make_picture(seed=51)},
        {"prompt": "a red ball"},
        {"reference_prompts": "melts"},
        {"reference_guidance_scale": 3.0},
        {"references": [make_clip(), make_clip(seed=1)]},
        {"reference_sampling": "first"},
        {"num_inference_steps": 3},
        {"negative_prompt": "blurry", "guidance_scale": 3.0},
    ):
        changed = run(pipe, output_type="latent", **change).frames
        assert changed.shape == base.shape
        assert not torch.allclose(changed, base, atol=1e-5), change


def test_the_reference_is_encoded_once_and_every_step_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipeline(num_inference_steps=4, reference_guidance_scale=2.0)
    embeddings = count_calls(pipe.transformer.expert_embedder, "forward", monkeypatch)
    passes = [count_calls(block.expert, "forward", monkeypatch) for block in pipe.transformer.blocks]
    run(pipe)
    assert len(embeddings) == 1
    assert [len(calls) for calls in passes] == [1, 1, 1]
    run(pipe, image=[make_picture(1), make_picture(2)], references=[[make_clip(1)], [make_clip(2)]])
    assert [len(calls) for calls in passes] == [2, 2, 2]


@pytest.mark.parametrize(
    ("changes", "per_step"),
    [
        ({}, 1),
        ({"reference_guidance_scale": 0.0}, 1),
        ({"guidance_scale": 5.0}, 1),  # positive and negative prompt are equal
        ({"reference_guidance_scale": 3.0}, 2),
        ({"reference_guidance_scale": 3.0, "negative_prompt": "blurry"}, 2),  # text guidance is off
        ({"guidance_scale": 5.0, "negative_prompt": "blurry"}, 2),
        ({"guidance_scale": 5.0, "negative_prompt": "blurry", "batching": "batched"}, 1),
        ({"guidance_scale": 5.0, "negative_prompt": "blurry", "reference_guidance_scale": 3.0}, 3),
        (
            {
                "guidance_scale": 5.0,
                "negative_prompt": "blurry",
                "reference_guidance_scale": 3.0,
                "batching": "batched",
            },
            2,
        ),
    ],
)
def test_forwards_per_step(
    changes: dict[str, Any], per_step: int, shared_pipe: VideoAsPromptPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = count_calls(shared_pipe.transformer, "forward", monkeypatch)
    run(shared_pipe, **changes, output_type="latent")
    assert len(forwards) == 2 * per_step


@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_batching_changes_rounding_only(mode: str) -> None:
    pipe = make_pipeline(mode)
    settings: dict[str, Any] = {"guidance_scale": 4.0, "reference_guidance_scale": 3.0, "negative_prompt": "blurry"}
    results = [
        run(pipe, output_type="latent", batching=batching, **settings).frames for batching in ("sequential", "batched")
    ]
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_without_a_reference_it_is_the_stock_backbone() -> None:
    pipe = make_pipeline(vae="wan")
    result = run(pipe, references=None, reference_guidance_scale=0.0, prompt="a cat", output_type="latent").frames

    stock = WanTransformer3DModel(
        **{
            key: value
            for key, value in pipe.transformer.config.items()
            if not key.startswith("_") and key not in WanVideoAsPromptTransformer.own_settings
        }
    ).eval()
    tensors = pipe.transformer.state_dict()
    stock.load_state_dict({key: tensors[key] for key in stock.state_dict()})
    latents = torch.randn(1, 4, 2, 4, 6, generator=torch.Generator().manual_seed(1))
    picture = clips_to_video([Clip.from_image(resize_image(make_picture(), 32, 48))])[:, :, 0]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(2)
    with torch.no_grad():
        condition = frame_condition(pipe.vae, picture, 5)
        text = encode_prompts(pipe.tokenizer, pipe.text_encoder, ["a cat"])
        for timestep in scheduler.timesteps:
            velocity = stock(torch.cat([latents, condition], dim=1), timestep.expand(1), text).sample
            latents = scheduler.step(velocity, timestep, latents).prev_sample
    assert torch.equal(result, latents)


@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_an_encoded_reference_serves_many_pictures(mode: str) -> None:
    pipe = make_pipeline(mode)
    encoded = pipe.encode_reference([make_clip()], ["melts"])
    direct = run(pipe, reference_prompts="melts", output_type="latent").frames
    assert torch.equal(run(pipe, references=encoded, output_type="latent").frames, direct)

    pictures = [make_picture(1), make_picture(2)]
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    both = run(pipe, image=pictures, references=encoded, generator=generators, output_type="latent").frames
    for index in range(2):
        alone = run(pipe, 5 + index, image=pictures[index], references=encoded, output_type="latent").frames
        torch.testing.assert_close(both[index], alone[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_a_batch_has_its_own_references_and_prompts(mode: str) -> None:
    pipe = make_pipeline(mode)
    pictures, prompts = [make_picture(1), make_picture(2)], ["a cat", "a ball"]
    lists = [[make_clip(1), make_clip(2)], [make_clip(3), make_clip(4)]]
    captions = [["melts", ""], ["", "red"]]

    def seeds() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (5, 6)]

    settings: dict[str, Any] = {"guidance_scale": 3.0, "negative_prompt": "blurry", "output_type": "latent"}
    settings |= {"reference_guidance_scale": 2.0, "batching": "batched"}
    batch = pipe(pictures, lists, prompts, reference_prompts=captions, generator=seeds(), **settings).frames
    mixed = [pipe.encode_reference(lists[0], captions[0]), pipe.encode_reference(lists[1], captions[1])]
    torch.testing.assert_close(pipe(pictures, mixed, prompts, generator=seeds(), **settings).frames, batch)
    for index in range(2):
        alone = pipe(
            pictures[index],
            lists[index],
            prompts[index],
            reference_prompts=captions[index],
            generator=seeds()[index],
            **settings,
        ).frames
        torch.testing.assert_close(batch[index], alone[0], atol=1e-4, rtol=1e-4)


def test_images_of_every_kind_are_one() -> None:
    pipe = make_pipeline()
    picture = make_picture()
    results = [
        run(pipe, image=image).clips[0]
        for image in (picture, PIL.Image.fromarray(picture), Clip.from_image(picture), [picture])
    ]
    assert all(result == results[0] for result in results)
    opaque = PIL.Image.fromarray(picture).convert("RGBA")
    assert run(pipe, image=opaque).clips[0] == results[0]


def test_output_types_agree() -> None:
    pipe = make_pipeline()
    clip = run(pipe).clips[0]
    outputs = {kind: run(pipe, output_type=kind) for kind in ("np", "pt", "pil", "latent")}
    assert outputs["np"].frames.shape == (1, 5, 32, 48, 3)
    assert outputs["pt"].frames.shape == (1, 5, 3, 32, 48)
    assert np.abs(outputs["np"].frames[0] * 255 - clip.frames).max() <= 0.51
    assert np.allclose(outputs["pt"].frames.permute(0, 1, 3, 4, 2).numpy(), outputs["np"].frames)
    assert np.array_equal(np.asarray(outputs["pil"].frames[0][3]), clip.frames[3])
    assert outputs["latent"].clips == []
    with torch.no_grad():
        video = decode_latents(pipe.vae, outputs["latent"].frames)
    assert np.allclose((video[0].permute(1, 2, 3, 0).numpy() + 1) / 2, outputs["np"].frames[0], atol=1e-6)


def test_habits_of_diffusers() -> None:
    pipe = make_pipeline()
    clip = make_clip()
    record = run(pipe, output_type="latent")
    images = [PIL.Image.fromarray(frame) for frame in clip.frames]
    for references in (images, [images]):
        output: Any = run(pipe, references=references, output_type="latent", return_dict=False)
        (frames,) = output
        assert torch.equal(frames, record.frames)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    twice = run(pipe, generator=generators, num_videos_per_prompt=2, output_type="latent").frames
    torch.testing.assert_close(twice, torch.cat([record.frames, run(pipe, 2, output_type="latent").frames]))
    with pytest.raises(InputError, match="num_videos_per_prompt of at least 1"):
        run(pipe, num_videos_per_prompt=0)

    class Fade(PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012 (as diffusers declares it)

        def callback_fn(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            return {"latents": tensors["latents"] * (step < pipeline.num_timesteps - 1)}

    assert not run(pipe, callback_on_step_end=Fade(cutoff_step_ratio=1.0), output_type="latent").frames.any()
    with pytest.raises(InputError, match="got 'add_text_embeds'"):
        run(pipe, callback_on_step_end=SDXLCFGCutoffCallback(cutoff_step_ratio=0.5))


def test_given_latents_replace_the_noise() -> None:
    pipe = make_pipeline(vae="wan")
    noise = torch.randn(1, 4, 2, 4, 6, generator=torch.Generator().manual_seed(1))
    expected = run(pipe, output_type="latent").frames
    assert torch.equal(run(pipe, latents=noise, generator=None, output_type="latent").frames, expected)
    with pytest.raises(InputError, match=r"latents of shape \(1, 4, 2, 4, 6\)"):
        run(pipe, latents=noise[:, :, :1])


def test_the_callback_is_told_and_may_change_the_latents() -> None:
    pipe, seen = make_pipeline(vae="wan"), []

    def watch(given: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((given, step, tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    result = run(pipe, callback_on_step_end=watch, output_type="latent").frames
    assert seen == [(pipe, step, (1, 4, 2, 4, 6)) for step in (0, 1)]
    assert not result.any()


def test_settings_are_resolved_and_reported() -> None:
    pipe = make_pipeline(negative_prompt="blurry", guidance_scale=3.0)
    output = run(pipe, num_frames=9, reference_guidance_scale=2.0)
    assert output.settings == pipe.defaults.override(num_frames=9, reference_guidance_scale=2.0)
    assert output.guidance == [
        {"text": "negative", "reference": "none", "weight": -1.0},
        {"text": "negative", "reference": "given", "weight": -1.0},
        {"text": "positive", "reference": "given", "weight": 3.0},
    ]


def test_other_sizes_and_lengths_work() -> None:
    result = run(make_pipeline(), height=48, width=32, num_frames=9)
    assert result.clips[0].frames.shape == (9, 48, 32, 3)


def test_schedulers_can_be_swapped() -> None:
    pipe = make_pipeline()
    euler = run(pipe, output_type="latent").frames
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    assert not torch.equal(run(pipe, output_type="latent", num_inference_steps=3).frames, euler)
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(InputError, match="flow matching"):
        run(pipe)


def test_low_precision_stays_close() -> None:
    expected = run(make_pipeline(), output_type="latent").frames
    low = make_pipeline()
    autocast = run(low, autocast="bfloat16", output_type="latent").frames
    low.transformer.to(torch.bfloat16)
    low.text_encoder.to(torch.bfloat16)
    converted = run(low, output_type="latent").frames
    for frames in (autocast, converted):
        assert frames.dtype == torch.float32
        assert not torch.equal(frames, expected)
        assert (frames - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_backbone_with_clip_embeddings_reads_512_text_tokens() -> None:
    pipe = make_pipeline(clip=True)
    with pytest.raises(InputError, match="512 text tokens"):
        run(pipe, max_sequence_length=64)


def test_clip_sees_first_frames_and_its_last_layer_but_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipeline("joint", clip=True)
    clip = make_clip(height=32, width=48, num_frames=5)
    family, seen = pipe.family, dict[str, list[Any]]()
    for name in ("encode_pictures", "encode_condition"):
        method = getattr(family, name)

        def spy(*given: Any, _name: str = name, _method: Any = method) -> Any:
            seen.setdefault(_name, []).append(given)
            seen.setdefault(f"{_name} result", []).append(_method(*given))
            return seen[f"{_name} result"][-1]

        monkeypatch.setattr(family, name, spy)
    layers = [each for each in pipe.image_encoder.modules() if type(each).__name__ == "CLIPEncoderLayer"]
    outputs: list[torch.Tensor] = []
    layers[-2].register_forward_hook(lambda _, given, output: outputs.append(output))
    pipe.encode_reference([clip])
    ((pictures,),) = seen["encode_pictures"]
    assert np.array_equal(pictures, [[clip.frames[0]]])
    ((images, last_images, num_frames, _),) = seen["encode_condition"]
    assert torch.equal(images, clips_to_video([clip])[:, :, 0])
    assert (last_images, num_frames) == (None, 5)
    assert torch.equal(seen["encode_pictures result"][0], torch.as_tensor(outputs[0]))


def test_a_processor_of_another_encoder_is_refused() -> None:
    pipe = make_pipeline("joint", clip=True)
    pipe.image_processor.crop_size = {"height": 8, "width": 12}
    with pytest.raises(ModelError, match=r"pictures of 16x16 pixels.*it gives 12x8"):
        pipe.encode_reference([make_clip(height=32, width=48, num_frames=5)])


def test_model_offload_moves_components_in_turn() -> None:
    pipe = make_pipeline()
    expected = run(pipe).clips[0]
    pipe.enable_model_cpu_offload(device="cpu")
    assert run(pipe).clips[0] == expected
    assert run(pipe, references=pipe.encode_reference(make_clip())).clips[0] == expected


def test_sequential_offload_gives_the_same_clip() -> None:
    pipe = make_pipeline()
    expected = run(pipe).clips[0]
    # What enable_sequential_cpu_offload does, which itself needs an accelerator.
    for component in (pipe.text_encoder, pipe.transformer, pipe.vae):
        cpu_offload(component, torch.device("cpu"), offload_buffers=True)
    assert pipe.vae.device.type == "meta"
    assert run(pipe).clips[0] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"references": []}, "at least one reference clip.*reference_guidance_scale=0"),
        ({"references": None}, "at least one reference clip"),
        ({"references": [Clip(np.zeros((1, 8, 8, 3), np.uint8), 8.0)]}, "at least 2 frames, got 1"),
        ({"references": ["clip.mp4"]}, "as a Clip.*got str"),
        ({"references": "clip.mp4"}, "got str"),
        ({"references": [[make_clip()], [make_clip()]]}, "got 2 for 1 pictures"),
        ({"references": [[]]}, "an empty list"),
        ({"references": np.zeros((9, 8, 8, 3), np.uint8)}, "got ndarray"),
        (
            {"negative_references": np.zeros((9, 8, 8, 3), np.uint8), "reference_guidance_scale": 2.0},
            "as a Clip .* got ndarray",
        ),
        ({"image": []}, "at least one picture"),
        ({"image": make_clip()}, "clip of 9 frames"),
        ({"image": "picture.png"}, "got str"),
        ({"image": np.zeros((8, 8), np.uint8)}, "height, width, 3"),
        ({"image": np.zeros((8, 8, 3))}, "uint8"),
        ({"num_frames": 16}, "nearest is 17"),
        ({"num_frames": 0}, "num_frames of at least 1"),
        ({"height": 33}, "nearest is 32"),
        ({"width": -8}, "width of at least 1"),
        ({"guidance_scale": -1.0}, "guidance_scale of at least 0"),
        ({"reference_guidance_scale": -1.0}, "reference_guidance_scale of at least 0"),
        ({"num_inference_steps": 0}, "num_inference_steps of at least 1"),
        ({"prompt": ["a", "b"]}, "one prompt per picture, got 2 for 1"),
        ({"prompt": None}, "prompt as a text"),
        ({"reference_prompts": ["a", "b"]}, "one reference_prompts per reference, got 2 for 1"),
        ({"output_type": "mp4"}, "output_type"),
        ({"batching": "both"}, "batching must be one of"),
        ({"reference_sampling": "random"}, "sampling"),
        ({"fps": 0.0}, "fps above 0"),
        ({"max_sequence_length": -1}, "max_sequence_length of at least 1, got -1"),
        ({"generator": []}, "one generator per picture"),
        ({"reference_strenght": 0.5}, "nearest is reference.reference_strength"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "got 'noise'"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    changes: dict[str, Any], message: str, shared_pipe: VideoAsPromptPipeline
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        run(shared_pipe, **changes)
    assert "\n" not in str(caught.value)


def test_encoded_references_must_fit_the_call() -> None:
    pipe = make_pipeline()
    encoded = pipe.encode_reference(make_clip())
    with pytest.raises(InputError, match="32x48, but the result is to be 48x32"):
        run(pipe, references=encoded, height=48, width=32)
    with pytest.raises(InputError, match="no effect on encoded references"):
        run(pipe, references=encoded, reference_prompts="melts")
    two = [make_picture(1), make_picture(2)]
    with pytest.raises(InputError, match="same number of references"):
        run(pipe, image=two, references=[[make_clip()], [make_clip(), make_clip(1)]])
    with pytest.raises(InputError, match="nearest is 5"):
        pipe.encode_reference(make_clip(), num_frames=4)


def test_a_two_way_model_can_be_run_from_an_approximate_cache() -> None:
    pipe = make_pipeline("joint")
    exact = run(pipe, output_type="latent").frames
    encoded = pipe.encode_reference(make_clip(), approximate=True)
    assert isinstance(encoded.payload, ReferenceCache)
    approximate = run(pipe, references=encoded, output_type="latent").frames
    assert 1e-6 < (approximate - exact).abs().max() < 0.5 * exact.abs().max()
    assert run(pipe, references=encoded).settings.experimental.approximate, "the record says what the result is"
    assert not run(pipe).settings.experimental.approximate
    with pytest.raises(InputError, match="reference_refresh has no effect"):
        run(pipe, references=encoded, approximate=True, reference_refresh=1)
    with pytest.raises(InputError, match="approximate has no effect"):
        run(pipe, references=pipe.encode_reference(make_clip()), approximate=True)


def test_lora_weights_of_the_backbone_load(tmp_path: Path) -> None:
    pipe = make_pipeline()
    plain = run(pipe, output_type="latent").frames
    pipe.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=r"blocks\.\d+\.(attn1\.to_q|ffn\.net\.2)")
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in pipe.transformer.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    expected = run(pipe, output_type="latent").frames
    assert not torch.allclose(expected, plain, atol=1e-3)
    pipe.save_lora_weights(tmp_path, get_peft_model_state_dict(pipe.transformer))

    other = make_pipeline()
    other.load_lora_weights(tmp_path)
    torch.testing.assert_close(run(other, output_type="latent").frames, expected)
    other.unload_lora_weights()
    torch.testing.assert_close(run(other, output_type="latent").frames, plain)


def test_from_pipe_shares_components() -> None:
    pipe = make_pipeline(num_inference_steps=3)
    made = VideoAsPromptPipeline.from_pipe(pipe, scheduler=UniPCMultistepScheduler(flow_shift=2.0))
    assert made.transformer is pipe.transformer
    assert (made.defaults, type(made.scheduler)) == (pipe.defaults, UniPCMultistepScheduler)
    with pytest.raises(InputError, match="no compressor, planner, semantic_encoder; give what is missing"):
        SemanticGenPipeline.from_pipe(pipe)
    with pytest.raises(InputError, match="expected components of the pipeline, got unet"):
        VideoAsPromptPipeline.from_pipe(pipe, unet=None)
