"""How a renderer begins: semantic tokens that its backbone can already read."""

import copy

import torch
from torch import nn

from sememe.data.array_cache import ArrayCache
from sememe.semanticgen.arrays import ARRAY, read_clock
from sememe.semanticgen.clocks import LatentClock
from sememe.semanticgen.compressor import SemanticCompressor
from sememe.semanticgen.network_renderer import SemanticGenTransformer

_NUM_CLIPS = 256  # of many tokens each, for a fit of few numbers


@torch.no_grad()
def fit_semantic_embedding(
    transformer: SemanticGenTransformer, compressor: SemanticCompressor, cache: ArrayCache, clock: LatentClock
) -> None:
    """Set the projection of semantic tokens to the one that comes closest to tokens of clean latents.

    A backbone reads clean tokens of its own, but not those of a projection with random weights, and must first learn
    that they mean something. So each semantic token is made to resemble, by least squares over clips of the cache, the
    mean embedding of the latents of the time and the area that it covers. The paper does not say how the projection
    begins.

    Args:
        transformer: Renderer, whose `semantic_embedding` is changed.
        compressor: Makes plans of the features; its statistics must be those of the features.
        cache: Arrays "clean" and "semantic".
        clock: Times of the latent frames.
    """
    projection = transformer.semantic_embedding
    assert projection is not None
    embedding = copy.deepcopy(transformer.patch_embedding).float()
    assert isinstance(embedding, nn.Conv3d)
    _, num_frames, *_ = cache.arrays["clean"].shape
    num_slices, rows, columns, _ = cache.arrays[ARRAY].shape
    frames = torch.from_numpy(clock.frames_at(read_clock(cache).times(num_slices))).clamp(max=num_frames - 1)
    size = projection.in_features + 1
    gram = torch.zeros(size, size, dtype=torch.float64)
    products = torch.zeros(size, projection.out_features, dtype=torch.float64)
    for index in range(min(len(cache), _NUM_CLIPS)):
        plan = compressor.encode(cache.select(ARRAY, [index]).float().cpu()).flatten(0, 3).double()
        inputs = nn.functional.pad(plan, (0, 1), value=1.0)
        clean = cache.select("clean", [index]).float().cpu()
        # Neither mask nor first picture is given.
        channels = nn.functional.pad(clean, (0, 0, 0, 0, 0, 0, 0, embedding.in_channels - clean.shape[1]))
        tokens = embedding(channels)[:, :, frames]  # (1, dim, slice, row, column)
        targets = nn.functional.adaptive_avg_pool3d(tokens, (num_slices, rows, columns)).flatten(2)[0].T.double()
        gram += inputs.T @ inputs
        products += inputs.T @ targets
    solution = torch.linalg.pinv(gram, hermitian=True) @ products
    projection.weight.copy_(solution[:-1].T)
    projection.bias.copy_(solution[-1])
