"""Peaks by arithmetic against peaks that were measured, tensor by tensor, on small networks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan

from sememe.backbones.autoencoder import decode_latents, encode_video, latent_grid
from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder
from sememe.compute.tiling import enable_tiling
from sememe.compute.tracker import measure_peak, track_memory
from sememe.errors import InputError
from sememe.pipelines.activations import TokenCounts, TransformerShape, encode_bytes, forward_bytes, record_bytes
from sememe.pipelines.autoencoder_memory import AutoencoderShape
from sememe.pipelines.planning import (
    EncoderWeights,
    Generation,
    ModelMemory,
    Strategy,
    count_tokens,
    count_weights,
    estimate_memory,
)
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs
from video_as_prompt import cogvideox_factories, wan_factories

BOUND = 0.10
NUM_LAYERS = 4
# Latent frames, rows and columns, of which 2x2 make a token.
SIZES = [(3, 20, 24), (5, 28, 16)]

each_size = pytest.mark.parametrize("size", SIZES, ids=str)
each_family = pytest.mark.parametrize("family", ["wan", "cogvideox"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
each_placing = pytest.mark.parametrize("experts", [[0, 1, 2, 3], [0, 2], [3]], ids=["all", "some", "last"])


@dataclass
class Bench:
    """A small network with all that it is given."""

    model: Any
    shape: TransformerShape
    counts: TokenCounts
    arguments: tuple[Any, ...]
    settings: dict[str, Any]
    inputs: ReferenceInputs

    def forward(self, reference: Any = None) -> Any:
        return self.model(*self.arguments, reference=reference, **self.settings)

    def encode(self) -> ReferenceCache:
        cache: ReferenceCache = self.model.encode_reference(self.inputs)
        return cache


def make_bench(
    family: str, mode: str, size: tuple[int, int, int], experts: list[int], dtype: torch.dtype = torch.float32
) -> Bench:
    frames, height, width = size
    timestep = torch.tensor([500.0])
    if family == "wan":
        model: Any = wan_factories.make_transformer(
            attention_mode=mode, expert_blocks=experts, num_layers=NUM_LAYERS, ffn_dim=128
        )
        video, text = torch.randn(1, wan_factories.IN_CHANNELS, *size), torch.randn(1, 7, wan_factories.TEXT_DIM)
        settings: dict[str, Any] = {}
    else:
        native: Any = {"sample_height": height, "sample_width": width, "num_layers": NUM_LAYERS}
        model = cogvideox_factories.make_transformer(attention_mode=mode, expert_blocks=experts, **native)
        video = torch.randn(1, frames, cogvideox_factories.IN_CHANNELS, height, width)
        text = torch.randn(1, cogvideox_factories.TEXT_LENGTH, cogvideox_factories.TEXT_DIM)
        settings = {"image_rotary_emb": model.rotary_tables(*size)}
    for module in (model, model.expert_embedder):  # whole, without diffusers' word on precisions
        torch.nn.Module.to(module, dtype)
    video, text = video.to(dtype), text.to(dtype)
    shape = TransformerShape.from_config(family, model.config)
    num_tokens, num_texts = shape.count_tokens(*size), text.shape[1]
    arguments = (video, timestep, text) if family == "wan" else (video, text, timestep)
    counts = TokenCounts(num_tokens, num_tokens, num_texts, num_texts)
    return Bench(model, shape, counts, arguments, settings, ReferenceInputs((video.clone(),), (text.clone(),)))


def assert_near(predicted: float, measured: float, bound: float = BOUND) -> None:
    assert predicted == pytest.approx(measured, rel=bound), f"{predicted / measured - 1:+.1%}"


@each_family
@each_size
@each_dtype
@each_placing
@torch.no_grad()
def test_two_way(family: str, size: tuple[int, int, int], dtype: torch.dtype, experts: list[int]) -> None:
    bench = make_bench(family, "joint", size, experts, dtype)
    record = bench.model.embed_reference(bench.inputs)
    peak = forward_bytes(bench.shape, bench.counts, dtype.itemsize, "joint")
    assert_near(peak, measure_peak(lambda: bench.forward(record)))


@each_family
@each_size
@each_dtype
@each_placing
@torch.no_grad()
def test_one_way(family: str, size: tuple[int, int, int], dtype: torch.dtype, experts: list[int]) -> None:
    bench = make_bench(family, "cached", size, experts, dtype)
    cache = bench.encode()
    peak = forward_bytes(bench.shape, bench.counts, dtype.itemsize, "cached")
    assert_near(peak, measure_peak(lambda: bench.forward(cache)))
    if len(experts) > 1:
        assert_near(encode_bytes(bench.shape, bench.counts, dtype.itemsize), measure_peak(bench.encode))


@each_family
@each_size
@each_dtype
@torch.no_grad()
def test_without_reference(family: str, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    bench = make_bench(family, "joint", size, [0, 2], dtype)
    assert_near(forward_bytes(bench.shape, bench.counts, dtype.itemsize, "none"), measure_peak(bench.forward))


@torch.no_grad()
def test_a_shorter_reference_and_a_batch() -> None:
    bench = make_bench("wan", "joint", SIZES[0], [0, 2])
    latents, texts = bench.inputs.latents[0][:, :, :1].clone(), bench.inputs.text_embeds
    record = bench.model.embed_reference(ReferenceInputs((latents,), texts))
    counts = replace(bench.counts, reference=bench.counts.target // 3)
    bench.arguments = tuple(torch.cat([argument, argument]) for argument in bench.arguments)
    peak = forward_bytes(bench.shape, counts, 4, "joint", batch_size=2)
    assert_near(peak, measure_peak(lambda: bench.forward(record)))


@each_family
@pytest.mark.parametrize("mode", ["joint", "cached"])
@torch.no_grad()
def test_records(family: str, mode: Any) -> None:
    bench = make_bench(family, mode, SIZES[0], [0, 1, 2])
    kept: list[Any] = []
    work: Callable[[], Any] = bench.encode if mode == "cached" else lambda: bench.model.embed_reference(bench.inputs)
    with track_memory() as memory:
        kept.append(work())
    assert_near(record_bytes(bench.shape, bench.counts, 4, mode), memory.live_bytes)


VAES: dict[str, Callable[[], Any]] = {
    "wan": lambda: AutoencoderKLWan(base_dim=16, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
    "cogvideox": lambda: AutoencoderKLCogVideoX(
        block_out_channels=(16, 32, 32, 64), latent_channels=4, norm_num_groups=4
    ),
}


@pytest.mark.parametrize("name", VAES)
@torch.no_grad()
def test_autoencoders(name: str) -> None:
    """At the depth of the released ones; their width is a factor."""
    vae = VAES[name]().eval()
    shape = AutoencoderShape(type(vae).__name__, latent_grid(vae), 0, 16)
    size = (17, 32, 32)
    latents = torch.zeros(1, *shape.grid.latent_shape(*size))
    assert_near(shape.decode_bytes(*size, tiled=False), measure_peak(lambda: decode_latents(vae, latents)), 0.2)
    video = torch.zeros(1, 3, *size)
    encoded = measure_peak(lambda: encode_video(vae, video)) + video.nbytes
    assert_near(shape.encode_bytes(*size, tiled=False), encoded, 0.2)


@pytest.mark.parametrize("num_frames", [1, 17])
@pytest.mark.parametrize(
    ("patch", "channels", "width"), [(8, 48, 64), (8, 48, 512), (4, 4, 8), (4, 16, 128), (2, 4, 16)]
)
@torch.no_grad()
def test_the_linear_autoencoder(patch: int, channels: int, width: int, num_frames: int) -> None:
    """As the built-in model has it, and where the refinement is wide."""
    vae = LinearVideoAutoencoder(channels, patch, width, num_layers=1).eval()
    shape = AutoencoderShape(type(vae).__name__, latent_grid(vae), 0, width)
    size = (num_frames, 32, 32)
    latents, video = torch.zeros(1, *shape.grid.latent_shape(*size)), torch.zeros(1, 3, *size)
    assert_near(shape.decode_bytes(*size, tiled=False), measure_peak(lambda: decode_latents(vae, latents)))
    encoded = measure_peak(lambda: encode_video(vae, video)) + video.nbytes
    assert_near(shape.encode_bytes(*size, tiled=False), encoded)


@torch.no_grad()
def test_an_autoencoder_in_tiles() -> None:
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4).eval()
    shape = AutoencoderShape("AutoencoderKLWan", latent_grid(vae), 0, 4)
    size = (5, 448, 64)
    latents = torch.zeros(1, *shape.grid.latent_shape(*size))
    enable_tiling(vae)
    measured = measure_peak(lambda: decode_latents(vae, latents))
    assert_near(shape.decode_bytes(*size, tiled=True), measured, 0.2)
    assert measured < shape.decode_bytes(*size, tiled=False)


def make_model(**settings: Any) -> ModelMemory:
    """A made-up model, of which every part has a size that is easy to recognise."""
    transformer = wan_factories.make_transformer(expert_blocks=[0, 2])
    vae = AutoencoderShape("AutoencoderKLWan", latent_grid(wan_factories.make_wan_vae(), 2), 10**6, 4)
    described: dict[str, Any] = {
        "name": "made-up",
        "shape": TransformerShape.from_config("wan", transformer.config),
        "transformer": replace(count_weights(transformer), blocks=(3 * 10**8, 10**8, 2 * 10**8), rest=10**7),
        "attention_mode": "joint",
        "in_channels": 12,
        "text_encoder": EncoderWeights(10**9, 10**8, 100, 200, 2),
        "image_encoder": None,
        "vae": vae,
        "dtype": "bfloat16",
        "height": 64,
        "width": 64,
        "num_frames": 9,
        "num_text_tokens": 8,
    }
    return ModelMemory(**(described | settings))


GENERATION = Generation(64, 64, 9)


@pytest.mark.parametrize(
    ("strategy", "texts", "steps"),
    [
        (Strategy("bfloat16"), 3.224e9, 3.224e9),
        (Strategy("float32"), 6.444e9, 6.444e9),
        (Strategy("bfloat16", frees_texts=True), 2e9, 1.224e9),
        (Strategy("bfloat16", offload="model"), 2.004e9, 1.224e9),
        (Strategy("bfloat16", offload="group"), 2e9, 1.02e9),
        (Strategy("bfloat16", "fp8"), 2.624e9, 2.624e9),
        (Strategy("bfloat16", "nf4"), 2.3615e9, 2.3615e9),
    ],
    ids=str,
)
def test_weights_on_the_device(strategy: Strategy, texts: float, steps: float) -> None:
    estimate = estimate_memory(make_model(), GENERATION, strategy)
    assert estimate.phases["texts"].weights == pytest.approx(texts, rel=1e-3)
    assert estimate.phases["steps"].weights == pytest.approx(steps, rel=1e-3)
    assert estimate.peak == max(phase.total for phase in estimate.phases.values())


def test_single_layers_take_the_least() -> None:
    peaks = [
        estimate_memory(make_model(), GENERATION, Strategy("bfloat16", offload=offload)).phases["steps"].weights
        for offload in ("none", "model", "group", "group-leaf", "sequential")
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)


def test_more_is_more() -> None:
    def peak(generation: Generation, **settings: Any) -> int:
        steps = estimate_memory(make_model(**settings), generation, Strategy("bfloat16")).phases["steps"]
        return steps.activations + steps.record

    plain = peak(GENERATION)
    assert peak(replace(GENERATION, num_references=0)) < plain < peak(replace(GENERATION, num_references=2))
    assert peak(replace(GENERATION, height=128)) > 1.8 * plain
    assert peak(GENERATION, batch_size=2) > 1.6 * plain
    assert peak(replace(GENERATION, keeps_keys=True)) > plain
    assert peak(GENERATION, num_texts=3) > plain


def test_what_rests_is_gone_in_the_steps() -> None:
    weights = replace(make_model().transformer, experts=2 * 10**8, expert_embedder=10**6)
    image = EncoderWeights(10**8, 10**6, 100, 200, 2)
    model = make_model(transformer=weights, attention_mode="cached", image_encoder=image)
    plain, expert, both = (
        estimate_memory(model, GENERATION, Strategy("bfloat16", resting=resting)).phases
        for resting in ((), ("expert",), ("encoders", "expert"))
    )
    assert list(plain) == ["texts", "encode", "expert", "steps", "decode"]
    gone = {name: plain[name].weights - expert[name].weights for name in plain}
    assert gone == {"texts": 402e6, "encode": 402e6, "expert": 0, "steps": 402e6, "decode": 402e6}
    gone = {name: expert[name].weights - both[name].weights for name in plain}
    assert gone == {"texts": 0, "encode": 0, "expert": 0, "steps": 2.4e9, "decode": 2.4e9}
    twice = estimate_memory(
        model, replace(GENERATION, num_negative_references=1), Strategy("bfloat16", resting=("expert",))
    )
    assert twice.phases["encode"].weights == plain["encode"].weights, "the first references' expert is still there"
    moved = estimate_memory(model, GENERATION, Strategy("bfloat16", offload="model", resting=("expert",))).phases
    assert moved["expert"].weights - moved["steps"].weights == 402e6


def test_texts_that_are_not_kept_are_not_counted() -> None:
    kept, recomputed = (
        estimate_memory(make_model(), GENERATION, Strategy("bfloat16", keeps_texts=keeps)).phases["steps"]
        for keeps in (True, False)
    )
    assert recomputed.record < kept.record
    assert recomputed.activations <= kept.activations


def test_smaller_references_have_fewer_tokens() -> None:
    counts = [count_tokens(make_model(), replace(GENERATION, reference_downscale=scale)) for scale in (1, 2)]
    assert counts[0].reference == 4 * counts[1].reference
    assert counts[0].target == counts[1].target
    with pytest.raises(InputError, match="reference_downscale 3 needs a height that is a multiple of 48, got 64"):
        count_tokens(make_model(), replace(GENERATION, reference_downscale=3))


def test_texts_that_are_encoded_together_count_together() -> None:
    one, two = (
        estimate_memory(make_model(num_texts=number), GENERATION, Strategy("bfloat16")).phases["texts"].activations
        for number in (1, 2)
    )
    assert two == 2 * one


def test_a_size_that_the_model_cannot_make() -> None:
    with pytest.raises(InputError, match="height must be a multiple of 16"):
        estimate_memory(make_model(), replace(GENERATION, height=60), Strategy("bfloat16"))
    with pytest.raises(InputError, match="num_reference_frames must be 1 more than a multiple"):
        estimate_memory(make_model(), replace(GENERATION, num_reference_frames=8), Strategy("bfloat16"))
