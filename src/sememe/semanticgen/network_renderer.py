"""Wan's transformer over latents and semantic tokens in one sequence (arXiv 2512.20619, sections 3.3 and 3.4).

The semantic tokens take part in the self-attention of all blocks beside the latents' tokens. The paper does not say
how they enter. Here they have a linear projection of their own, whose bias tells them from latents; a fixed timestep,
0 for clean; rotary positions by physical time and place; and no part in the output.

Without semantic tokens the same network is a plain text-to-video transformer, the baseline without a plan. It also
serves as the planner, for which slices stand in the place of latent frames: semantic features are then the latents,
and there are no semantic tokens.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from diffusers.utils import apply_lora_scale
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sememe.backbones.first_frame import FirstFrameFill, check_fill
from sememe.backbones.stock_arguments import takes_arguments_of
from sememe.errors import ModelError
from sememe.semanticgen.blocks_renderer import BlockLayout, SemanticGenBlock
from sememe.semanticgen.shapes import (
    ImageEmbeds,
    PlanFeatures,
    Positions,
    PredictedLatents,
    RotaryTable,
    TextEmbeds,
    Timesteps,
    Tokens,
    VideoLatents,
)
from sememe.semanticgen.windows import Piece, WindowLayout, WindowRun

_MOST_LAYOUTS = 32  # of which a training meets some, and a generation two


class _Conditioning(NamedTuple):
    """What all blocks are given: embedded timestep and modulation per kind of token, and texts."""

    temb: Tensor
    modulation: Tensor
    texts: tuple[Tensor, ...]


class SemanticGenTransformer(WanTransformer3DModel):
    """`WanTransformer3DModel` with semantic tokens; without a layout it equals the stock class, bit for bit.

    Args:
        semantic_dim: Numbers per semantic token; None for a network that takes none, such as a planner.
        semantic_timestep: Timestep of the semantic tokens, in 0..1000; 0 is clean.
        first_frame_fill: Frames that follow the first one in the first-frame latents: "grey", as in stock Wan, or
            "repeat". The model must be used with those that it was trained with.

    The other arguments are those of the stock class; patches must be of one latent frame.
    """

    _no_split_modules: ClassVar[list[str]] = ["SemanticGenBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["SemanticGenBlock"]
    # Small and sensitive to rounding, so kept in full precision when weights are stored in 8 bits.
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = [
        "patch_embedding",
        "semantic_embedding",
        "condition_embedder",
        "norm",
    ]

    @register_to_config  # type: ignore[untyped-decorator]
    @takes_arguments_of(WanTransformer3DModel)
    def __init__(
        self,
        *arguments: Any,
        semantic_dim: int | None = 8,
        semantic_timestep: float = 0.0,
        first_frame_fill: FirstFrameFill = "grey",
        **settings: Any,
    ) -> None:
        check_fill(first_frame_fill)
        if not 0 <= semantic_timestep <= 1000:
            raise ModelError(f"expected semantic_timestep in 0..1000, got {semantic_timestep}")
        super().__init__(*arguments, **settings)
        # A file holds a list.
        self.register_to_config(patch_size=tuple(self.config.patch_size))
        config = self.config
        if config.patch_size[0] != 1:
            raise ModelError(f"expected patches of one latent frame (patch_size 1,...), got {list(config.patch_size)}")
        dim = config.num_attention_heads * config.attention_head_dim
        block = (dim, config.ffn_dim, config.num_attention_heads, config.qk_norm, config.cross_attn_norm)
        more = (config.eps, config.added_kv_proj_dim)
        self.blocks = nn.ModuleList([SemanticGenBlock(*block, *more) for _ in range(config.num_layers)])
        self.semantic_embedding = None if semantic_dim is None else nn.Linear(semantic_dim, dim)
        self._known_layouts: dict[object, list[BlockLayout]] = {}

    @classmethod
    def from_backbone(
        cls,
        backbone: WanTransformer3DModel,
        semantic_dim: int | None = 8,
        semantic_timestep: float = 0.0,
        first_frame_fill: FirstFrameFill = "grey",
    ) -> "SemanticGenTransformer":
        """Add semantic tokens to a stock transformer.

        The new model takes over the backbone's tensors without copying them, so do not use `backbone` afterwards. Only
        the projection of semantic tokens is new.

        Raises:
            ModelError: A setting is not valid, or the backbone has patches of several latent frames.
        """
        config = {name: value for name, value in backbone.config.items() if not name.startswith("_")}
        own = {"semantic_dim": semantic_dim, "semantic_timestep": semantic_timestep}
        with torch.device("meta"):
            model = cls(**(config | own | {"first_frame_fill": first_frame_fill}))
        model.load_state_dict(backbone.state_dict(), strict=False, assign=True)
        model.rope = backbone.rope  # its tables are in no state dict
        if semantic_dim is not None:
            weight = model.proj_out.weight
            model.semantic_embedding = nn.Linear(
                semantic_dim, weight.shape[1], device=weight.device, dtype=weight.dtype
            )
        return model.train(backbone.training)

    def forward(
        self,
        hidden_states: VideoLatents,
        timestep: Timesteps | Float[Tensor, "batch token"],
        encoder_hidden_states: TextEmbeds | tuple[TextEmbeds, ...],
        encoder_hidden_states_image: ImageEmbeds | None = None,
        return_dict: bool = True,  # noqa: FBT001, FBT002 (the stock signature)
        attention_kwargs: dict[str, Any] | None = None,
        semantic: PlanFeatures | None = None,
        layout: WindowLayout | None = None,
        *,
        one_by_one: bool = False,
    ) -> Transformer2DModelOutput | tuple[VideoLatents]:
        """Predict the velocity of the latents.

        Args:
            hidden_states: Noisy latents, followed on the channel axis by what the backbone takes beside them.
            timestep: Timesteps in 0..1000 of the latents; one per token only without a layout.
            encoder_hidden_states: Embedded text; with a layout, one for each of its segments.
            encoder_hidden_states_image: Image embeddings, for backbones that read them.
            return_dict: Return an output record rather than a tuple.
            attention_kwargs: `scale` of LoRA weights.
            semantic: The plan's features, of unit variance; None for none.
            layout: Order, windows and segments of the tokens of latents and plan; None for the stock forward.
            one_by_one: Run one window at a time, each through as many blocks as its neighbours allow. The result is
                the same up to rounding, and no more than about one window per block is held in memory at once. For
                use without gradients.

        Raises:
            ModelError: Plan, latents, texts and layout do not fit together.
        """
        if layout is None:
            if semantic is not None:
                raise ModelError("expected a layout with semantic features; make one with make_layout")
            return super().forward(
                hidden_states,
                timestep,
                encoder_hidden_states,
                encoder_hidden_states_image,
                return_dict=return_dict,
                attention_kwargs=attention_kwargs,
            )
        texts = encoder_hidden_states if isinstance(encoder_hidden_states, tuple) else (encoder_hidden_states,)
        self._check(hidden_states, timestep, texts, semantic, layout)
        sample = self._forward_in_layout(
            hidden_states,
            timestep,
            texts,
            encoder_hidden_states_image,
            semantic,
            layout,
            one_by_one=one_by_one,
            attention_kwargs=attention_kwargs,
        )
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    @apply_lora_scale("attention_kwargs")  # type: ignore[untyped-decorator]
    def _forward_in_layout(
        self,
        latents: VideoLatents,
        timestep: Timesteps,
        texts: tuple[TextEmbeds, ...],
        image: ImageEmbeds | None,
        semantic: PlanFeatures | None,
        layout: WindowLayout,
        *,
        one_by_one: bool,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> PredictedLatents:
        given = self._embed_conditioning(timestep, texts, image, has_plan=semantic is not None)
        if one_by_one:
            pieces: Iterable[tuple[Piece, Tokens]] = (
                (piece, self._embed_piece(piece, latents, semantic)) for piece in layout.pieces
            )
            for layer, block in enumerate(self.blocks):
                pieces = self._run_one_by_one(block, layer, pieces, given, layout)
            # Of each piece's tokens only the latents' come out, and they stand first.
            tokens = torch.cat(
                [self._finish(part[:, : layout.count_tokens(piece)[0]], given) for piece, part in pieces], 1
            )
        else:
            planned = None if semantic is None else self._embed_semantic(semantic)
            tokens = layout.order(self._embed_latents(latents), planned)
            layouts = self._find_layouts(layout, latents)
            for layer, block in enumerate(self.blocks):
                arguments = (tokens, given.texts, given.modulation, None, layouts[layer % 2])
                if torch.is_grad_enabled() and self.gradient_checkpointing:
                    tokens = self._gradient_checkpointing_func(block, *arguments)
                else:
                    tokens = block(*arguments)
            tokens = self._finish(layout.pick_latents(tokens), given)
        _, height, width = self.config.patch_size
        grid = (latents.shape[2], *layout.latent_grid)
        # (batch, token, number) -> (batch, frame, row, column, height, width, channel)
        patches = tokens.unflatten(2, (height, width, -1)).unflatten(1, grid)
        # -> (batch, channel, frame, row, height, column, width) -> (batch, channel, frame, height, width)
        return patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def _run_one_by_one(
        self,
        block: nn.Module,
        layer: int,
        pieces: Iterable[tuple[Piece, Tokens]],
        given: _Conditioning,
        layout: WindowLayout,
    ) -> Iterator[tuple[Piece, Tokens]]:
        """Collect the pieces of each window, run a block on it, and hand its pieces on."""
        for _, group in groupby(pieces, lambda pair: pair[0].window(layer)):
            window, parts = zip(*group, strict=True)
            tokens = torch.cat(parts, dim=1)
            run = WindowRun(0, 1, tokens.shape[1])
            rotary = self._make_tables(layout, window, tokens)
            is_semantic = _find_semantic(layout, window, tokens) if given.modulation.shape[1] > 1 else None
            known = BlockLayout(is_semantic, (run,), (rotary,), layout.text_lengths(window))
            done = block(tokens, given.texts, given.modulation, None, known)
            yield from zip(window, done.split([part.shape[1] for part in parts], dim=1), strict=True)

    def _find_layouts(self, layout: WindowLayout, latents: Tensor) -> list[BlockLayout]:
        """Return the layouts of blocks in even and in odd layers; kept, because successive calls use the same ones."""
        key = (layout, latents.device, len(latents))
        if key not in self._known_layouts:
            if len(self._known_layouts) == _MOST_LAYOUTS:
                self._known_layouts.clear()
            # Tensors of inference mode could not be used in training.
            with torch.inference_mode(mode=False):
                found = [self._block_layout(layout, layer, latents) for layer in range(min(2, len(self.blocks)))]
            self._known_layouts[key] = found
        return self._known_layouts[key]

    def _block_layout(self, layout: WindowLayout, layer: int, latents: Tensor) -> BlockLayout:
        runs, batch_size = layout.runs(layer), latents.shape[0]
        tables = self._make_tables(layout, layout.pieces, latents)
        # A row of windows serves every sample of the batch, whose windows are next to each other.
        rotary = tuple(
            (run.split(tables[0]).repeat(batch_size, 1, 1, 1), run.split(tables[1]).repeat(batch_size, 1, 1, 1))
            if run.num_windows > 1
            else (run.split(tables[0]), run.split(tables[1]))
            for run in runs
        )
        has_plan = layout.slice_grid != (0, 0)
        is_semantic = _find_semantic(layout, layout.pieces, latents) if has_plan else None
        return BlockLayout(is_semantic, runs, rotary, layout.text_lengths(layout.pieces))

    def _make_tables(
        self, layout: WindowLayout, pieces: Iterable[Piece], like: Tensor
    ) -> tuple[RotaryTable, RotaryTable]:
        """Return the tables of consecutive pieces, in single precision, as queries and keys are turned in theirs."""
        cos, sin = make_tables(self.rope, layout.positions(pieces), like)
        return cos.float(), sin.float()

    def _embed_conditioning(
        self, timestep: Timesteps, texts: tuple[TextEmbeds, ...], image: ImageEmbeds | None, *, has_plan: bool
    ) -> _Conditioning:
        kinds = [timestep, torch.full_like(timestep, self.config.semantic_timestep)][: 1 + has_plan]
        times = torch.stack(kinds, dim=1)  # (batch, kind)
        temb, modulation, joined, image = self.condition_embedder(
            times.flatten(), torch.cat(texts), image, timestep_seq_len=times.shape[1]
        )
        embedded = joined.chunk(len(texts))
        if image is not None:
            embedded = tuple(torch.cat([image, text], dim=1) for text in embedded)
        # (batch, kind, 6 * dim) -> (batch, kind, 6, dim)
        return _Conditioning(temb, modulation.unflatten(2, (6, -1)), tuple(embedded))

    def _embed_latents(self, latents: VideoLatents) -> Tokens:
        # (batch, channel, frame, height, width) -> (batch, dim, frame, row, column) -> (batch, token, dim)
        return self.patch_embedding(latents).flatten(2).transpose(1, 2)

    def _embed_semantic(self, semantic: PlanFeatures) -> Tokens:
        assert self.semantic_embedding is not None
        # (batch, slice, row, column, semantic_dim) -> (batch, token, dim)
        return self.semantic_embedding(semantic.flatten(1, 3).to(self.semantic_embedding.weight.dtype))

    def _embed_piece(self, piece: Piece, latents: VideoLatents, semantic: PlanFeatures | None) -> Tokens:
        parts = []
        if piece.latents[1] > piece.latents[0]:
            parts.append(self._embed_latents(latents[:, :, slice(*piece.latents)]))
        if semantic is not None and piece.slices[1] > piece.slices[0]:
            parts.append(self._embed_semantic(semantic[:, slice(*piece.slices)]))
        return torch.cat(parts, dim=1)

    def _finish(self, tokens: Tokens, given: _Conditioning) -> Float[Tensor, "batch token number"]:
        """Predict from the latents' tokens after the last block."""
        shift, scale = (self.scale_shift_table + given.temb[:, :1]).chunk(2, dim=1)
        normed = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        return self.proj_out(normed)

    def _check(
        self,
        latents: VideoLatents,
        timestep: Tensor,
        texts: tuple[TextEmbeds, ...],
        semantic: PlanFeatures | None,
        layout: WindowLayout,
    ) -> None:
        _, height, width = self.config.patch_size
        given = (latents.shape[2], latents.shape[3] // height, latents.shape[4] // width)
        expected = (len(layout.latent_positions), *layout.latent_grid)
        if given != expected:
            raise ModelError(f"the layout is for {expected} latent tokens (frames, rows, columns), got {given}")
        planned = (0, 0, 0) if semantic is None else tuple(semantic.shape[1:4])
        laid_out = (len(layout.slice_positions), *layout.slice_grid)
        if planned != laid_out:
            raise ModelError(f"the layout is for {laid_out} semantic tokens (slices, rows, columns), got {planned}")
        if semantic is not None and semantic.shape[-1] != self.config.semantic_dim:
            raise ModelError(
                f"expected semantic features of {self.config.semantic_dim} numbers (semantic_dim in this model's "
                f"config), got {semantic.shape[-1]}"
            )
        if len(texts) != layout.num_segments:
            raise ModelError(f"expected {layout.num_segments} texts, one for each segment, got {len(texts)}")
        if timestep.ndim != 1:
            raise ModelError("expected one timestep per sample with a layout, got one per token")
        if self._parallel_config is not None:
            raise ModelError("context parallelism cannot divide windows; turn it off, or leave out plan and windows")


def _find_semantic(layout: WindowLayout, pieces: Iterable[Piece], like: Tensor) -> Bool[Tensor, "token 1"]:
    """Return which tokens of consecutive pieces are semantic, on the device of `like`."""
    return layout.kinds(pieces).to(like.device).bool().unsqueeze(1)


def make_tables(rope: WanRotaryPosEmbed, positions: Positions, like: Tensor) -> tuple[RotaryTable, RotaryTable]:
    """Return the cosines and sines of a transformer's rotary embedding at any positions, on the device of `like`.

    At whole numbers they are those of the stock table.
    """
    device, widths = like.device, (rope.t_dim, rope.h_dim, rope.w_dim)
    precision = torch.float32 if device.type == "mps" else torch.float64
    tables = [
        get_1d_rotary_pos_embed(width, axis, use_real=True, freqs_dtype=precision)
        for width, axis in zip(widths, positions.to(device, precision).unbind(1), strict=True)
    ]
    # three of (token, width) -> (1, token, 1, head_dim)
    cos, sin = (torch.cat(kind, dim=1)[None, :, None] for kind in zip(*tables, strict=True))
    return cos, sin
