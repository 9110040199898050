"""A model in memory, ready to generate, and what it was loaded from."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sememe.errors import InputError
from sememe.zoo import ModelFingerprint, fingerprint_model, is_hub_id, resolve_model

if TYPE_CHECKING:
    import torch

    from sememe.pipelines.video_as_prompt import VideoAsPromptPipeline

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadedExpert:
    """An expert that lies apart from its backbone.

    Attributes:
        folder: what it was loaded from.
        sha256: of the folder's files.
    """

    folder: Path
    sha256: str


@dataclass(frozen=True)
class LoadedModel:
    """A pipeline on its device.

    Attributes:
        name: as it was asked for.
        folder: what it was loaded from.
        fingerprint: of the folder's files.
        pipeline: on `device`.
        device: `cpu`, `cuda`, `mps`, ...
        dtype: precision of the transformer's weights.
        expert: where it lies apart.
    """

    name: str
    folder: Path
    fingerprint: ModelFingerprint
    pipeline: "VideoAsPromptPipeline"
    device: str
    dtype: str
    expert: LoadedExpert | None = None


def check_model_request(name: str, dtype: str | None, revision: str | None = None) -> None:
    """Finds mistakes without waiting for torch.

    Raises:
        ModelError: there is no such model here, and it cannot be one of the hub.
        InputError: the precision is unknown, or a revision is asked of what has none.
    """
    if not is_hub_id(name):
        resolve_model(name)
        if revision is not None:
            raise InputError(f"a revision is one of a repository on the hub, but {name} is none; leave it out")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"expected dtype to be one of {', '.join(DTYPES)}, got {dtype!r}")


def load_model(
    name: str,
    device: str | None = None,
    dtype: str | None = None,
    expert: str | None = None,
    revision: str | None = None,
) -> LoadedModel:
    """Loads a Video-As-Prompt model.

    Args:
        name: a built-in name, a folder, or a repository on the Hugging Face hub.
        device: where it runs; None for a GPU where there is one, the CPU otherwise.
        dtype: precision of the transformer and the text encoder; None for float32.
        expert: for a stock model, the folder of an expert, or of a model that has one.
        revision: of a repository on the hub.

    Raises:
        ModelError: there is no such model, or it is not whole.
        InputError: the device is not there, or the precision is unknown.
    """
    check_model_request(name, dtype, revision)
    import torch
    from diffusers.utils.logging import disable_progress_bar

    from sememe.pipelines.folders import find_expert, find_folder
    from sememe.pipelines.video_as_prompt import VideoAsPromptPipeline

    place = choose_device(device)
    folder = find_folder(name, revision)
    apart = None if expert is None else find_expert(expert)
    disable_progress_bar()
    precision = None if dtype is None else getattr(torch, dtype)
    pipeline = VideoAsPromptPipeline.from_pretrained(folder, torch_dtype=precision, expert=apart).to(place)
    pipeline.set_progress_bar_config(disable=True)
    weights = str(pipeline.transformer.dtype).removeprefix("torch.")
    own = None if apart is None else LoadedExpert(apart, fingerprint_model(apart).sha256)
    return LoadedModel(name, folder, fingerprint_model(folder), pipeline, str(place), weights, own)


def choose_device(device: str | None) -> "torch.device":
    """The device of that name, which is there.

    Raises:
        InputError: it is not.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        raise InputError(f"expected a device of this machine (cpu, cuda, cuda:1, mps ...), got {device!r}") from error
    if place.type == "meta":
        raise InputError("expected a device that computes (cpu, cuda, mps ...), got 'meta'")
    return place
