"""What the pipelines of all systems have in common: how they are loaded, placed on a card, and interrupted."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import DiffusionPipeline

from sememe.checkpoints.components import Dtypes, check_components
from sememe.checkpoints.zoo import find_folder
from sememe.compute.devices import find_device
from sememe.errors import InputError
from sememe.system import System

P = TypeVar("P", bound="SystemPipeline")


class SystemPipeline(DiffusionPipeline):
    """A pipeline of one system, whose own class says what it consists of and how its parts are read."""

    system: ClassVar[System]
    known_parts: ClassVar[tuple[str, ...]]
    """What may be given when a model is loaded: components, and other arguments of the constructor."""
    loading_options: ClassVar[tuple[str, ...]] = ()
    """Names of what `load_components` takes besides."""
    load_components: ClassVar[Callable[..., dict[str, Any]]]
    """Reads the arguments of the constructor from a folder; takes the folder, the precision, the parts that are given,
    the name of the class, and by name the device and the options."""
    exact_components: ClassVar[tuple[str, ...]] = ()
    """Components that are always in float32, in files and in memory."""
    known_device: torch.device | None = None
    """The device it computes on, while a call lasts."""
    current_timestep: float | None = None
    """Timestep of the current step in 0..1000, which some feature caches read."""
    _interrupt = False
    _offload: Any = None
    _part_offloads: Sequence[Any] = ()

    @property
    def _execution_device(self) -> torch.device:
        return self.known_device or super()._execution_device

    @property
    def compute_dtype(self) -> torch.dtype:
        """Precision in which the network that denoises computes."""
        dtype: torch.dtype = self.transformer.dtype
        return dtype

    @property
    def interrupt(self) -> bool:
        """Set to True, in a callback or from another thread: the generation ends before its next step."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

    @classmethod
    def from_pretrained(  # noqa: PYI019 (beartype checks methods one by one and refuses Self)
        cls: type[P],
        name: str | Path,
        torch_dtype: Dtypes | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: Any = None,
        local_files_only: bool = False,
        device_map: torch.device | str | None = None,
        **parts: Any,
    ) -> P:
        """Load a model.

        Args:
            name: Built-in model, local folder in the layout of `save_pretrained` or another that the system reads, or
                a repository on the Hugging Face hub.
            torch_dtype: Dtype of the networks, or as in diffusers one by the name of a component and "default" for the
                others; None for the one in which the model is meant to be computed, which for released models is that
                of their files. Autoencoders and encoders of pictures have float32 unless they are named.
            revision: Revision of a repository on the hub.
            cache_dir: Folder of the hub's cache; None for the usual one.
            token: Token for the hub, or whether to use the one that is stored; None where it is needed.
            local_files_only: Take what the cache of the hub has, without asking the hub.
            device_map: Device, such as "cuda", to which each network goes before the next is read, so that the
                machine's own memory holds one at a time; None leaves all on the CPU.
            parts: Loaded components to use instead of the model's, by name, and options that the class explains.

        Raises:
            ModelError: If there is no such model, or files of it are missing.
            InputError: If an argument is not a component, or the device is not there; nothing has been read then.
        """
        check_components((*cls.known_parts, *cls.loading_options), parts, torch_dtype)
        device = None if device_map is None else find_device(device_map)
        hub = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        folder = find_folder(name, revision, cls.system.name, **hub)
        options = {each: parts.pop(each) for each in cls.loading_options if each in parts}
        return cls(**(cls.load_components(folder, torch_dtype, parts, cls.__name__, device=device, **options) | parts))

    @classmethod
    def from_pipe(  # noqa: PYI019 (as above)
        cls: type[P], pipeline: DiffusionPipeline, torch_dtype: torch.dtype | None = None, **parts: Any
    ) -> P:
        """Make a pipeline of the components of another, which both then share.

        Args:
            pipeline: A pipeline of any class, with components of the kinds that this one has, by the same names.
            torch_dtype: Precision to which all of them are cast, in both pipelines; None leaves them as they are.
            parts: Components to use instead, by name, and other arguments of the constructor.

        Raises:
            InputError: A component is missing, or an argument is none of the pipeline's.
            ModelError: A component is of a class that the pipeline cannot use, or they do not go together.
        """
        needed, settings = cls._get_signature_keys(cls)
        check_components((*needed, *settings), parts, torch_dtype)
        given = {name: part for name, part in pipeline.components.items() if name in needed}
        given |= {name: pipeline.config[name] for name in settings if name in pipeline.config}
        given |= parts
        missing = sorted(set(needed) - set(cls._optional_components) - {k for k, v in given.items() if v is not None})
        if missing:
            raise InputError(
                f"expected a pipeline with {', '.join(needed)}, but a {type(pipeline).__name__} has no "
                f"{', '.join(missing)}; give what is missing by name"
            )
        made = cls(**given)
        return made if torch_dtype is None else made.to(torch_dtype)
