"""Check that a model computes what the official implementation computed with the same weights.

A folder of parity vectors holds a tiny configuration, its weights under the official names, inputs and outputs: of one
forward pass of the transformer, or of a whole generation.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sememe.checkpoints.headers import read_json
from sememe.errors import InputError
from sememe.video import Clip
from sememe.video_as_prompt.expert_model import ExpertModel
from sememe.video_as_prompt.families import ForwardInputs, TransformerAlone, choose_family
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.settings import Quirk
from sememe.video_as_prompt.transformer_files import format_of_config, load_merged

TOLERANCE = 1e-4
LATENTS_TOLERANCE = 5e-3
_FORWARD_FILES = ("config.json", "weights.safetensors", "inputs.safetensors", "outputs.safetensors")
_PIPELINE_FILES = ("call.json", "inputs.safetensors", "outputs.safetensors")
_FPS = 16.0  # without effect on what is compared, but a clip has a rate

Tensors = Mapping[str, torch.Tensor]
"""Tensors of any shapes, by their official names."""


@dataclass(frozen=True)
class ParityResult:
    """The outcome of a check.

    Attributes:
        kind: `forward` for one pass of the transformer, `pipeline` for a whole generation.
        family: `wan` or `cogvideox`.
        max_abs_error: The largest difference between any two numbers; for a generation, of what the transformer was
            given and returned at its first calls.
        tolerance: The largest difference that is allowed.
        ok: Whether all errors are within their tolerances.
        latents_error: For a generation, the largest difference between the final latents.
        latents_tolerance: The largest difference of latents that is allowed.
    """

    kind: str
    family: str
    max_abs_error: float
    tolerance: float
    ok: bool
    latents_error: float | None = None
    latents_tolerance: float | None = None

    def to_document(self) -> dict[str, Any]:
        """Return plain values, without those that do not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@torch.no_grad()
def check_parity(folder: Path) -> ParityResult:
    """Run a model on the inputs of a parity folder and compare.

    The rotary tables among the inputs, if any, are not used: ours are computed. A generation runs with the official
    quirks.

    Raises:
        InputError: The folder holds no parity vectors, or a tensor or argument is not what was expected.
        ModelError: Its weights are not those of its configuration.
    """
    kind = _find_kind(folder)
    given, expected = _read(folder / "inputs.safetensors"), _read(folder / "outputs.safetensors")
    try:
        if kind == "pipeline":
            return _compare_generation(folder, given, expected)
        return _compare_forward(folder, given, expected)
    except KeyError as error:
        raise InputError(f"expected {error} among the arguments and tensors in {folder}, there is none") from error


def _find_kind(folder: Path) -> str:
    if all((folder / name).is_file() for name in _FORWARD_FILES):
        return "forward"
    if all((folder / name).is_file() for name in _PIPELINE_FILES) and (folder / "checkpoint").is_dir():
        return "pipeline"
    raise InputError(
        f"expected a folder of parity vectors ({', '.join(_FORWARD_FILES)}; or {', '.join(_PIPELINE_FILES)} and "
        f"checkpoint/), but {folder} is none"
    )


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy the folder again") from error


def _difference(name: str, got: torch.Tensor, expected: torch.Tensor) -> float:
    if got.shape != expected.shape:
        raise InputError(f"{name} came out as {tuple(got.shape)}, the vectors have {tuple(expected.shape)}")
    return float((got.float() - expected.float()).abs().max())


# One forward pass.


def _compare_forward(folder: Path, given: Tensors, expected: Tensors) -> ParityResult:
    known = format_of_config(read_json(folder / "config.json"))
    if known is None:
        raise InputError(f"expected the arguments of a Wan or CogVideoX transformer in {folder / 'config.json'}")
    model = load_merged(folder, stems=("weights",))
    _set_reference_timestep(model, given)
    error = _difference("sample", _run(model, given), expected["sample"])
    return ParityResult("forward", known.name, error, TOLERANCE, ok=error <= TOLERANCE)


def _set_reference_timestep(model: ExpertModel, given: Tensors) -> None:
    """Take the reference's timestep from the vectors, which may be another than the released models use."""
    times = given.get("timestep_mot_ref")
    follows_target = model.config.reference_timestep is None
    if times is None or (follows_target and torch.equal(times, given["timestep"])):
        return
    if times.unique().numel() != 1:
        raise InputError(f"expected one timestep for all references (timestep_mot_ref), got {times.tolist()}")
    model.register_to_config(reference_timestep=float(times.flatten()[0]))


