"""LoRA on the U-Net: small matrices beside the image model's attention (arXiv 2106.09685)."""

from pathlib import Path

from diffusers.loaders import PeftAdapterMixin

from sememe.compute.lora import LORA_NAME, without_injection_warnings
from sememe.errors import InputError


def add_lora(unet: PeftAdapterMixin, rank: int) -> None:
    """Put small matrices beside those of the spatial attention, which change nothing yet."""
    from peft import LoraConfig

    unet.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=["to_q", "to_k", "to_v", "to_out.0"],
            exclude_modules=r".*temporal_transformer.*",
        )
    )


def load_lora(unet: PeftAdapterMixin, folder: Path) -> None:
    """Load what a customisation has trained.

    Raises:
        InputError: There is no such folder, or it was made for another model.
    """
    if not (folder / LORA_NAME).is_file():
        raise InputError(f"expected a LoRA ({LORA_NAME}) in {folder}, found none")
    try:
        with without_injection_warnings():
            unet.load_lora_adapter(
                folder, prefix=None, adapter_name="default", use_safetensors=True, local_files_only=True
            )
    except (ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the LoRA in {folder} does not fit this model: {reason}") from error
