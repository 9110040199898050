"""The same pipeline on CogVideoX, and on backbones that make videos from text alone."""

from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
)

from sememe.backbones.autoencoder import clips_to_video, encode_video
from sememe.errors import InputError, ModelError
from sememe.video import Clip, resize_clip
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from video_as_prompt import cogvideox_factories
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline


def generate(pipe: VideoAsPromptPipeline, seed: int = 1, **changes: Any) -> torch.Tensor:
    arguments: dict[str, Any] = {"image": make_picture(), "references": [make_clip()], "output_type": "latent"}
    return pipe(**(arguments | {"generator": torch.Generator().manual_seed(seed)} | changes)).frames


def test_a_clip_comes_out_of_cogvideox_and_every_input_matters() -> None:
    pipe = make_cogvideox_pipeline(reference_guidance_scale=2.0)
    clip = pipe(make_picture(), [make_clip()], generator=torch.Generator().manual_seed(1)).clips[0]
    assert clip.frames.shape == (9, 32, 48, 3)
    base = generate(pipe)
    assert torch.equal(base, generate(pipe))
    for change in (
        {"seed": 2},
        {"references": [make_clip(seed=1)]},
        {"image": make_picture(seed=51)},
        {"prompt": "a red ball"},
        {"reference_prompts": "melts"},
        {"references": [make_clip(), make_clip(seed=1)]},
        {"negative_references": [make_clip(seed=1)]},
        {"reference_strength": 0.5},
        {"use_dynamic_cfg": True, "guidance_scale": 6.0, "negative_prompt": "blurry"},
    ):
        assert not torch.allclose(generate(pipe, **change), base, atol=1e-5), change


def test_batching_and_batches_change_rounding_only() -> None:
    pipe = make_cogvideox_pipeline(guidance_scale=4.0, reference_guidance_scale=3.0, negative_prompt="blurry")
    base = generate(pipe)
    torch.testing.assert_close(generate(pipe, batching="batched"), base, atol=1e-4, rtol=1e-4)
    pictures = [make_picture(), make_picture(51)]
    generators = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]
    both = generate(pipe, image=pictures, generator=generators)
    torch.testing.assert_close(both[:1], base, atol=1e-4, rtol=1e-4)


def test_a_refreshed_reference_on_cogvideox() -> None:
    pipe = make_cogvideox_pipeline(num_inference_steps=3)
    exact = generate(pipe)
    assert torch.equal(exact, generate(pipe, approximate=True, reference_refresh=1))
    assert not torch.allclose(exact, generate(pipe, approximate=True, reference_refresh=3), atol=1e-6)
    with pytest.raises(InputError, match="reference_refresh"):
        generate(pipe, approximate=True)


def test_sampled_latents_follow_the_generator_and_the_mode_does_not() -> None:
    pipe = make_cogvideox_pipeline(num_inference_steps=1)
    noise = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(5))
    assert torch.equal(generate(pipe, seed=1, latents=noise), generate(pipe, seed=2, latents=noise))
    drawn = [generate(pipe, seed=seed, latents=noise, official_quirks=["sampled_latents"]) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2], atol=1e-6)


def test_under_the_quirk_noise_has_frames_before_channels() -> None:
    pipe = make_cogvideox_pipeline()
    expected = torch.randn(1, 2, 4, 4, 6, generator=torch.Generator().manual_seed(3)).transpose(1, 2)
    drawn = pipe.family.draw_noise((1, 4, 2, 4, 6), torch.Generator().manual_seed(3), frames_first=True)
    assert torch.equal(drawn, expected)


def test_learned_positions_make_one_size_only(caplog: pytest.LogCaptureFixture) -> None:
    pipe = make_cogvideox_pipeline(learned=True)
    assert generate(pipe).shape == (1, 4, 3, 4, 6)
    with pytest.raises(InputError, match="32x48 pixels only, got 48x48"):
        generate(pipe, height=48)
    assert not caplog.messages
    generate(pipe, num_frames=17)
    assert "learned positions for 9 frames; for 17" in caplog.text


def test_cogvideox_makes_pairs_of_latent_frames_behind_the_first() -> None:
    pipe = make_cogvideox_pipeline()
    with pytest.raises(InputError, match="1 more than a multiple of 8 for this model, got 5; the nearest is 9"):
        pipe(make_picture(), [make_clip()], num_frames=5)
    assert generate(pipe, num_frames=5).shape == (1, 4, 2, 4, 6), "latents need not be decoded"
    for num_frames in (1, 9, 17):
        out = pipe(make_picture(), [make_clip()], num_frames=num_frames)
        assert out.clips[0].num_frames == num_frames


def test_each_backbone_refuses_the_other_kind_of_scheduler() -> None:
    cogvideox, wan = make_cogvideox_pipeline(), make_pipeline()
    cogvideox.scheduler, wan.scheduler = FlowMatchEulerDiscreteScheduler(), cogvideox.scheduler
    with pytest.raises(InputError, match="v-prediction"):
        generate(cogvideox)
    with pytest.raises(InputError, match="flow matching"):
        generate(wan)