def _run(model: ExpertModel, given: Tensors) -> torch.Tensor:
    family = choose_family(TransformerAlone(model))
    image = given.get("encoder_hidden_states_image_mot_ref")
    # References are concatenated on the frame axis, their captions on the token axis.
    references = family.rearrange(given["hidden_states_mot_ref"])
    captions = given["encoder_hidden_states_mot_ref"]
    num_tokens = family.text_length or captions.shape[1]
    count = captions.shape[1] // num_tokens
    if count < 1 or captions.shape[1] % num_tokens or references.shape[2] % count:
        raise InputError(
            f"expected captions of {num_tokens} tokens for references of equal length, got {captions.shape[1]} "
            f"tokens and {references.shape[2]} latent frames"
        )
    reference = ReferenceInputs(
        references.chunk(count, dim=2),
        captions.chunk(count, dim=1),
        None if image is None else image.chunk(count, dim=1),
    )
    positional, named = family.forward_arguments(
        ForwardInputs(
            family.rearrange(given["hidden_states"]),
            given["timestep"],
            given["encoder_hidden_states"],
            given.get("encoder_hidden_states_image"),
        )
    )
    later = {name: given[name] for name in ("ofs",) if name in given}  # an input of CogVideoX 1.5 alone
    return model(*positional, **named, **later, reference=family.arrange(reference), return_dict=False)[0]


# A whole generation.


@dataclass
class _Recording:
    """Inputs and outputs of the transformer; latents as (batch, frame or channel, ...) in its own layout."""

    calls: list[dict[str, torch.Tensor]] = field(default_factory=list)
    references: list[dict[str, torch.Tensor]] = field(default_factory=list)


def _compare_generation(folder: Path, given: Tensors, expected: Tensors) -> ParityResult:
    pipe = VideoAsPromptPipeline.from_pretrained(folder / "checkpoint", torch.float32)
    pipe.set_progress_bar_config(disable=True)
    family = pipe.family
    arguments = _read_arguments(read_json(folder / "call.json"), given)
    initial = family.rearrange(given["initial_latents"])
    with _record(pipe) as recording:
        # Texts are recomputed because the official transformer is given their embeddings.
        out = pipe(**arguments, latents=initial, text_keys="recomputed")
    got = _name_calls(recording, num_calls=2 if any(name.startswith("second_call.") for name in expected) else 1)
    names = [name for name in expected if name.startswith(("first_call.", "second_call."))]
    error = max(_difference(name, got[name], expected[name]) for name in names)
    latents_error = _difference("latents", out.frames, family.rearrange(expected["latents"]))
    is_ok = error <= TOLERANCE and latents_error <= LATENTS_TOLERANCE
    return ParityResult("pipeline", family.name, error, TOLERANCE, is_ok, latents_error, LATENTS_TOLERANCE)


def _read_arguments(call: Mapping[str, Any], given: Tensors) -> dict[str, Any]:
    """Return the arguments of our pipeline for a call of the official one."""
    if call["frames_selection"] not in ("evenly", "first"):
        raise InputError(
            f"expected frames_selection 'evenly' or 'first' in call.json, got {call['frames_selection']!r}"
        )
    names = sorted(name for name in given if name.startswith("reference_frames"))
    prompts = call["reference_prompts"] if "reference_prompts" in call else [call["reference_prompt"]]
    quirks = set(get_args(Quirk))
    if call.get("vae_posterior") == "mode":
        quirks.remove("sampled_latents")
    same = ("prompt", "negative_prompt", "height", "width", "num_frames", "num_inference_steps", "guidance_scale")
    return {name: call[name] for name in same} | {
        "image": given["image"].numpy(),
        "references": [Clip(given[name].numpy(), _FPS) for name in names],
        "reference_prompts": prompts,
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
    """Record what passes through the transformer."""
    recording, transformer, family = _Recording(), pipe.transformer, pipe.family
    parameters = inspect.signature(transformer.forward)

    def note_call(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = parameters.bind(*args, **kwargs).arguments
        named = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        recording.calls.append(named | {"sample": output[0]})

    embed = transformer.embed_reference

    def note_reference(inputs: ReferenceInputs) -> Any:
        joined = torch.cat([family.rearrange(latents) for latents in inputs.latents], dim=2)
        noted = {
            "hidden_states": family.rearrange(joined),  # two axes are swapped, or none: twice brings them back
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


def _name_calls(recording: _Recording, num_calls: int) -> dict[str, torch.Tensor]:
    """Name the first step officially.

    Our one call holds the negative prompt's half and then the positive one's, as CogVideoX's does; Wan's official
    pipeline makes two calls, the positive first. References are encoded for the positive prompt first.
    """
    call = recording.calls[0]
    positive, negative = recording.references[:2]
    if num_calls == 1:
        joined = {name: torch.cat([negative[name], positive[name]]) for name in positive}
        return {f"first_call.{name}": tensor for name, tensor in (call | joined).items()}
    halves = {name: tensor.chunk(2) for name, tensor in call.items()}
    first = {name: half[1] for name, half in halves.items()} | positive
    second = {name: half[0] for name, half in halves.items()} | negative
    named = {f"first_call.{name}": tensor for name, tensor in first.items()}
    return named | {f"second_call.{name}": tensor for name, tensor in second.items()}
