"""Does a whole generation come out as the official pipeline's did, from the same folder, inputs and noise?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from sememe.checkpoints.headers import read_json
from sememe.errors import InputError
from sememe.video import Clip
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.settings import Quirk

_CALLS = ("first_call", "second_call")
_FPS = 16.0  # without effect on what is compared, but a clip has a rate


@dataclass(frozen=True)
class PipelineErrors:
    """The largest differences from the official pipeline.

    Attributes:
        calls: Largest difference of any number that the transformer took or returned at its first calls.
        latents: Largest difference of any number of the final latents.
    """

    calls: float
    latents: float


@dataclass
class _Recording:
    """What the transformer was given and returned; latents as (batch, frame or channel, ...) in its own layout."""

    calls: list[dict[str, torch.Tensor]] = field(default_factory=list)
    references: list[dict[str, torch.Tensor]] = field(default_factory=list)


def compare_generation(
    folder: Path, family: str, given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> PipelineErrors:
    """Runs the pipeline of a parity folder, with the official quirks, on its inputs.

    Args:
        folder: with `checkpoint/` and `call.json`.
        family: "wan" or "cogvideox".
        given: the tensors of its inputs.
        expected: the tensors of its outputs.

    Raises:
        ModelError: the checkpoint cannot be loaded.
        InputError: the call or a tensor is not what was expected.
    """
    call = read_json(folder / "call.json")
    pipe = VideoAsPromptPipeline.from_pretrained(folder / "checkpoint")
    pipe.set_progress_bar_config(disable=True)
    # The official layout of CogVideoX has frames before channels.
    swap: Callable[[torch.Tensor], torch.Tensor] = (
        (lambda latents: latents.transpose(1, 2)) if family == "cogvideox" else (lambda latents: latents)
    )
    try:
        with _record(pipe) as recording:
            # Recorded are the embeddings that the official transformer is given.
            latents = swap(given["initial_latents"])
            out = pipe(**_arguments(call, given), latents=latents, text_keys="recomputed")
        got = _name_calls(family, recording)
        errors = [_difference(name, got, expected) for name in expected if name.partition(".")[0] in _CALLS]
        largest = float((swap(out.frames) - expected["latents"]).abs().max())
    except KeyError as error:
        raise InputError(f"expected {error} among the arguments and tensors in {folder}, there is none") from error
    return PipelineErrors(max(errors), largest)


def _arguments(call: Mapping[str, Any], given: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments of our pipeline for a call of the official one."""
    if call["frames_selection"] not in ("evenly", "first"):
        raise InputError(
            f"expected frames_selection 'evenly' or 'first' in call.json, got {call['frames_selection']!r}"
        )
    names = sorted(name for name in given if name.startswith("reference_frames"))
    prompts = call["reference_prompts"] if "reference_prompts" in call else [call["reference_prompt"]]
    quirks = set(get_args(Quirk))
    if call.get("vae_posterior") == "mode":
        quirks.remove("sampled_latents")
    return {
        "image": given["image"].numpy(),
        "references": [Clip(given[name].numpy(), _FPS) for name in names],
        "prompt": call["prompt"],
        "negative_prompt": call["negative_prompt"],
        "reference_prompts": prompts,
        "height": call["height"],
        "width": call["width"],
        "num_frames": call["num_frames"],
        "num_inference_steps": call["num_inference_steps"],
        "guidance_scale": call["guidance_scale"],
        "reference_guidance_scale": 1.0,
        "reference_sampling": "even" if call["frames_selection"] == "evenly" else "first",
        "max_sequence_length": call.get("max_sequence_length"),
        "use_dynamic_cfg": call.get("use_dynamic_cfg", False),
        "batching": "batched",
        "output_type": "latent",
        "official_quirks": quirks,
    }


@contextmanager
def _record(pipe: VideoAsPromptPipeline) -> Iterator[_Recording]:
    """Writes down what passes through the transformer."""
    recording, transformer = _Recording(), pipe.transformer

    def note_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        bound = dict(zip(_POSITIONS[type(module).__name__], args, strict=False)) | kwargs
        named = {name: value for name, value in bound.items() if isinstance(value, torch.Tensor)}
        recording.calls.append(named | {"sample": output[0]})

    embed = transformer.embed_reference

    def note_reference(inputs: Any) -> Any:
        axis = 1 if pipe.family.name == "cogvideox" else 2
        noted = {
            "hidden_states": torch.cat(inputs.latents, dim=axis),
            "encoder_hidden_states": torch.cat(inputs.text_embeds, dim=1),
        }
        if inputs.image_embeds is not None:
            noted["encoder_hidden_states_image"] = torch.cat(inputs.image_embeds, dim=1)
        recording.references.append({f"{name}_mot_ref": tensor for name, tensor in noted.items()})
        return embed(inputs)

    handle = transformer.register_forward_hook(note_call, with_kwargs=True)
    transformer.embed_reference = note_reference
    try:
        yield recording
    finally:
        handle.remove()
        del transformer.embed_reference


_POSITIONS = {
    "WanVideoAsPromptTransformer": (
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_hidden_states_image",
    ),
    "CogVideoXVideoAsPromptTransformer": ("hidden_states", "encoder_hidden_states", "timestep"),
}


def _name_calls(family: str, recording: _Recording) -> dict[str, torch.Tensor]:
    """The first step by the official names.

    Our one call holds the negative prompt's half and then the positive one's, as CogVideoX's does; Wan's official
    pipeline makes two calls, the positive first. References are encoded for the positive prompt first.
    """
    call = recording.calls[0]
    positive, negative = recording.references[:2]
    if family == "cogvideox":
        joined = {name: torch.cat([negative[name], positive[name]]) for name in positive}
        return {f"first_call.{name}": tensor for name, tensor in (call | joined).items()}
    halves = {name: tensor.chunk(2) for name, tensor in call.items()}
    first = {name: half[1] for name, half in halves.items()} | positive
    second = {name: half[0] for name, half in halves.items()} | negative
    named = {f"first_call.{name}": tensor for name, tensor in first.items()}
    return named | {f"second_call.{name}": tensor for name, tensor in second.items()}


def _difference(name: str, got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    if got[name].shape != expected[name].shape:
        shapes = f"{tuple(got[name].shape)}, the vectors have {tuple(expected[name].shape)}"
        raise InputError(f"{name} came out as {shapes}")
    return float((got[name].float() - expected[name].float()).abs().max())
