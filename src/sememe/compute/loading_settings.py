"""Settings that act when a model is loaded, the same for every system. Imports no torch."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

from sememe.errors import InputError
from sememe.records import Positive, Record


class LoadingSettings(Record):
    """How a model is loaded, and where and how it computes.

    Attributes:
        device: Device, such as cpu, cuda or mps; none takes a GPU where there is one.
        dtype: Precision of the weights; none is that of the model's files, or float32 for a model that sememe
            trained as a whole.
        vae_dtype: Precision of the autoencoder; less than float32 takes less memory and is approximate.
        attention: Attention backend, as diffusers names it (native, flash, sage ...).
        compile: Compile the transformer's blocks: slower to start, faster steps.
        vram: GB of the card, to compute in the fastest way that fits; none is what is free on a CUDA card.
        storage: Weights in fewer bits (fp8, int8wo, nf4 ...), on a card or with vram; approximate.
        lora: LoRA weights of the backbone or of the expert, as FILE or FILE:SCALE.
        expert: Folder of an expert, for a stock model that has none.
        revision: Revision of a model on the hub.
    """

    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    vae_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: str | None = None
    compile: bool = False
    vram: Positive | None = None
    storage: str | None = None
    lora: tuple[str, ...] = ()
    expert: str | None = None
    revision: str | None = None

    @property
    def adapters(self) -> tuple[tuple[Path, float], ...]:
        """Files of LoRA weights, and the scale of each.

        Raises:
            InputError: A file is not there, or is not a .safetensors file, or a scale is not finite.
        """
        found = tuple(map(_parse_adapter, self.lora))
        for path, scale in found:
            if path.suffix != ".safetensors" or not path.is_file():
                raise InputError(f"expected LoRA weights in a .safetensors file that is there, got {path}")
            if not math.isfinite(scale):
                raise InputError(f"expected a finite scale for the LoRA weights {path}, got {scale}")
        return found

    def with_absolute_paths(self) -> "LoadingSettings":
        """Return the same settings for use in any folder of this machine."""
        lora = tuple(f"{path.absolute()}:{scale}" for path, scale in map(_parse_adapter, self.lora))
        expert = self.expert
        if expert is not None and Path(expert).is_dir():
            expert = str(Path(expert).absolute())
        return replace(self, lora=lora, expert=expert)


def _parse_adapter(entry: str) -> tuple[Path, float]:
    name, _, scale = entry.rpartition(":")
    try:
        return (Path(name), float(scale)) if name else (Path(entry), 1.0)
    except ValueError:  # the colon is part of the name
        return Path(entry), 1.0
