"""Negative references, last frames, interruption, dynamic guidance, and the official pipelines' quirks."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig

from sememe.compute.placement import apply_offload
from sememe.errors import InputError
from sememe.video import Clip
from sememe.video_as_prompt.conditioning import ConditionEncoder
from sememe.video_as_prompt.guidance import video_as_prompt_guidance
from sememe.video_as_prompt.inputs import check_references, make_request
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.quirks import stretch_clip
from sememe.video_as_prompt.references import ReferenceCache, ReferenceTokens
from sememe.video_as_prompt.settings import OFFICIAL_NEGATIVE_PROMPT
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline


def generate(pipe: VideoAsPromptPipeline, seed: int = 1, **changes: Any) -> torch.Tensor:
    arguments: dict[str, Any] = {"image": make_picture(), "references": [make_clip()], "output_type": "latent"}
    return pipe(**(arguments | {"generator": torch.Generator().manual_seed(seed)} | changes)).frames


@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_a_negative_reference_is_led_away_from(mode: str) -> None:
    pipe = make_pipeline(mode, reference_guidance_scale=3.0, num_inference_steps=1)
    base = generate(pipe)
    away = generate(pipe, negative_references=[make_clip(seed=1)])
    assert not torch.allclose(base, away, atol=1e-5)
    # The given reference as its own negative: what it adds is nothing, whatever the scale.
    same = generate(pipe, negative_references=[make_clip()])
    torch.testing.assert_close(same, generate(pipe, reference_guidance_scale=1.0), atol=1e-4, rtol=1e-4)


def test_a_negative_reference_without_effect_is_refused() -> None:
    pipe = make_pipeline()
    with pytest.raises(InputError, match="other than 0 and 1"):
        generate(pipe, negative_references=[make_clip()], reference_guidance_scale=1.0)


def test_the_last_frame_is_told_and_marked() -> None:
    pipe = make_pipeline()
    base = generate(pipe)
    told = generate(pipe, last_image=make_picture(seed=60))
    assert not torch.allclose(base, told, atol=1e-5)
    condition = pipe.family.encode_condition(torch.zeros(1, 3, 32, 48), torch.ones(1, 3, 32, 48), 5, None)
    assert condition is not None
    mask = condition[0, :4, :, 0, 0]
    assert torch.equal(mask, torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))
    with pytest.raises(InputError, match="one last_image per picture"):
        generate(pipe, last_image=[make_picture(), make_picture()])
    with pytest.raises(InputError, match="at least 2"):
        generate(pipe, last_image=make_picture(), num_frames=1)


def test_clip_reads_the_last_frame_behind_the_first() -> None:
    pipe = make_pipeline(clip=True)
    first, last = make_picture(1), make_picture(2)
    both = pipe.family.encode_pictures([[first, last]])
    single = [pipe.family.encode_pictures([[picture]]) for picture in (first, last)]
    assert both is not None
    torch.testing.assert_close(both, torch.cat(single, dim=1))  # type: ignore[arg-type]
    assert not torch.allclose(generate(pipe), generate(pipe, last_image=last), atol=1e-5)


@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_references_may_have_lengths_of_their_own(mode: str) -> None:
    pipe, clips = make_pipeline(mode), [make_clip(), make_clip(seed=1)]
    base = generate(pipe, references=clips)
    assert torch.equal(base, generate(pipe, references=clips, num_reference_frames=5))
    assert torch.equal(base, generate(pipe, references=clips, num_reference_frames=[5, 5]))
    assert not torch.allclose(base, generate(pipe, references=clips, num_reference_frames=[9, 5]), atol=1e-5)
    encoded = pipe.encode_reference(clips, num_reference_frames=[9, 5])
    longer = generate(pipe, references=clips, num_reference_frames=[9, 5])
    torch.testing.assert_close(generate(pipe, references=encoded), longer)
    with pytest.raises(InputError, match="num_reference_frames for 2 references, got 3"):
        generate(pipe, references=clips, num_reference_frames=[5, 5, 5])
    with pytest.raises(InputError, match="num_reference_frames must be 1 more than a multiple of 4"):
        generate(pipe, references=clips, num_reference_frames=6)


@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_references_may_have_a_grid_of_their_own(mode: str) -> None:
    pipe = make_pipeline(mode)
    size: dict[str, Any] = {"height": 32, "width": 64}
    plain, half = generate(pipe, **size), generate(pipe, **size, reference_downscale=2)
    assert torch.equal(plain, generate(pipe, **size, reference_downscale=1))
    assert not torch.allclose(plain, half, atol=1e-5)
    encoded = pipe.encode_reference(make_clip(), **size, reference_downscale=2)
    torch.testing.assert_close(generate(pipe, **size, references=encoded), half)
    whole = pipe.encode_reference(make_clip(), **size)
    assert count_tokens(whole.payload) == 4 * count_tokens(encoded.payload)

    short = {"num_frames": 9, "num_reference_frames": 5}
    dense, spread = generate(pipe, **short), generate(pipe, **short, reference_positions="spread")
    assert not torch.allclose(dense, spread, atol=1e-5)
    full = generate(pipe, num_frames=9)
    torch.testing.assert_close(generate(pipe, num_frames=9, reference_positions="spread"), full, atol=1e-4, rtol=1e-4)


def test_encoded_references_of_one_batch_must_lie_at_equal_positions() -> None:
    pipe = make_pipeline("joint", num_frames=9)
    options: dict[str, Any] = {"num_reference_frames": 5, "reference_positions": "spread"}
    spread = [pipe.encode_reference(make_clip(seed), **options) for seed in (0, 1)]
    dense = pipe.encode_reference(make_clip(), num_reference_frames=5)
    images = [make_picture(), make_picture(1)]
    assert generate(pipe, image=images, references=spread).shape[0] == 2
    with pytest.raises(InputError, match="encoded with one reference_positions, got dense and spread"):
        generate(pipe, image=images, references=[dense, spread[0]])
    # Clips beside an encoded reference are laid out as it is.
    short = generate(pipe, image=images, references=[[make_clip()], [make_clip(1)]], **options)
    mixed = generate(pipe, image=images, references=[spread[0], [make_clip(1)]], num_reference_frames=5)
    torch.testing.assert_close(mixed, short)


def test_the_record_says_how_an_encoded_reference_was_made() -> None:
    pipe = make_pipeline("cached", num_frames=9, height=64, width=64)
    options: dict[str, Any] = {"num_reference_frames": 5, "reference_positions": "spread", "reference_downscale": 2}
    encoded = pipe.encode_reference(make_clip(), **options)
    given: dict[str, Any] = {"image": make_picture(), "references": encoded, "output_type": "latent"}
    settings = pipe(**given).settings.experimental
    assert (settings.reference_positions, settings.reference_downscale) == ("spread", 2)
    assert pipe(**given, reference_downscale=2).settings.experimental.reference_downscale == 2
    with pytest.raises(InputError, match="made with reference_downscale 2, but the generation has 4"):
        pipe(**given, reference_downscale=4)
    with pytest.raises(InputError, match="made with num_reference_frames 5, but the generation has 9"):
        pipe(**given, num_reference_frames=9)
    with pytest.raises(InputError, match="made with reference_sampling even, but the generation has first"):
        pipe(**given, reference_sampling="first")
    assert pipe(**given, num_reference_frames=5).settings.reference.num_reference_frames == 5
    with pytest.raises(InputError, match="made for 9 frames, but the result is to have 5"):
        pipe(**given, num_frames=5)


def count_tokens(record: ReferenceCache | ReferenceTokens | None) -> int:
    assert record is not None
    return (record.keys[0] if isinstance(record, ReferenceCache) else record.hidden_states).shape[1]


def test_grids_that_do_not_fit_are_refused() -> None:
    pipe = make_pipeline(vae="wan")
    with pytest.raises(InputError, match="needs a width that is a multiple of 32, got 48"):
        generate(pipe, reference_downscale=2)
    with pytest.raises(InputError, match="reference_downscale of at least 1"):
        generate(pipe, reference_downscale=0)
    with pytest.raises(InputError, match="reference_positions"):
        generate(pipe, reference_positions="somewhere")
    with pytest.raises(InputError, match="not supported on cogvideox"):
        generate(make_cogvideox_pipeline(), reference_positions="spread")


@pytest.mark.parametrize(("mode", "batching"), [("cached", "sequential"), ("joint", "batched")])
def test_kept_texts_change_nothing(mode: str, batching: str) -> None:
    pipe = make_pipeline(mode, clip=True, batching=batching, guidance_scale=3.0, reference_guidance_scale=2.0)
    inputs: dict[str, Any] = {"prompt": "a cat", "image": [make_picture(), make_picture(1)]}
    inputs |= {"generator": [torch.Generator().manual_seed(seed) for seed in (1, 2)]}
    kept = generate(pipe, **inputs)
    inputs |= {"generator": [torch.Generator().manual_seed(seed) for seed in (1, 2)]}
    assert torch.equal(kept, generate(pipe, **inputs, text_keys="recomputed"))


def test_an_interrupted_generation_ends_with_what_it_has() -> None:
    pipe, steps = make_pipeline(num_inference_steps=4), []

    def interrupt(given: VideoAsPromptPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> None:
        steps.append(tensors["latents"].clone())
        given.interrupt = step == 1

    result = generate(pipe, callback_on_step_end=interrupt)
    assert len(steps) == 2
    assert torch.equal(result, steps[-1])
    assert len(steps) == 2
    assert not torch.equal(generate(pipe), result), "the next generation runs to its end"


@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_strength_goes_from_the_backbone_to_the_model(mode: str) -> None:
    pipe = make_pipeline(mode)
    exact, half, stock = generate(pipe), generate(pipe, reference_strength=0.5), generate(pipe, reference_strength=0.0)
    assert torch.equal(exact, generate(pipe, reference_strength=1.0))
    assert torch.equal(stock, generate(pipe, references=None, reference_guidance_scale=0.0))
    assert not torch.allclose(half, exact, atol=1e-5)
    assert not torch.allclose(half, stock, atol=1e-5)
    # As it goes to its ends, so does the result.
    near = [generate(pipe, reference_strength=strength) for strength in (1e-6, 1.0 - 1e-6)]
    torch.testing.assert_close(near[0], stock, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(near[1], exact, atol=1e-3, rtol=1e-3)
    with pytest.raises(InputError, match="reference_strength of at most 1"):
        generate(pipe, reference_strength=1.5)


def test_a_reference_that_is_refreshed_at_every_step_is_exact() -> None:
    pipe = make_pipeline("joint", num_inference_steps=4, reference_guidance_scale=2.0)
    exact = generate(pipe)
    assert torch.equal(exact, generate(pipe, approximate=True, reference_refresh=1))
    first_only = generate(pipe, approximate=True, reference_refresh=4)
    alone = generate(pipe, approximate=True)
    assert not torch.allclose(first_only, exact, atol=1e-6)
    assert not torch.allclose(alone, first_only, atol=1e-6)
    assert not torch.allclose(alone, generate(pipe, reference_guidance_scale=0.0), atol=1e-5)


def test_the_reference_is_carried_along_at_the_refreshing_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, carried = make_pipeline("joint", num_inference_steps=5), []
    original = pipe.transformer.refresh_reference

    def counted(*args: Any, **kwargs: Any) -> Any:
        carried.append(float(args[1][0]))
        return original(*args, **kwargs)

    monkeypatch.setattr(pipe.transformer, "refresh_reference", counted)
    generate(pipe, approximate=True, reference_refresh=2)
    timesteps = [float(timestep) for timestep in pipe.scheduler.timesteps]
    assert carried == timesteps[::2]


def test_approximations_without_effect_are_refused() -> None:
    with pytest.raises(InputError, match="trained one-way"):
        generate(make_pipeline("cached"), approximate=True)
    with pytest.raises(InputError, match="approximate=True"):
        generate(make_pipeline("joint"), reference_refresh=2)
    with pytest.raises(InputError, match="reference_refresh of at least 1"):
        generate(make_pipeline("joint"), approximate=True, reference_refresh=0)


def test_what_is_said_of_no_reference_is_refused() -> None:
    pipe = make_pipeline("joint", num_inference_steps=1)
    changes: dict[str, Any]
    for changes, message in (
        ({"reference_prompts": "melts"}, "reference_prompts have no effect"),
        ({"reference_prompts": [["melts"]]}, "reference_prompts have no effect"),
        ({"reference_strength": 0.5}, "reference_strength has no effect"),
        ({"approximate": True}, "approximate has no effect"),
        ({"approximate": True, "reference_refresh": 2}, "approximate has no effect"),
        ({"negative_references": [make_clip()]}, "negative_references has no effect"),
    ):
        for references in (None, [make_clip()]):
            with pytest.raises(InputError, match=message):
                generate(pipe, references=references, reference_guidance_scale=0.0, **changes)
    generate(pipe, references=None, reference_guidance_scale=0.0, reference_prompts=[""])


def test_the_record_says_whether_texts_were_kept() -> None:
    def text_keys(pipe: VideoAsPromptPipeline, **settings: Any) -> str:
        given: dict[str, Any] = {"image": make_picture(), "references": [make_clip()], "output_type": "latent"}
        return str(pipe(**given, **settings).settings.execution.text_keys)

    pipe = make_pipeline(num_inference_steps=1)
    assert text_keys(pipe) == "kept"
    assert text_keys(pipe, text_keys="recomputed") == "recomputed"
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    assert text_keys(pipe) == "recomputed"
    grouped = make_pipeline(num_inference_steps=1)
    apply_offload(grouped, "group", "cpu")
    assert text_keys(grouped) == "recomputed"
    assert text_keys(make_cogvideox_pipeline(num_inference_steps=1)) == "recomputed"


def test_dynamic_guidance_goes_with_every_scale() -> None:
    pipe = make_pipeline(negative_prompt="blurry")
    for scale, reference_scale in ((3.0, 3.0), (3.0, 0.0), (1.0, 1.0), (0.0, 1.0)):
        given: dict[str, Any] = {
            "prompt": "a cat",
            "guidance_scale": scale,
            "reference_guidance_scale": reference_scale,
        }
        plain, dynamic = generate(pipe, **given), generate(pipe, **given, use_dynamic_cfg=True)
        assert torch.equal(plain, dynamic) == (scale <= 1.0), "guidance that is off stays off"


@pytest.mark.parametrize("batching", ["sequential", "batched"])
def test_what_variants_share_is_projected_once(batching: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipeline("joint", guidance_scale=3.0, reference_guidance_scale=2.0, negative_prompt="blurry")
    counts = dict.fromkeys(("cache_text", "cache_captions", "rotary_tables"), 0)
    built = []
    pipe.transformer.rope.register_forward_hook(lambda *_: built.append(1))

    def count(name: str) -> None:
        original = getattr(pipe.transformer, name)

        def counted(*args: Any) -> Any:
            counts[name] += 1
            return original(*args)

        monkeypatch.setattr(pipe.transformer, name, counted)

    for name in counts:
        count(name)
    # The negative text stands beside no reference and beside the given one, which both texts stand beside.
    generate(pipe, prompt="a cat", batching=batching)
    assert counts == {"cache_text": 2, "cache_captions": 1, "rotary_tables": 1}
    assert len(built) == 1, "positions are the same at every step"


def test_each_quirk_changes_the_result() -> None:
    pipe = make_pipeline("joint", clip=True, guidance_scale=3.0, negative_prompt="blurry", num_inference_steps=1)
    base = generate(pipe, reference_prompts="melts")
    assert torch.equal(base, generate(pipe, reference_prompts="melts", official_quirks=()))
    for quirk in ("stretched_frames", "uncropped_image_embeds", "negative_reference_prompt"):
        quirky = generate(pipe, reference_prompts="melts", official_quirks=[quirk])
        assert not torch.allclose(base, quirky, atol=1e-6), quirk


def test_the_official_negative_prompt_stands_where_there_is_none() -> None:
    pipe = make_pipeline(guidance_scale=3.0, num_inference_steps=1)
    quirk: dict[str, Any] = {"official_quirks": ["long_negative_prompt"]}
    quirky = generate(pipe, **quirk)
    assert torch.equal(quirky, generate(pipe, negative_prompt=OFFICIAL_NEGATIVE_PROMPT))
    assert not torch.allclose(quirky, generate(pipe), atol=1e-6)
    assert torch.equal(generate(pipe, negative_prompt="", **quirk), generate(pipe))
    stated = make_pipeline(guidance_scale=3.0, num_inference_steps=1, negative_prompt="blurry")
    assert torch.equal(generate(stated, **quirk), generate(stated))


def test_what_has_the_target_shape_already_is_not_stretched() -> None:
    picture = Clip.from_image(make_picture(height=32, width=48))
    assert np.array_equal(stretch_clip(picture, 32, 48).frames, picture.frames)
    # Stretching keeps what cropping loses: the left edge.
    clip = make_clip(height=32, width=96)
    clip.frames[:, :, :8] = 255
    assert stretch_clip(clip, 32, 48).frames[:, :, 0].mean() > 200


def test_under_the_quirk_the_reference_has_the_negative_prompt_too() -> None:
    pipe = make_pipeline("joint", guidance_scale=3.0, num_inference_steps=1)
    # The reference's own caption is the negative prompt: then the quirk has nothing to change.
    plain = generate(pipe, prompt="a cat", negative_prompt="blurry", reference_prompts="blurry")
    quirky = generate(
        pipe,
        prompt="blurry",
        negative_prompt="a cat",
        reference_prompts="blurry",
        official_quirks=["negative_reference_prompt"],
    )
    assert not torch.allclose(plain, quirky, atol=1e-5)
    same = generate(
        pipe,
        prompt="a cat",
        negative_prompt="blurry",
        reference_prompts="blurry",
        official_quirks=["negative_reference_prompt"],
    )
    torch.testing.assert_close(same, plain, atol=1e-5, rtol=1e-5)


def test_a_reference_told_with_two_captions_is_drawn_once() -> None:
    pipe = make_cogvideox_pipeline(guidance_scale=3.0)
    settings = pipe.defaults.override(official_quirks=["sampled_latents", "negative_reference_prompt"])
    encoder = ConditionEncoder(pipe.family, settings)
    request = make_request(pipe.family, settings, make_picture(), [make_clip()], "a cat", "blurry", "melts")
    guidance = video_as_prompt_guidance(3.0, 1.0)
    found = encoder.encode_references(request, guidance, torch.Generator().manual_seed(1))
    positive, negative = found["given", "positive"], found["given", "negative"]
    assert isinstance(positive, ReferenceTokens)
    assert isinstance(negative, ReferenceTokens)
    assert torch.equal(positive.hidden_states, negative.hidden_states)
    assert not torch.equal(positive.stream.texts[0], negative.stream.texts[0])


def test_a_generator_for_each_picture_goes_with_a_shared_reference_that_is_drawn() -> None:
    pipe = make_cogvideox_pipeline(num_inference_steps=1)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    images = [make_picture(), make_picture(1)]
    both = generate(pipe, image=images, generator=generators, official_quirks=["sampled_latents"])
    alone = generate(pipe, image=images[0], seed=1, official_quirks=["sampled_latents"])
    torch.testing.assert_close(both[:1], alone, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="one generator per picture, got 2 for 1"):
        generate(pipe, generator=generators, official_quirks=["sampled_latents"])


def test_a_prompt_that_is_cut_says_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    pipe = make_pipeline()
    generate(pipe, prompt="a red ball a cat")
    assert not caplog.messages
    generate(pipe, prompt="a red ball a red ball a cat melts")
    assert caplog.messages == ["the prompt has 10 tokens, but 8 are read; not read: 'cat melts'"]
    generate(pipe, prompt="a red ball " * 1000)
    assert len(caplog.messages[-1]) < 300


def test_references_of_different_captions_share_one_pass() -> None:
    pipe = make_pipeline()
    encoder = ConditionEncoder(pipe.family, pipe.defaults)
    clips = [check_references(make_clip(), "melts"), check_references(make_clip(1), "cat")]
    payload = encoder.run_expert(encoder.encode_clips(clips), once=False)
    assert payload.batch_size == 2
