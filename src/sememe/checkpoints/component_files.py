"""Loading one component of a model from its folder: JSON and safetensors only, every tensor accounted for."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sememe.checkpoints.headers import iterate_stored, read_stored_tensors
from sememe.checkpoints.tensor_files import CONFIG_NAME, read_json
from sememe.errors import ModelError

_LOADING_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError, KeyError, TypeError)


def load_strictly(component: Any, folder: str | Path, **settings: Any) -> Any:
    """Load a diffusers or transformers model; refuse a folder whose tensors do not fit its config.

    The libraries themselves warn and go on with random weights in that case.

    Args:
        component: The class to load.
        folder: A local folder with config.json and safetensors.
        settings: Passed on to `from_pretrained`.

    Raises:
        ModelError: The folder is incomplete or damaged, does not fit, or chooses code to run.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG_NAME)
    settings = {name: value for name, value in settings.items() if value is not None}
    try:
        tensors = read_stored_tensors(folder)
        if _is_of_transformers(component):
            # Given a folder, transformers would also take adapters, other weights and other configs from it.
            settings |= {"config": _make_config(component, config), "state_dict": dict(iterate_stored(tensors))}
        model, info = component.from_pretrained(
            None if "config" in settings else folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **settings,
        )
    except _LOADING_ERRORS as error:
        raise _cannot_load(component, folder, error) from error
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info.get(kind) or ())
        if names:
            problems.append(f"{len(names)} {kind.replace('_', ' ')}: {', '.join(names[:3])}")
    if problems:
        raise ModelError(f"the tensors in {folder} do not fit its config; {'; '.join(problems)}")
    return model.eval()


def load_without_weights(component: Any, folder: Path) -> Any:
    """Load a tokenizer, a scheduler or an image processor.

    Raises:
        ModelError: The folder does not hold one, or chooses code to run.
    """
    for path in sorted(folder.glob("*config.json")):
        read_json(path)
    try:
        return component.from_pretrained(folder, local_files_only=True)
    except _LOADING_ERRORS as error:
        raise _cannot_load(component, folder, error) from error


def load_tokenizer(folder: Path) -> Any:
    """Load a tokenizer as its tokenizer.json says, or from its vocabulary where it has no such file.

    Raises:
        ModelError: As `load_without_weights` does.
    """
    # Not AutoTokenizer, which asks to run the code of a folder; T5's own class ignores most of a tokenizer.json.
    from transformers import PreTrainedTokenizerFast, T5Tokenizer

    has_rules = (folder / "tokenizer.json").is_file()
    return load_without_weights(PreTrainedTokenizerFast if has_rules else T5Tokenizer, folder)


def _is_of_transformers(component: Any) -> bool:
    from transformers import PreTrainedModel

    return issubclass(component, PreTrainedModel)


def _make_config(component: Any, config: dict[str, Any]) -> Any:
    """Make the config of a transformers model from those settings alone that its class has."""
    config_class = component.config_class
    known = {name for name in vars(config_class()) if not name.startswith("_")} | set(config_class.attribute_map)
    return config_class.from_dict({name: value for name, value in config.items() if name in known})


def _cannot_load(component: Any, folder: Path, error: Exception) -> ModelError:
    reason = str(error) if isinstance(error, ModelError) else " ".join(str(error).split())[:300]
    return ModelError(f"the {component.__name__} in {folder} cannot be loaded: {reason}")
