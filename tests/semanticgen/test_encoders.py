"""Semantic encoders: grids and times, chunks, loading, and what makes one differ from another."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    VideoMAEConfig,
    VideoMAEModel,
    VJEPA2Config,
    VJEPA2Model,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from sememe.backbones.autoencoder import clips_to_video, encode_video
from sememe.errors import InputError, ModelError
from sememe.semanticgen.encoders import (
    BUILT_IN_FPS,
    LatentEncoder,
    QwenEncoder,
    TowerEncoder,
    VideoMAEEncoder,
    VJEPA2Encoder,
    load_encoder,
    make_built_in_tower,
    use_all_slices_at_once,
)
from sememe.semanticgen.stage_settings import TowerNetwork
from sememe.video import Clip
from video_as_prompt.wan_factories import make_linear_vae

VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 24,
    "window_size": 56,
    "fullatt_block_indexes": [1],
}


def make_qwen(seed: int = 0, fps: float = 4.0, **settings: Any) -> QwenEncoder:
    torch.manual_seed(seed)
    encoder = QwenEncoder(Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**VISION)).eval(), fps)
    for name, value in settings.items():
        setattr(encoder, name, value)
    return encoder


def make_vjepa2() -> VJEPA2Encoder:
    torch.manual_seed(0)
    small = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    predictor = {"pred_hidden_size": 24, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
    config = VJEPA2Config(crop_size=32, frames_per_clip=8, num_pooler_layers=1, **small, **predictor)
    return VJEPA2Encoder(VJEPA2Model(config).eval(), 4.0)


def make_videomae() -> VideoMAEEncoder:
    torch.manual_seed(0)
    small = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return VideoMAEEncoder(VideoMAEModel(VideoMAEConfig(image_size=32, num_frames=8, **small)).eval(), 4.0)


def make_clip(num_frames: int = 40, height: int = 60, width: int = 90, seed: int = 0) -> Clip:
    random = np.random.default_rng(seed)
    return Clip(random.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8), 8.0)


ENCODERS = [make_qwen, make_vjepa2, make_videomae]


@pytest.mark.parametrize("make", ENCODERS)
@pytest.mark.parametrize(("num_frames", "num_slices"), [(40, 10), (36, 9), (2, 1)])
def test_features_have_a_grid_and_times(make: Any, num_frames: int, num_slices: int) -> None:
    encoder: TowerEncoder = make()
    found = encoder.encode([make_clip(num_frames), make_clip(num_frames, seed=1)])
    rows, columns = encoder.choose_grid(60, 90)
    assert found.shape == (2, num_slices, rows, columns, encoder.feature_dim)
    assert encoder.clock.times(num_slices).tolist() == [0.25 + 0.5 * index for index in range(num_slices)]
    # Each clip of a batch is encoded alone, and clips differ.
    alone = encoder.encode([make_clip(num_frames)])
    torch.testing.assert_close(found[:1], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("slices_at_once", [1, 3, 4])
def test_chunks_of_slices_are_exact(slices_at_once: int) -> None:
    whole = make_qwen(slices_at_once=100).encode([make_clip()])
    chunked = make_qwen(slices_at_once=slices_at_once).encode([make_clip()])
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-6)


def test_a_slice_is_at_its_place() -> None:
    """A change of one corner of the frames of one slice changes that feature most, and no other slice."""
    encoder, clip = make_qwen(), make_clip(40, 112, 112)
    frames = clip.frames.copy()
    frames[8:12, 84:, :28] = 255 - frames[8:12, 84:, :28]  # third slice, last row, first column
    before, after = (encoder.encode([each])[0] for each in (clip, Clip(frames, 8.0)))
    change = (after - before).abs().amax(dim=-1)
    assert change.shape == (10, 4, 4)
    assert change[[0, 1, *range(3, 10)]].max() == 0
    assert change[2].argmax() == 3 * 4


def test_frames_are_taken_as_patches_of_the_tower() -> None:
    """With a projection that picks single numbers, patches show the pixels that they should."""
    encoder = QwenEncoder(make_qwen().tower, 4.0, colours=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    seen: list[torch.Tensor] = []
    encoder.tower.patch_embed.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    video = torch.rand(1, 3, 2, 56, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    encoder.encode_frames(video)
    # Sixteen patches; those of a feature, two by two, follow one another: the third is below the first.
    patches = seen[0].view(16, 3, 2, 14, 14)
    pixels = (video + 1) / 2
    torch.testing.assert_close(patches[2], pixels[0, :, :, 14:28, :14])
    torch.testing.assert_close(patches[4], pixels[0, :, :, :14, 28:42])


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 832, (476, 840)), (28, 28, (28, 28)), (10, 500, (28, 504)), (64, 64, (56, 56)), (2160, 3840, (728, 1316))],
)
def test_sizes_are_the_nearest_multiples(height: int, width: int, expected: tuple[int, int]) -> None:
    assert make_qwen().choose_size(height, width) == expected


def test_the_built_in_tower_has_four_by_four_features() -> None:
    encoder = QwenEncoder(make_built_in_tower(TowerNetwork(feature_dim=16)), BUILT_IN_FPS)
    assert encoder.choose_grid(64, 64) == (4, 4)
    assert encoder.encode([make_clip(33, 64, 64)]).shape == (1, 8, 4, 4, 16)


def test_encoding_is_differentiable() -> None:
    encoder = make_qwen()
    encoder.encode_frames(torch.zeros(1, 3, 4, 28, 28)).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.tower.parameters())


def test_fingerprints_tell_weights_rate_and_resizing() -> None:
    prints = [
        make_qwen(),
        make_qwen(seed=1),
        make_qwen(fps=1.6),
        make_qwen(max_features=5),
        make_vjepa2(),
        make_videomae(),
    ]
    assert len({encoder.fingerprint for encoder in prints}) == len(prints)
    assert make_qwen().fingerprint == make_qwen(slices_at_once=3).fingerprint


@pytest.mark.parametrize("make", ENCODERS)
def test_encoders_are_loaded_from_folders(make: Any, tmp_path: Path) -> None:
    encoder: TowerEncoder = make()
    encoder.tower.save_pretrained(tmp_path)
    loaded = load_encoder(tmp_path, 4.0)
    assert type(loaded) is type(encoder)
    assert loaded.fingerprint == encoder.fingerprint
    assert torch.equal(loaded.encode([make_clip()]), encoder.encode([make_clip()]))
    assert not any(parameter.requires_grad for parameter in loaded.tower.parameters())


def test_of_a_whole_qwen_only_the_tower_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 32,
    }
    text |= {"num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=VISION)
    whole = Qwen2_5_VLForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    loaded = load_encoder(tmp_path, 4.0)
    assert loaded.colours == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    expected = whole.model.visual.state_dict()
    found = loaded.tower.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_cannot_be_encoded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="clips of one length, size and rate"):
        make_qwen().encode([make_clip(8), make_clip(9)])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ModelError, match=r"qwen2_5_vl.*as model_type.*got clip"):
        load_encoder(tmp_path)


def test_an_autoencoder_encodes_frame_by_frame(tmp_path: Path) -> None:
    vae = make_linear_vae()
    vae.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, 4.0)
    assert isinstance(encoder, LatentEncoder)
    clip = make_clip(num_frames=9, height=24, width=16)
    found = encoder.encode([clip])
    side, channels = vae.config.patch_size, vae.config.latent_channels
    assert found.shape == (1, 2, 24 // (2 * side), 16 // (2 * side), 8 * channels)
    picks = encoder.clock.pick_frames(9, 8.0)
    second = clips_to_video([Clip(clip.frames[picks[1:2]], 4.0)])
    # The second frame's latents of the four places of the first feature.
    expected = encode_video(vae, second)[0, :, 0, :2, :2].flatten()
    torch.testing.assert_close(found[0, 0, 0, 0, 4 * channels :], expected)


def test_slices_at_once_are_those_of_transformers() -> None:
    torch.manual_seed(0)
    tower = Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**VISION)).eval()
    patches, grids = torch.randn(2 * 3 * 4 * 6, 3 * 2 * 14 * 14), torch.tensor([[3, 4, 6]] * 2)
    with torch.no_grad():
        one_by_one = tower(patches, grids).pooler_output
        use_all_slices_at_once(tower)
        at_once = tower(patches, torch.tensor([[6, 4, 6]])).pooler_output
    torch.testing.assert_close(at_once, one_by_one)
