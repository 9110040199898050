"""A transformer in two folders, the stock backbone and the expert alone, checked and written without loading it."""

from collections.abc import Callable
from pathlib import Path

from sememe.checkpoints.headers import CONFIG_NAME, StoredTensor, read_json, read_stored_tensors
from sememe.checkpoints.tensor_files import check_tensors, write_tensors
from sememe.errors import ModelError
from sememe.records import to_plain
from sememe.video_as_prompt.formats import FORMATS, StoredTransformer, TransformerFormat, build_on_meta, format_of_class

_STEMS = ("diffusion_pytorch_model",)


def open_separate(backbone_folder: str | Path, expert_folder: str | Path) -> StoredTransformer:
    """Check a stock backbone folder and an expert folder without loading them.

    Raises:
        ModelError: One of them is not what was expected or is not whole, or the expert is for another backbone.
    """
    backbone, expert = Path(backbone_folder), Path(expert_folder)
    known = check_pair(backbone, expert)
    own = known.transformer.read_expert_config(expert)
    config = {name: value for name, value in read_json(backbone / CONFIG_NAME).items() if not name.startswith("_")}
    settings = config | {name: own[name] for name in known.transformer.own_settings}
    skeleton = build_on_meta(known.transformer, settings, backbone / CONFIG_NAME)
    for name, value in own.items():
        if (
            not name.startswith("_")
            and name not in known.transformer.own_settings
            and to_plain(skeleton.config.get(name)) != value
        ):
            raise ModelError(
                f"the expert in {expert} was made for a backbone with {name} = {value}, but that in {backbone} has "
                f"{to_plain(skeleton.config.get(name))}; give the backbone that it was made for"
            )
    shapes = {key: tensor.shape for key, tensor in skeleton.state_dict().items()}
    tensors: dict[str, StoredTensor] = {}
    for folder, is_expert in ((backbone, False), (expert, True)):
        stored = read_stored_tensors(folder, _STEMS)
        expected = {key: shape for key, shape in shapes.items() if known.keys.is_expert_key(key) == is_expert}
        check_tensors(folder, expected, stored)
        tensors |= stored
    return StoredTransformer(known, settings, skeleton, tensors)


def write_separate(
    stored: StoredTransformer,
    backbone_folder: str | Path,
    expert_folder: str | Path,
    max_shard_size: int | str,
    on_tensor: Callable[[], None],
) -> None:
    """Copy a transformer from other files to a stock backbone folder and an expert folder.

    Raises:
        ModelError: A file cannot be read.
        OutputError: A folder cannot be written.
    """
    known = stored.format
    parts: dict[bool, dict[str, StoredTensor]] = {False: {}, True: {}}
    for key, tensor in stored.tensors.items():
        parts[known.keys.is_expert_key(key)][key] = tensor
    configs = {False: stored.skeleton.backbone_config(), True: stored.skeleton.expert_config()}
    for is_expert, folder in ((False, backbone_folder), (True, expert_folder)):
        write_tensors(Path(folder), parts[is_expert], configs[is_expert], max_shard_size, on_tensor)


def check_pair(backbone_folder: Path, expert_folder: Path) -> TransformerFormat:
    """Check that an expert is made for this kind of backbone, and return their format.

    Raises:
        ModelError: It is not, or one of the folders holds something else.
    """
    stock = str(read_json(backbone_folder / CONFIG_NAME).get("_class_name"))
    known = format_of_class(stock)
    if known is None or stock != known.stock_class:
        names = " or ".join(each.stock_class for each in FORMATS)
        raise ModelError(f"expected a {names} in {backbone_folder}, its {CONFIG_NAME} names {stock}")
    class_name = str(read_json(expert_folder / CONFIG_NAME).get("_class_name"))
    other = format_of_class(class_name)
    if other is not None and class_name == other.official_class:
        raise ModelError(
            f"expected a folder of an expert alone, but {expert_folder} is a {class_name} with its backbone merged in; "
            "split that model with `sememe convert` first"
        )
    if class_name != known.expert_class:
        raise ModelError(
            f"expected a {known.expert_class} for the {stock} in {backbone_folder}, but {expert_folder} holds a "
            f"{class_name}; give an expert that was made for this backbone"
        )
    return known
