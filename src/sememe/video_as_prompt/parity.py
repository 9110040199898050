"""Does a model compute what the official implementation computed with the same weights?

A folder of parity vectors holds a tiny configuration, its weights under the official names, inputs and outputs: of one
forward pass of the transformer, or of a whole generation.
"""

from collections.abc import Callable, Iterator, Mapping
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
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.settings import Quirk
from sememe.video_as_prompt.transformer_files import format_of_config, load_merged

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


TOLERANCE = 1e-4
LATENTS_TOLERANCE = 5e-3
_FORWARD_FILES = ("config.json", "weights.safetensors", "inputs.safetensors", "outputs.safetensors")
_PIPELINE_FILES = ("call.json", "inputs.safetensors", "outputs.safetensors")


@dataclass(frozen=True)
class ParityResult:
    """The outcome of a check.

    Attributes:
        kind: `forward` for one pass of the transformer, `pipeline` for a whole generation.
        family: `wan` or `cogvideox`.
        max_abs_error: the largest difference between any two numbers; for a generation, of what the transformer was
            given and returned at its first calls.
        tolerance: what it may be.
        ok: whether all errors are within their tolerances.
        latents_error: for a generation, the largest difference between the final latents.
        latents_tolerance: what that may be.
    """

    kind: str
    family: str
    max_abs_error: float
    tolerance: float
    ok: bool
    latents_error: float | None = None
    latents_tolerance: float | None = None

    def to_document(self) -> dict[str, Any]:
        """Plain values, without those that do not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def check_parity(folder: Path) -> ParityResult:
    """Runs a model on the inputs of a parity folder and compares.

    Raises:
        InputError: the folder holds no parity vectors.
        ModelError: its weights are not those of its configuration.
    """
    kind = _find_kind(folder)
    given, expected = _read(folder / "inputs.safetensors"), _read(folder / "outputs.safetensors")
    if kind == "pipeline":
        family = _family_of_pipeline(folder)
        errors = compare_generation(folder, family, given, expected)
        is_ok = errors.calls <= TOLERANCE and errors.latents <= LATENTS_TOLERANCE
        return ParityResult(kind, family, errors.calls, TOLERANCE, is_ok, errors.latents, LATENTS_TOLERANCE)
    family = _family_of_config(folder)
    error = compare_forward(folder, given, expected)
    return ParityResult(kind, family, error, TOLERANCE, ok=error <= TOLERANCE)


def _find_kind(folder: Path) -> str:
    if all((folder / name).is_file() for name in _FORWARD_FILES):
        return "forward"
    if all((folder / name).is_file() for name in _PIPELINE_FILES) and (folder / "checkpoint").is_dir():
        return "pipeline"
    raise InputError(
        f"expected a folder of parity vectors ({', '.join(_FORWARD_FILES)}; or {', '.join(_PIPELINE_FILES)} and "
        f"checkpoint/), but {folder} is none"
    )


def _family_of_config(folder: Path) -> str:
    known = format_of_config(read_json(folder / "config.json"))
    if known is None:
        raise InputError(f"expected the arguments of a Wan or CogVideoX transformer in {folder / 'config.json'}")
    return known.name


def _family_of_pipeline(folder: Path) -> str:
    name = str(read_json(folder / "checkpoint" / "model_index.json").get("_class_name"))
    for family, prefix in (("wan", "Wan"), ("cogvideox", "CogVideoX")):
        if name.startswith(prefix):
            return family
    raise InputError(f"expected a Wan or CogVideoX pipeline in {folder / 'checkpoint'}, got {name}")


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy the folder again") from error
