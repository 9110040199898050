import pytest
import torch
from torch import Tensor

from sememe.backbones.autoencoder import latent_grid
from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder, fold
from sememe.training.networks import (
    fit_principal_components,
    make_autoencoder,
    make_text_encoder,
    start_from_principal_components,
    train_tokenizer,
)
from sememe.training.recipes import AutoencoderRecipe, TextNetwork
from sememe.video_as_prompt.stage_settings import BackboneRecipe
from sememe.video_as_prompt.stages import make_transformer
from sememe.workflows.recipe_list import find_recipe, recipes
from training.small_video import make_linear_vae, small_video


@pytest.fixture(scope="module")
def video() -> Tensor:
    return small_video(0, 60)


def psnr(one: Tensor, other: Tensor) -> float:
    return float(-10 * torch.log10((one - other).square().mean() / 4))


@torch.no_grad()
def test_it_is_the_best_linear_code(video: Tensor) -> None:
    vae = make_linear_vae().eval()
    code = start_from_principal_components(vae, [video])
    padded = torch.cat([video[:, :, :1].expand(-1, -1, 7, -1, -1), video], dim=2)
    rows = fold(padded, 8, 8).movedim(1, -1).double() - code.mean
    latents = vae.encode(video).latent_dist.mode()
    assert torch.allclose(latents, (rows @ code.directions / code.scales).movedim(-1, 1).float(), atol=1e-4)
    best = rows @ code.directions @ code.directions.T + code.mean
    assert torch.allclose(fold(vae.decode_linear(latents), 8, 8), best.movedim(-1, 1).float(), atol=1e-4)
    assert psnr(vae.decode(latents).sample, video) > 16.5


def test_whitening_leaves_the_mean_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 6, generator=generator) * torch.tensor([8.0, 4, 2, 1, 1, 1])
    for whitening, ratio in ((0.0, 8.0), (0.5, 8.0**0.5), (1.0, 1.0)):
        code = fit_principal_components([rows], 4, whitening)
        deviations = ((rows.double() - code.mean) @ code.directions / code.scales).std(dim=0)
        assert float(deviations.square().mean()) == pytest.approx(1.0, rel=0.02)
        assert float(deviations[0] / deviations[3]) == pytest.approx(ratio, rel=0.2)


def test_clips_may_come_in_batches(video: Tensor) -> None:
    def start(batches: list[Tensor]) -> LinearVideoAutoencoder:
        vae = make_linear_vae()
        start_from_principal_components(vae, batches)
        return vae

    whole, parts = start([video]), start(list(video.split(7)))
    one, other = (vae.encode(video).latent_dist.mode().abs() for vae in (whole, parts))
    assert torch.allclose(one, other, atol=1e-3), "the same but for signs"


CAPTIONS = [
    "a red cube before hills",
    "a striped blue cat on a beach; it melts",
    "a green ball; the camera zooms in",
] * 4


def test_the_tokenizer() -> None:
    tokenizer = train_tokenizer(CAPTIONS * 4, TextNetwork(vocab_size=90, max_tokens=12, caption_stride=2))
    assert len(tokenizer) <= 90
    assert tokenizer.model_max_length == 12
    ids = tokenizer("A RED cat").input_ids
    assert ids == tokenizer("a red cat").input_ids
    assert ids[-1] == tokenizer.eos_token_id == 1
    assert tokenizer.pad_token_id == 0
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a red cat"
    assert tokenizer.unk_token_id not in ids
    again = train_tokenizer(CAPTIONS * 4, TextNetwork(vocab_size=90, max_tokens=12, caption_stride=2))
    assert again.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("name", [name for name in recipes() if name.endswith("-backbone")])
def test_every_backbone_can_be_built(name: str) -> None:
    recipe = find_recipe(name)
    autoencoder = find_recipe(name.replace("backbone", "autoencoder"))
    assert isinstance(recipe, BackboneRecipe)
    assert isinstance(autoencoder, AutoencoderRecipe)
    with torch.device("meta"):
        vae = make_autoencoder(autoencoder.network)
        text_encoder = make_text_encoder(recipe.text, recipe.text.vocab_size)
        channels = autoencoder.network.latent_channels
        transformer = make_transformer(recipe.network, channels, recipe.text.d_model)
    grid = latent_grid(vae, 2)
    clips = autoencoder.clips
    assert grid.latent_shape(clips.num_frames, clips.height, clips.width)[0] == channels
    assert recipe.network.num_mask_channels == grid.temporal_ratio, "one mask channel for each frame of a latent"
    assert transformer.config.in_channels == 2 * channels + grid.temporal_ratio
    assert text_encoder.config.d_model == transformer.config.text_dim


def test_the_size_of_tiny() -> None:
    """It must stay small enough to be shipped with the package."""
    recipe, autoencoder = find_recipe("tiny-backbone"), find_recipe("tiny-autoencoder")
    assert isinstance(recipe, BackboneRecipe)
    assert isinstance(autoencoder, AutoencoderRecipe)
    with torch.device("meta"):
        parts = [
            make_autoencoder(autoencoder.network),
            make_text_encoder(recipe.text, recipe.text.vocab_size),
            make_transformer(recipe.network, 48, recipe.text.d_model),
        ]
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    assert 2 * (sum(counts) + counts[-1]) < 98e6, "bytes in half precision, with an expert as large as the backbone"
