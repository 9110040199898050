"""Does one forward pass come out as the official transformer's did, with the same weights and inputs?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sememe.errors import InputError
from sememe.video_as_prompt.merged_files import load_merged
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceInputs

_STEMS = ("weights",)


@torch.no_grad()
def compare_forward(folder: Path, given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """The largest difference between our output and the official one.

    The rotary tables among the inputs, if any, are not used: ours are computed.

    Args:
        folder: with `config.json` and `weights.safetensors`, as the official class has them.
        given: the tensors of its inputs, named as the official arguments are.
        expected: the tensors of its outputs.

    Raises:
        ModelError: the weights are not those of the configuration.
        InputError: a tensor is missing or of another shape.
    """
    model = load_merged(folder, stems=_STEMS)
    try:
        _set_reference_timestep(model, given)
        run = _run_cogvideox if isinstance(model, CogVideoXVideoAsPromptTransformer) else _run_wan
        sample, official = run(model, given), expected["sample"]
    except KeyError as error:
        raise InputError(
            f"expected a tensor {error} among the inputs and outputs in {folder}, it is missing"
        ) from error
    if sample.shape != official.shape:
        raise InputError(f"expected an output of shape {tuple(sample.shape)} in {folder}, got {tuple(official.shape)}")
    return float((sample.float() - official.float()).abs().max())


def _set_reference_timestep(model: Any, given: Mapping[str, torch.Tensor]) -> None:
    """The vectors may have been made at another timestep of the reference than the released models use."""
    times = given.get("timestep_mot_ref")
    follows_target = model.config.reference_timestep is None
    if times is None or (follows_target and torch.equal(times, given["timestep"])):
        return
    if times.unique().numel() != 1:
        raise InputError(f"expected one timestep for all references (timestep_mot_ref), got {times.tolist()}")
    model.register_to_config(reference_timestep=float(times.flatten()[0]))


def _run_wan(model: Any, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    image = given.get("encoder_hidden_states_image_mot_ref")
    reference = ReferenceInputs(
        (given["hidden_states_mot_ref"],),
        (given["encoder_hidden_states_mot_ref"],),
        None if image is None else (image,),
    )
    return model(
        given["hidden_states"],
        given["timestep"],
        given["encoder_hidden_states"],
        given.get("encoder_hidden_states_image"),
        return_dict=False,
        reference=reference,
    )[0]


def _run_cogvideox(model: Any, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    latents, text = given["hidden_states"], given["encoder_hidden_states"]
    _, num_frames, _, height, width = latents.shape
    return model(
        latents,
        text,
        given["timestep"],
        ofs=given.get("ofs"),
        image_rotary_emb=model.rotary_tables(num_frames, height, width, latents.device),
        return_dict=False,
        reference=_split_references(
            given["hidden_states_mot_ref"], given["encoder_hidden_states_mot_ref"], text.shape[1]
        ),
    )[0]


def _split_references(latents: torch.Tensor, text: torch.Tensor, text_length: int) -> ReferenceInputs:
    """Split references concatenated on the frame axis (latents) and the token axis (captions)."""
    count = text.shape[1] // text_length
    if count < 1 or text.shape[1] % text_length or latents.shape[1] % count:
        raise InputError(
            f"expected captions of {text_length} tokens for references of equal length, got {text.shape[1]} tokens "
            f"and {latents.shape[1]} latent frames"
        )
    return ReferenceInputs(latents.chunk(count, dim=1), text.chunk(count, dim=1))
