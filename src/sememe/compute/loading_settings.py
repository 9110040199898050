"""Settings that act when a model is loaded, the same for every system. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from sememe.errors import InputError
from sememe.records import Positive, Record


@dataclass(frozen=True, kw_only=True)
class LoadingSettings(Record):
    """How a model is loaded, and where and how it computes.

    Attributes:
        device: Device, such as cpu, cuda or mps; none takes a GPU where there is one.
        dtype: Precision of the weights; none is float32, or with vram what fits.
        attention: Attention backend, as diffusers names it (native, flash, sage ...).
        compile: Compile the transformer's blocks: slower to start, faster steps.
        vram: GB of the card, to compute in the fastest way that fits.
        storage: With vram, weights in fewer bits (fp8, int8wo, nf4 ...); approximate.
        expert: Folder of an expert, for a stock model that has none.
        revision: Revision of a model on the hub.
    """

    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    attention: str | None = None
    compile: bool = False
    vram: Positive | None = None
    storage: str | None = None
    expert: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.storage is not None and self.vram is None:
            raise InputError(
                "storage has an effect only with vram, the GB of the card to plan for; set both or neither"
            )
