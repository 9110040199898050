import pytest
import torch

from sememe.backbones.autoencoder import latent_grid
from sememe.training.networks import make_autoencoder, make_text_encoder, train_tokenizer
from sememe.training.recipes import AutoencoderRecipe, TextNetwork
from sememe.video_as_prompt.stage_settings import BackboneRecipe
from sememe.video_as_prompt.stages import make_transformer
from sememe.workflows.recipe_list import RECIPES, find_recipe

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


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("-backbone")])
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
