"""What a memory plan needs to know of a model: read from its folder without loading it, or known of a released one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sememe.checkpoints.zoo import is_hub_id, resolve_model
from sememe.errors import ModelError, SememeError

if TYPE_CHECKING:
    from sememe.checkpoints.headers import StoredTensor
    from sememe.pipelines.autoencoder_memory import AutoencoderShape
    from sememe.pipelines.planning import EncoderWeights, ModelMemory
    from sememe.video_as_prompt.formats import TransformerFormat

_MAX_TEXT_TOKENS = 512
_HALVES = {"BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class _Released:
    """A released model by its configurations, of which only what differs from the classes' defaults is told."""

    family: str
    transformer: Mapping[str, Any]
    vae_class: str
    text_encoder: Mapping[str, Any]
    hub_id: str
    image_encoder: Mapping[str, Any] | None = None


_T5_XXL = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24}
RELEASED: Mapping[str, _Released] = {
    "wan-14b": _Released(
        family="wan",
        transformer={"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
        vae_class="AutoencoderKLWan",
        text_encoder=_T5_XXL | {"vocab_size": 256384, "model_type": "umt5"},
        hub_id="ByteDance/Video-As-Prompt-Wan2.1-14B",
        image_encoder={"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
        | {"num_attention_heads": 16, "image_size": 224, "patch_size": 14},
    ),
    "cogvideox-5b": _Released(
        family="cogvideox",
        transformer={"num_attention_heads": 48, "in_channels": 32, "num_layers": 42}
        | {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True},
        vae_class="AutoencoderKLCogVideoX",
        text_encoder=_T5_XXL | {"vocab_size": 32128, "model_type": "t5"},
        hub_id="ByteDance/Video-As-Prompt-CogVideoX-5B",
    ),
}
"""Video-As-Prompt on Wan2.1-I2V-14B and on CogVideoX-5B-I2V."""


def find_released(name: str | Path) -> str | None:
    """The released model of that name or of that repository on the hub, if it is one; asks no network."""
    return next((each for each, known in RELEASED.items() if name in (each, known.hub_id)), None)


@dataclass(frozen=True)
class Guided:
    """Settings of a generation that decide how many forwards a step takes; None for the model's own.

    Attributes:
        guidance_scale: of the text.
        reference_guidance_scale: of the reference.
        batching: `sequential` or `batched`.
        leads_away: whether reference guidance leads away from other references instead of from the backbone.
    """

    guidance_scale: float | None = None
    reference_guidance_scale: float | None = None
    batching: str | None = None
    leads_away: bool = False


def read_model_memory(
    name: str | Path, expert: str | Path | None = None, guided: Guided | None = None
) -> "ModelMemory":
    """Reads what a plan needs to know.

    Args:
        name: `wan-14b`, `cogvideox-5b` or their repositories on the hub, a built-in name, or a local folder.
        expert: the folder of an expert that goes with it, or of a model that has one.
        guided: settings other than the model's own.

    Raises:
        ModelError: there is no such model or expert, it is not whole, or they do not go together.
    """
    released = find_released(name)
    if released is not None and (name == released or is_hub_id(name)):
        if expert is not None:
            raise ModelError(f"expected a stock model to put the expert {expert} on, but {name} has one; leave it out")
        return replace(_describe_released(released, guided or Guided()), name=str(name))
    if is_hub_id(name):
        raise ModelError(f"expected {', '.join(RELEASED)}, a built-in model or a folder to plan for, got {name}")
    try:
        folder = resolve_model(name)
    except ModelError as error:
        raise ModelError(f"{error}; plans are also made for {' and '.join(RELEASED)}") from error
    try:
        return _describe_folder(str(name), folder, expert, guided or Guided())
    except SememeError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(f"no plan can be made for {folder}: its configurations are not whole ({reason})") from error


def read_own_dtype(folder: Path, expert: Path | None = None) -> str:
    """The precision in which a model is to be computed, by the headers of its files.

    Args:
        folder: of a model.
        expert: the folder of an expert alone that goes with it.

    Raises:
        ModelError: it is not whole.
    """
    from sememe.checkpoints.headers import CONFIG_NAME, read_json, read_stored_tensors
    from sememe.video_as_prompt.layouts import EXPERT_FOLDER, read_layout

    layout = read_layout(folder)
    tensors = [*read_stored_tensors(folder / "transformer").values()]
    if layout.kind == "published":
        return _choose_dtype(tensors, is_trained_here=False)
    apart = expert or folder / EXPERT_FOLDER
    tensors += read_stored_tensors(apart).values()
    is_one_way = read_json(apart / CONFIG_NAME).get("attention_mode") != "joint"
    return _choose_dtype(tensors, is_trained_here=layout.kind == "own" and is_one_way)


def _choose_dtype(tensors: "Iterable[StoredTensor]", *, is_trained_here: bool) -> str:
    """Released models are computed in the precision in which most of them is stored; those trained here in float32."""
    if is_trained_here:
        return "float32"
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.num_bytes
    kind = max(sizes, key=lambda name: sizes[name])
    return _HALVES.get(kind, "float32") if 2 * sizes[kind] > sum(sizes.values()) else "float32"


def _describe_released(name: str, guided: Guided) -> "ModelMemory":
    import torch

    from sememe.video_as_prompt.formats import FORMATS
    from sememe.video_as_prompt.released_defaults import released_defaults

    known = RELEASED[name]
    kind = next(each for each in FORMATS if each.name == known.family)
    with torch.device("meta"):
        settings = dict(known.transformer) | kind.released_settings(kind.released_expert_blocks)
        transformer = kind.transformer(**settings)
        vae = _build_vae("diffusers", known.vae_class, {})
    text = _describe_text_encoder(known.text_encoder, _count_text_encoder(known.text_encoder))
    image = known.image_encoder and _describe_image_encoder(known.image_encoder, _count_clip(known.image_encoder))
    defaults = released_defaults(known.family, transformer, vae)
    described = _describe(name, kind, transformer, vae, defaults, guided, text, image or None)
    pictures = 0 if known.image_encoder is None else _count_image_tokens(known.image_encoder)
    return replace(described, dtype="bfloat16", num_image_tokens=pictures)


def _describe_folder(name: str, folder: Path, expert: str | Path | None, guided: Guided) -> "ModelMemory":
    import torch

    from sememe.checkpoints.headers import read_json
    from sememe.video_as_prompt.layouts import EXPERT_FOLDER, OWN_CLASS, check_whole, read_layout
    from sememe.video_as_prompt.merged_files import open_merged
    from sememe.video_as_prompt.model_folders import choose_expert
    from sememe.video_as_prompt.released_defaults import released_defaults
    from sememe.video_as_prompt.separate_files import open_separate

    layout = read_layout(folder)
    if layout.has_token_timesteps:
        raise ModelError(f"no plan can be made for {folder}: memory of a timestep for each token is not counted yet")
    source = choose_expert(layout, OWN_CLASS, expert)
    check_whole(layout, (), needs_expert=source == folder / EXPERT_FOLDER)
    stored = open_merged(folder / "transformer") if source is None else open_separate(folder / "transformer", source)
    with torch.device("meta"):
        library, class_name = layout.index["vae"]
        vae = _build_vae(library, class_name, read_json(folder / "vae" / "config.json"))
    defaults = layout.index.get("generation_defaults")
    if defaults is None:
        defaults = released_defaults(layout.format.name, stored.skeleton, vae)
    config = read_json(folder / "text_encoder" / "config.json")
    text = _describe_text_encoder(config, _count_stored(folder / "text_encoder"))
    image, pictures = None, 0
    if layout.has("image_encoder"):
        config = read_json(folder / "image_encoder" / "config.json")
        config = config.get("vision_config", config)
        image = _describe_image_encoder(config, _count_stored(folder / "image_encoder"))
        pictures = _count_image_tokens(config)
    described = _describe(name, stored.format, stored.skeleton, vae, defaults, guided, text, image)
    is_trained_here = layout.kind == "own" and described.attention_mode == "cached"
    length = described.num_text_tokens or _count_tokenizer(folder / "tokenizer")
    return replace(
        described,
        dtype=_choose_dtype(stored.tensors.values(), is_trained_here=is_trained_here),
        num_text_tokens=length,
        num_image_tokens=pictures if described.image_encoder else 0,
    )


def _describe(
    name: str,
    kind: "TransformerFormat",
    transformer: Any,
    vae: Any,
    defaults: Mapping[str, Any],
    guided: Guided,
    text: "EncoderWeights",
    image: "EncoderWeights | None",
) -> "ModelMemory":
    from sememe.diffusion.guidance import video_as_prompt_guidance
    from sememe.pipelines.activations import TransformerShape
    from sememe.pipelines.planning import ModelMemory, count_weights
    from sememe.video_as_prompt.settings import Settings

    config = transformer.config
    settings = Settings.from_config(defaults).override(
        guidance_scale=guided.guidance_scale,
        reference_guidance_scale=guided.reference_guidance_scale,
        batching=guided.batching,
    )
    guidance = video_as_prompt_guidance(
        settings.guidance.guidance_scale,
        settings.guidance.reference_guidance_scale,
        null_reference="negative" if guided.leads_away else "none",
    )
    groups = guidance.groups(settings.execution.batching)
    needed = config.get("max_text_seq_length") if kind.name == "cogvideox" else None
    described_vae = _describe_vae(vae, transformer)
    only_size: tuple[int, int] | None = None
    if config.get("use_learned_positional_embeddings"):
        ratio = described_vae.grid.spatial_ratio
        only_size = (config.sample_height * ratio, config.sample_width * ratio)
    return ModelMemory(
        name=name,
        shape=TransformerShape.from_config(kind.name, config),
        transformer=count_weights(transformer),
        attention_mode=config.attention_mode,
        in_channels=config.in_channels,
        text_encoder=text,
        image_encoder=image if kind.name == "wan" and config.image_dim else None,
        vae=described_vae,
        dtype="float32",
        height=settings.size.height,
        width=settings.size.width,
        num_frames=settings.size.num_frames,
        num_text_tokens=needed or settings.sampling.max_sequence_length or 0,
        # What is kept of texts serves every forward that is told the same.
        num_texts=sum(map(len, {tuple(row.variant.text for row in group) for group in groups})),
        keeps_texts=settings.execution.text_keys == "kept",
        num_readers=sum(row.variant.reference != "none" for row in guidance.rows),
        batch_size=max(len(group) for group in groups),
        only_size=only_size,
    )


def _build_vae(library: str, class_name: str, config: Mapping[str, Any]) -> Any:
    from sememe.checkpoints.components import find_class

    return find_class("vae", Path("vae"), (library, class_name)).from_config(dict(config))


def _describe_vae(vae: Any, transformer: Any) -> "AutoencoderShape":
    from sememe.backbones.autoencoder import latent_grid
    from sememe.pipelines.autoencoder_memory import AutoencoderShape
    from sememe.pipelines.planning import largest_layer

    class_name, config = type(vae).__name__, vae.config
    patch = transformer.config.patch_size
    widths: Mapping[str, Callable[[], tuple[int, int]]] = {
        "AutoencoderKLWan": lambda: (config.get("decoder_base_dim") or config.base_dim, config.base_dim),
        "AutoencoderKLCogVideoX": lambda: (config.block_out_channels[0],) * 2,
        "LinearVideoAutoencoder": lambda: (config.hidden_channels,) * 2,
    }
    width, encoder_width = widths[class_name]()
    return AutoencoderShape(
        class_name=class_name,
        grid=latent_grid(vae, patch if isinstance(patch, int) else patch[-1]),
        total=sum(parameter.numel() for parameter in vae.parameters()),
        width=width,
        patch=(config.get("patch_size") or 1) if class_name != "AutoencoderKLCogVideoX" else 1,
        encoder_width=encoder_width,
        # What ours decodes is largest when neighbours are joined, before the first convolution is on the device.
        largest_layer=largest_layer([vae.decoder if class_name == "LinearVideoAutoencoder" else vae]),
    )


def _describe_text_encoder(config: Mapping[str, Any], total: int) -> "EncoderWeights":
    from sememe.pipelines.planning import EncoderWeights

    width = config["d_model"]
    return EncoderWeights(total, config["vocab_size"] * width, width, config["d_ff"], config["num_heads"])


def _describe_image_encoder(config: Mapping[str, Any], total: int) -> "EncoderWeights":
    from sememe.pipelines.planning import EncoderWeights

    width, wide = config["hidden_size"], config["intermediate_size"]
    return EncoderWeights(total, width * wide, width, wide, config["num_attention_heads"])


def _count_text_encoder(config: Mapping[str, Any]) -> int:
    """Numbers in T5's encoder with gated feed-forwards; UMT5 has a table of distances in every block."""
    width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    block = 4 * width * inner + 3 * width * config["d_ff"] + 2 * width
    tables = config["num_layers"] if config["model_type"] == "umt5" else 1
    words = config["vocab_size"] * width
    return words + config["num_layers"] * block + tables * 32 * config["num_heads"] + width


def _count_clip(config: Mapping[str, Any]) -> int:
    """Numbers in CLIP's vision tower."""
    width, wide, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    block = 4 * (width + 1) * width + 2 * width * wide + width + wide + 4 * width
    tables = (3 * patch**2 + 1 + _count_image_tokens(config) + 4) * width
    return config["num_hidden_layers"] * block + tables


def _count_image_tokens(config: Mapping[str, Any]) -> int:
    return (config["image_size"] // config["patch_size"]) ** 2 + 1


def _count_stored(folder: Path) -> int:
    import math

    from sememe.checkpoints.headers import read_stored_tensors

    return sum(math.prod(tensor.shape) for tensor in read_stored_tensors(folder).values())


def _count_tokenizer(folder: Path) -> int:
    from sememe.checkpoints.headers import read_json

    length = read_json(folder / "tokenizer_config.json").get("model_max_length")
    return min(length, _MAX_TEXT_TOKENS) if isinstance(length, int) else _MAX_TEXT_TOKENS
