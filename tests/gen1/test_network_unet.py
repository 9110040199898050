"""The inflated U-Net: the image model it comes from, and temporal layers that act on videos only."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import SD3Transformer2DModel, UNet2DConditionModel

from gen1.unet_factories import CONTENT_DIM, MAX_FRAMES, fold, make_image_model, make_inputs, make_unet, stir
from sememe.checkpoints.components import load_strictly
from sememe.errors import ModelError
from sememe.gen1.network_unet import Gen1UNet


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("is_temporal", [True, False])
@pytest.mark.parametrize("settings", [{}, {"use_linear_projection": True, "upcast_attention": True}])
def test_freshly_inflated_it_is_the_image_model(settings: dict[str, bool], is_temporal: bool) -> None:
    """Within rounding, not bit for bit: some CPUs sum the same product in another order now and then."""
    inputs = make_inputs()
    expected = make_image_model(**settings)(**fold(inputs)).sample.unflatten(0, (2, 4)).transpose(1, 2)
    close(make_unet(**settings)(**inputs, is_temporal=is_temporal).sample, expected)


@torch.no_grad()
def test_temporal_layers_act_on_videos_only() -> None:
    model, inputs = stir(make_unet()), make_inputs()
    together = model(**inputs).sample
    alone = model(**inputs, is_temporal=False, return_dict=False)[0]
    assert (together - alone).abs().max() > 1e-3
    frames = [model(**(inputs | {"sample": inputs["sample"][:, :, i : i + 1]})).sample for i in range(4)]
    close(torch.cat(frames, dim=2), alone)


@torch.no_grad()
def test_content_and_timestep_of_each_frame_and_video() -> None:
    model, inputs = stir(make_unet()), make_inputs()
    spread = inputs["encoder_hidden_states"][:, None].repeat(1, 4, 1, 1)
    assert torch.equal(model(**(inputs | {"encoder_hidden_states": spread})).sample, model(**inputs).sample)
    first = model(inputs["sample"][:1], 100, spread[:1]).sample
    close(first, model(**inputs).sample[:1])
    other = spread.clone()
    other[:, 2] += 1.0
    changed = model(**(inputs | {"encoder_hidden_states": other}), is_temporal=False).sample
    differs = (changed - model(**inputs, is_temporal=False).sample).abs().amax(dim=(0, 1, 3, 4)) > 0
    assert differs.tolist() == [False, False, True, False]


@torch.no_grad()
def test_frames_have_positions_and_conditions_matter() -> None:
    model, inputs = stir(make_unet()), make_inputs()
    with_zeros = {"sample": torch.cat([inputs["sample"][:, :4], torch.zeros(2, 8, 4, 8, 8)], dim=1)}
    assert (model(**inputs).sample - model(**(inputs | with_zeros)).sample).abs().max() > 1e-3
    still = {"sample": inputs["sample"][:, :, :1].repeat(1, 1, 4, 1, 1)}
    for block in model.modules():
        if hasattr(block, "temporal_conv1"):  # its zeros at both ends tell frames apart as well
            block.temporal_conv1.reset_output()
            block.temporal_conv2.reset_output()
    frames = model(**(inputs | still)).sample
    assert (frames[:, :, 1] - frames[:, :, 2]).abs().max() > 1e-5


def test_all_weights_are_trained_and_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = stir(make_unet()).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(**make_inputs(num_frames=MAX_FRAMES)).sample.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name
        assert torch.equal(gradient, gradients[1][name]), name


@torch.no_grad()
def test_repeated_blocks_are_compiled_and_processors_set() -> None:
    from diffusers.models.attention_processor import AttnProcessor

    model, inputs = stir(make_unet()), make_inputs()
    expected = model(**inputs).sample
    names = list(model.attn_processors)
    assert sum("temporal_transformer.block.attn1" in name for name in names) == 4
    model.set_attn_processor(AttnProcessor())
    close(model(**inputs).sample, expected)
    torch.compiler.reset()
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    close(model(**inputs).sample, expected)


@torch.no_grad()
def test_attention_goes_through_the_chosen_backend() -> None:
    model, inputs = stir(make_unet()), make_inputs()
    expected = model(**inputs).sample
    mask = torch.ones(8, 3)
    mask[:, 2] = 0
    shorter = inputs | {"encoder_hidden_states": inputs["encoder_hidden_states"][:, :2]}
    close(model(**inputs, encoder_attention_mask=mask).sample, model(**shorter).sample)
    model.set_attention_backend("_native_math")
    assert {each._attention_backend.value for each in model.attn_processors.values()} == {"_native_math"}
    close(model(**inputs).sample, expected)


@torch.no_grad()
def test_offload_reaches_every_weight() -> None:
    model, inputs = stir(make_unet()), make_inputs()
    expected = model(**inputs).sample
    cpu_offload(model, torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model(**inputs).sample, expected)


@torch.no_grad()
def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model, inputs = stir(make_unet()), make_inputs()
    model.save_pretrained(tmp_path)
    loaded = load_strictly(Gen1UNet, tmp_path)
    assert loaded.config.max_frames == MAX_FRAMES
    assert torch.equal(loaded(**inputs).sample, model(**inputs).sample)


@torch.no_grad()
def test_content_of_another_length_is_projected() -> None:
    model = Gen1UNet.from_image_model(make_image_model(), MAX_FRAMES, content_dim=7)
    inputs = make_inputs() | {"encoder_hidden_states": torch.zeros(2, 1, 7)}
    bias = model.encoder_hid_proj.bias.expand(2, 1, CONTENT_DIM)
    plain = make_unet()(**(inputs | {"encoder_hidden_states": bias})).sample
    close(model(**inputs).sample, plain)
    assert not any(parameter.is_meta for parameter in model.parameters())


def make_sd3() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=8,
        num_layers=1,
        num_attention_heads=1,
        attention_head_dim=8,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )


def test_other_architectures_are_refused_by_name() -> None:
    xl: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 32,
    }
    refused: list[tuple[Any, str]] = [
        (make_image_model(**xl), "Stable Diffusion XL"),
        (make_sd3(), "a SD3Transformer2DModel"),
        (make_image_model(in_channels=9), "one with 9 input channels"),
        (make_image_model(class_embed_type="projection", projection_class_embeddings_input_dim=4), "class_embed_type"),
        (make_image_model(down_block_types=("AttnDownBlock2D", "DownBlock2D")), "blocks AttnDownBlock2D"),
        (make_unet(), "a Gen1UNet"),
    ]
    for model, message in refused:
        with pytest.raises(ModelError, match=message):
            Gen1UNet.from_image_model(model)


def test_more_frames_than_positions_are_refused() -> None:
    with pytest.raises(ModelError, match="at most 5 frames at once, got 6; use windows"):
        make_unet()(**make_inputs(num_frames=6))


def test_the_stock_class_reads_the_same_names() -> None:
    """An inflated model's tensors are those of the image model and new ones, so that image weights load into it."""
    stock, own = make_image_model().state_dict(), make_unet().state_dict()
    assert stock.keys() <= own.keys()
    assert all("temporal" in name for name in own.keys() - stock.keys())
    assert isinstance(make_unet(), UNet2DConditionModel)
