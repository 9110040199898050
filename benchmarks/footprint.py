"""What a whole generation of the built-in size takes in memory, and how often it works on the reference."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from benchmarks.contestants import TEXT_SCALE, Models, make_contestants, run_steps
from benchmarks.geometry import LATENT_CHANNELS, QUICK, AttentionMode, make_inputs, make_transformer
from sememe.compute.rehearsal import track_memory
from sememe.training.networks import make_text_encoder
from sememe.training.recipes import TextNetwork
from sememe.video import Clip
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.recipes import tiny_backbone
from sememe.video_as_prompt.references import ReferenceCache, ReferenceTokens
from sememe.video_as_prompt.stage_settings import WanNetwork
from sememe.video_as_prompt.stages import make_transformer as make_backbone

MODES: tuple[AttentionMode, ...] = ("cached", "joint")
_WORDS = ("<pad>", "</s>", "<unk>", "a", "ball", "blurry")


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a generation: pixels, frames, steps, and the networks that make it."""

    network: WanNetwork
    text: TextNetwork
    size: int
    num_frames: int
    num_steps: int


def tiny_size() -> Size:
    """That of the built-in model."""
    recipe = tiny_backbone()
    return Size(
        network=replace(recipe.network, num_mask_channels=4), text=recipe.text, size=64, num_frames=17, num_steps=3
    )


def quick_size() -> Size:
    """Says that everything runs."""
    network = WanNetwork(
        num_mask_channels=4, patch_size=1, num_layers=2, num_attention_heads=2, attention_head_dim=24, ffn_dim=64
    )
    text = TextNetwork(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, max_tokens=8)
    return Size(network=network, text=text, size=32, num_frames=5, num_steps=2)


def measure_generations(size: Size) -> dict[str, Any]:
    """Peak memory of generations, and what the stock pipeline's leaves to them.

    Each is to stay below the stock pipeline's peak with the expert's weights and one reference record on top, to
    within 5 %. Weights count from the beginning to the end, everything else while it lives.
    """
    stock = _measure_stock(size)
    rows = [_measure_ours(size, mode, stock["peak_bytes"]) for mode in MODES]
    return {
        "size": {"pixels": size.size, "frames": size.num_frames, "steps": size.num_steps, "dtype": "float32"},
        "stock": stock,
        "ours": rows,
    }


def count_reference_work(num_steps: int = 4) -> list[dict[str, Any]]:
    """How often a generation embeds its reference, and runs an expert on it, in each way of computing."""
    cached, joint = (make_transformer(QUICK, QUICK.every(1), mode) for mode in MODES)
    entries = make_contestants(Models(None, joint, cached, make_inputs(QUICK)))
    rows = []
    for name in ("official", "ours, exact", "ours, stock null", "ours, one-way"):
        entry = entries[name]
        embeddings = _Counter(entry.model.expert_embedder.patch_embedding)
        passes = _Counter(entry.model.blocks[0].expert.projection.to_k)
        with torch.no_grad():
            run_steps(entry, entry.prepare(), make_inputs(QUICK).latents, num_steps)
        rows.append(
            {
                "name": name,
                "num_steps": num_steps,
                "num_forwards": num_steps * len(entry.guidance.rows),
                "num_reference_embeddings": embeddings.stop(),
                "num_expert_passes": passes.stop(),
            }
        )
    return rows