def test_the_dpm_scheduler_works() -> None:
    pipe = make_cogvideox_pipeline(num_inference_steps=3)
    base = generate(pipe)
    pipe.scheduler = CogVideoXDPMScheduler.from_config(pipe.scheduler.config)
    other = generate(pipe)
    assert other.isfinite().all()
    assert not torch.allclose(other, base, atol=1e-5)


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_text_to_video_takes_a_reference_and_no_picture(family: str) -> None:
    pipe = make_pipeline(vae="wan", in_channels=4) if family == "wan" else make_cogvideox_pipeline(takes_image=False)
    assert not pipe.family.takes_image
    base = generate(pipe, image=None, prompt="a cat")
    assert base.shape == (1, 4, 2 if family == "wan" else 3, 4, 6)
    assert not torch.allclose(base, generate(pipe, image=None, prompt="a cat", references=[make_clip(1)]), atol=1e-5)
    assert generate(pipe, image=None, prompt=["a cat", "a red ball"]).shape[0] == 2
    with pytest.raises(InputError, match="text alone"):
        generate(pipe, prompt="a cat")
    with pytest.raises(InputError, match="expected prompt as a text or a list of texts, got an empty list"):
        generate(pipe, image=None, prompt=[])


def make_ti2v_pipeline(attention_mode: str = "joint", **defaults: Any) -> VideoAsPromptPipeline:
    """As Wan2.2-TI2V: a picture or none, no condition channels, and a timestep for each token."""
    return make_pipeline(attention_mode, in_channels=4, expand_timesteps=True, **defaults)


@pytest.mark.parametrize("stock_class", [WanImageToVideoPipeline, WanPipeline])
def test_a_timestep_for_each_token_is_as_in_the_stock_pipelines(stock_class: Any) -> None:
    pipe = make_ti2v_pipeline(vae="wan", guidance_scale=3.0, negative_prompt="blurry", reference_guidance_scale=0.0)
    parts = {name: pipe.components[name] for name in ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")}
    stock = stock_class(**parts, expand_timesteps=True)
    stock.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 2, 4, 6, generator=torch.Generator().manual_seed(5))
    texts = {text: pipe.family.encode_texts([text], pipe.defaults) for text in ("a cat", "blurry")}
    has_image = stock_class is WanImageToVideoPipeline
    picture = resize_clip(Clip.from_image(make_picture()), 32, 48).frames[0]
    expected = stock(
        **({"image": PIL.Image.fromarray(picture)} if has_image else {}),
        prompt_embeds=texts["a cat"],
        negative_prompt_embeds=texts["blurry"],
        height=32,
        width=48,
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=3.0,
        latents=noise,
        output_type="latent",
    ).frames
    got = generate(pipe, image=picture if has_image else None, references=None, prompt="a cat", latents=noise)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention_mode", ["joint", "cached"])
def test_a_timestep_for_each_token_goes_with_references(attention_mode: str) -> None:
    pipe = make_ti2v_pipeline(attention_mode, reference_guidance_scale=2.0)
    base = generate(pipe)
    given = encode_video(pipe.vae, clips_to_video([resize_clip(Clip.from_image(make_picture()), 32, 48)]))
    torch.testing.assert_close(base[:, :, :1], given)
    later = [base, generate(pipe, image=None), generate(pipe, references=[make_clip(1)])]
    assert not torch.allclose(later[0][:, :, 1:], later[1][:, :, 1:], atol=1e-5)
    assert not torch.allclose(later[0][:, :, 1:], later[2][:, :, 1:], atol=1e-5)
    torch.testing.assert_close(generate(pipe, batching="batched"), base, atol=1e-4, rtol=1e-4)
    pictures = [make_picture(51), make_picture()]
    generators = [torch.Generator().manual_seed(2), torch.Generator().manual_seed(1)]
    torch.testing.assert_close(generate(pipe, image=pictures, generator=generators)[1:], base, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="last frame"):
        generate(pipe, last_image=make_picture())


def test_a_timestep_for_each_token_is_kept_on_disk(tmp_path: Path) -> None:
    pipe = make_ti2v_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    again = VideoAsPromptPipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(generate(again), generate(pipe))


def test_condition_channels_and_a_timestep_for_each_token_exclude_each_other() -> None:
    with pytest.raises(ModelError, match="expand_timesteps goes with Wan backbones that have no condition channels"):
        make_pipeline(expand_timesteps=True)


def test_a_last_frame_is_refused_where_it_cannot_be_told() -> None:
    with pytest.raises(InputError, match="last frame"):
        generate(make_cogvideox_pipeline(), last_image=make_picture())


def test_cogvideox_1_5_is_refused_by_name() -> None:
    transformer = cogvideox_factories.make_transformer(reference_timestep=None, **cogvideox_factories.GROUPED)
    pipe = make_cogvideox_pipeline()
    with pytest.raises(ModelError, match=r"patch_size_t and ofs_embed_dim is of CogVideoX 1\.5"):
        VideoAsPromptPipeline(**(pipe.components | {"transformer": transformer}))


def test_cogvideox_takes_its_own_number_of_text_tokens() -> None:
    with pytest.raises(InputError, match="exactly 8 text tokens"):
        generate(make_cogvideox_pipeline(), prompt="a cat", max_sequence_length=6)
