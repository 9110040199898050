"""Makes the project's own parity vectors (`vectors/`), in the form in which `sememe check-parity` reads them.

They hold what this project computed while it agreed with the official implementation to 4e-7, so that a clone without
the official vectors notices a change as well. Make them anew only on purpose, after such a check:

    python tests/parity/make_vectors.py
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.transformer_files import format_of_model, official_config

FOLDER = Path(__file__).parent / "vectors"
_NUM_TEXT_TOKENS = 512


def make_wan() -> None:
    """Image-to-video with CLIP, experts in two of three blocks, one reference."""
    torch.manual_seed(0)
    model = WanVideoAsPromptTransformer(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=12,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        image_dim=10,
        added_kv_proj_dim=24,
        rope_max_seq_len=32,
        expert_blocks=[0, 2],
        attention_mode="joint",
    ).eval()
    _disturb(model)
    random = torch.Generator().manual_seed(1)
    given = {
        "hidden_states": torch.randn(1, 12, 3, 4, 6, generator=random),
        "timestep": torch.tensor([700.0]),
        "encoder_hidden_states": torch.randn(1, _NUM_TEXT_TOKENS, 8, generator=random),
        "encoder_hidden_states_image": torch.randn(1, 257, 10, generator=random),
    }
    reference = {
        "hidden_states_mot_ref": torch.randn(1, 12, 3, 4, 6, generator=random),
        "timestep_mot_ref": torch.tensor([1.0]),
        "encoder_hidden_states_mot_ref": torch.randn(1, _NUM_TEXT_TOKENS, 8, generator=random),
        "encoder_hidden_states_image_mot_ref": torch.randn(1, 257, 10, generator=random),
    }
    told = ReferenceInputs(
        (reference["hidden_states_mot_ref"],),
        (reference["encoder_hidden_states_mot_ref"],),
        (reference["encoder_hidden_states_image_mot_ref"],),
    )
    with torch.no_grad():
        sample = model(**given, reference=told).sample
    _write("wan", model, given | reference, sample)


def make_cogvideox(name: str, num_references: int, *, learned: bool) -> None:
    """Image-to-video, experts in all blocks but the last, the references at the target's timestep."""
    torch.manual_seed(num_references)
    model = CogVideoXVideoAsPromptTransformer(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=8,
        num_layers=3,
        sample_width=6,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=learned,
        expert_blocks=[0, 1],
        attention_mode="joint",
        reference_timestep=None,
    ).eval()
    _disturb(model)
    random = torch.Generator().manual_seed(num_references)
    given = {
        "hidden_states": torch.randn(2, 3, 8, 4, 6, generator=random),
        "timestep": torch.tensor([700.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, 6, 8, generator=random),
    }
    reference = {
        "hidden_states_mot_ref": torch.randn(2, 3 * num_references, 8, 4, 6, generator=random),
        "encoder_hidden_states_mot_ref": torch.randn(2, 6 * num_references, 8, generator=random),
    }
    latents, texts = (tensor.chunk(num_references, dim=1) for tensor in reference.values())
    told = ReferenceInputs(latents, texts)
    with torch.no_grad():
        sample = model(**given, image_rotary_emb=model.rotary_tables(3, 4, 6), reference=told).sample
    _write(name, model, given | reference, sample)


def _disturb(model: Any) -> None:
    """Norms and tables begin at ones and zeros, where mistakes in them would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def _write(name: str, model: Any, given: dict[str, torch.Tensor], sample: torch.Tensor) -> None:
    folder, naming = FOLDER / name, format_of_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(official_config(model), indent=1, sort_keys=True) + "\n")
    weights = {naming.to_official_name(key): tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    save_file(given, folder / "inputs.safetensors")
    save_file({"sample": sample}, folder / "outputs.safetensors")


if __name__ == "__main__":
    make_wan()
    make_cogvideox("cogvideox", 1, learned=True)
    make_cogvideox("cogvideox_2refs", 2, learned=False)