def count_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def record_bytes(record: ReferenceCache | ReferenceTokens) -> int:
    """Bytes of a reference as a generation keeps it."""
    if isinstance(record, ReferenceCache):
        tensors = [*record.keys, *record.values]
    else:
        stream = record.stream
        parts = [record.hidden_states, stream.temb, *stream.texts, *(stream.rotary or ())]
        tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Counter:
    """Counts the calls of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        self._handle = module.register_forward_hook(self._add)

    def stop(self) -> int:
        self._handle.remove()
        return self.count

    def _add(self, *_arguments: Any) -> None:
        self.count += 1


def _measure_stock(size: Size) -> dict[str, Any]:
    parts = make_parts(size)
    transformer = make_backbone(size.network, LATENT_CHANNELS, size.text.d_model).eval()
    pipeline = WanImageToVideoPipeline(**parts, transformer=transformer)
    pipeline.set_progress_bar_config(disable=True)

    def generate() -> Any:
        return pipeline(
            image=Image.fromarray(_draw_frames(size, 1)[0]),
            prompt="a ball",
            negative_prompt="blurry",
            height=size.size,
            width=size.size,
            num_frames=size.num_frames,
            num_inference_steps=size.num_steps,
            guidance_scale=TEXT_SCALE,
            max_sequence_length=size.text.max_tokens,
            generator=torch.Generator().manual_seed(0),
        )

    weights = sum(count_bytes(part) for part in (parts["vae"], parts["text_encoder"], transformer))
    activations = _track(generate)
    return {"weight_bytes": weights, "activation_bytes": activations, "peak_bytes": weights + activations}


def _measure_ours(size: Size, mode: AttentionMode, stock_peak: int) -> dict[str, Any]:
    parts = make_parts(size)
    backbone = make_backbone(size.network, LATENT_CHANNELS, size.text.d_model)
    transformer = WanVideoAsPromptTransformer.from_backbone(backbone, None, mode, 1.0).eval()
    pipeline = VideoAsPromptPipeline(
        **parts,
        transformer=transformer,
        generation_defaults={"height": size.size, "width": size.size, "num_frames": size.num_frames},
    )
    pipeline.set_progress_bar_config(disable=True)
    reference = Clip(_draw_frames(size, size.num_frames), 8.0)
    guidance: dict[str, Any] = {
        "guidance_scale": TEXT_SCALE,
        "reference_guidance_scale": TEXT_SCALE if mode == "cached" else 1.0,
    }

    def generate() -> Any:
        return pipeline(
            image=_draw_frames(size, 1)[0],
            references=[reference],
            prompt="a ball",
            negative_prompt="blurry",
            num_inference_steps=size.num_steps,
            generator=torch.Generator().manual_seed(0),
            **guidance,
        )

    expert = sum(parameter.numel() * parameter.element_size() for _, parameter in transformer.expert_named_parameters())
    encoded = pipeline.encode_reference([reference]).payload
    assert encoded is not None
    record = record_bytes(encoded)
    weights = sum(count_bytes(part) for part in (parts["vae"], parts["text_encoder"], transformer))
    activations = _track(generate)
    peak, allowed = weights + activations, stock_peak + expert + record
    return {
        "attention_mode": mode,
        "guidance": guidance,
        "weight_bytes": weights,
        "expert_bytes": expert,
        "reference_record_bytes": record,
        "activation_bytes": activations,
        "peak_bytes": peak,
        "allowed_bytes": allowed,
        "share_of_allowed": peak / allowed,
        "holds": peak <= 1.05 * allowed,
    }


def _track(generate: Callable[[], Any]) -> int:
    generate()
    with torch.no_grad(), track_memory() as memory:
        generate()
    return memory.peak_bytes


def make_parts(size: Size) -> dict[str, Any]:
    """Everything of a pipeline but its transformer, with random weights."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=16, z_dim=LATENT_CHANNELS, dim_mult=[1, 2, 2, 2], num_res_blocks=1).eval()
    return {
        "tokenizer": _make_tokenizer(size.text.max_tokens),
        "text_encoder": make_text_encoder(size.text, size.text.vocab_size).eval(),
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _make_tokenizer(max_tokens: int) -> PreTrainedTokenizerFast:
    words = {word: index for index, word in enumerate(_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks = dict(zip(("pad_token", "eos_token", "unk_token"), _WORDS, strict=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_tokens, **marks)


def _draw_frames(size: Size, num_frames: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (num_frames, size.size, size.size, 3), dtype=np.uint8)
