"""Keeps output of libraries out of the command's own output."""

import logging
import os
import warnings

_SETTINGS = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

# Diffusers imports these if they are installed, and they log missing optional parts.
_TALKATIVE = ("torchao", "bitsandbytes", "torch.utils._pytree")


def silence_libraries() -> None:
    """Asks libraries that are not loaded yet for errors only, without progress bars; what is set already stays."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
