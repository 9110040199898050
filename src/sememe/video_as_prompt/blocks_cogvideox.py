"""Add an expert to CogVideoX's block: a second set of weights for the reference's tokens.

It is built as Wan's (see `sememe.video_as_prompt.blocks_wan`), but in a CogVideoX block text and video attend together,
so a reference brings both: its caption's tokens and its video's, which share the expert's weights as the target's share
the block's. All four meet in one attention.
"""

from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention, CogVideoXAttnProcessor2_0
from diffusers.models.normalization import CogVideoXLayerNormZero
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from jaxtyping import Float
from torch import Tensor, nn

from sememe.compute.context_parallel import attend
from sememe.video_as_prompt.reference_attention import (
    ExpertResult,
    IsolatedAttention,
    ReferenceAttention,
    ReferenceStream,
    attend_with_reference,
)
from sememe.video_as_prompt.rotary import RotaryTables, rotate
from sememe.video_as_prompt.shapes import Heads, RotaryTable, TextTokens, TimeEmbeds, Tokens

JoinedHeads = Float[Tensor, "batch joined_token head head_dim"]
"""Queries, keys or values of text and video together."""

JoinedTokens = Float[Tensor, "batch joined_token dim"]
"""Tokens of text and video together."""

# A constant of the stock block; it is not in the configuration.
_QK_NORM_EPS = 1e-6


class TextAndVideo(NamedTuple):
    """Tokens of one stream, or their gates (which have one entry for all tokens)."""

    text: TextTokens
    video: Tokens


class Projected(NamedTuple):
    """Queries, keys and values of a reference, text first, and the gates of the attention's result."""

    attention: ReferenceAttention
    gates: TextAndVideo


def rotate_video(features: Heads, num_text_tokens: int, rotary: tuple[RotaryTable, RotaryTable] | None) -> Heads:
    """Rotate the video tokens, which follow the text tokens."""
    if rotary is None:
        return features
    # (batch, text token + video token, head, head_dim)
    text, video = features.tensor_split([num_text_tokens], dim=1)
    return torch.cat([text, rotate(video, *rotary)], dim=1)


def finish_block(
    part: "CogVideoXVideoAsPromptBlock | ExpertOutput",
    tokens: TextAndVideo,
    attention: TextAndVideo,
    gates: TextAndVideo,
    temb: TimeEmbeds,
) -> TextAndVideo:
    """Apply gates and feed-forward to one stream, with `norm2` and `ff` of a block or an expert."""
    text, video = tokens.text + gates.text * attention.text, tokens.video + gates.video * attention.video
    normed_video, normed_text, video_gate, text_gate = part.norm2(video, text, temb)
    # (batch, text token + video token, dim)
    both = part.ff(torch.cat([normed_text, normed_video], dim=1))
    read_text, read_video = both.tensor_split([text.shape[1]], dim=1)
    return TextAndVideo(text + text_gate * read_text, video + video_gate * read_video)


class CogVideoXDispatchedAttnProcessor(CogVideoXAttnProcessor2_0):
    """CogVideoX's attention on a chosen backend or over several ranks; without either, the stock one bit for bit."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tokens,
        encoder_hidden_states: TextTokens,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[RotaryTable, RotaryTable] | None = None,
    ) -> tuple[Tokens, TextTokens]:
        # The stock class calls torch's attention directly, without diffusers' choice of a backend.
        if self._attention_backend is None and self._parallel_config is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        query, key, value = self._project(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        heads = attend(self, query, key, value, attention_mask)
        result = attn.to_out[1](attn.to_out[0](heads.flatten(2, 3).type_as(query)))
        text, video = result.tensor_split([encoder_hidden_states.shape[1]], dim=1)
        return video, text

    def _project(
        self, attn: Attention, video: Tokens, text: TextTokens, rotary: tuple[RotaryTable, RotaryTable] | None
    ) -> tuple[JoinedHeads, JoinedHeads, JoinedHeads]:
        """Project to queries, keys and values, text first, and normalise and rotate them."""
        # (batch, text token + video token, dim) -> (batch, token, head, head_dim)
        both, split = torch.cat([text, video], dim=1), (attn.heads, -1)
        query, key, value = (project(both).unflatten(2, split) for project in (attn.to_q, attn.to_k, attn.to_v))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        query = rotate_video(query, text.shape[1], rotary).type_as(value)
        return query, rotate_video(key, text.shape[1], rotary).type_as(value), value


class CogVideoXJointAttnProcessor(CogVideoXDispatchedAttnProcessor):
    """CogVideoX's attention of the target, over the tokens of target and reference."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tokens,
        encoder_hidden_states: TextTokens,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[RotaryTable, RotaryTable] | None = None,
        reference: ReferenceAttention | None = None,
    ) -> tuple[Float[Tensor, "batch joined_token dim"], TextTokens]:
        """Attend; if the reference has queries, its result before the output projection follows the target's video."""
        if reference is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

        query, key, value = self._project(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        num_text_tokens, num_target_tokens = encoder_hidden_states.shape[1], query.shape[1]
        heads = attend_with_reference(self, query, key, value, reference, attention_mask)
        target = attn.to_out[1](attn.to_out[0](heads[:, :num_target_tokens]))
        text, video = target.tensor_split([num_text_tokens], dim=1)
        if reference.query is None:
            return video, text
        return torch.cat([video, heads[:, num_target_tokens:].type_as(video)], dim=1), text


class ExpertProjection(nn.Module):
    """The expert before the attention: modulated norm, queries, keys and values, their norms, rotation."""

    def __init__(self, config: FrozenDict) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        dim = self.num_heads * config.attention_head_dim
        self.norm1 = _make_norm(config)
        self.to_q = nn.Linear(dim, dim, bias=config.attention_bias)
        self.to_k = nn.Linear(dim, dim, bias=config.attention_bias)
        self.to_v = nn.Linear(dim, dim, bias=config.attention_bias)
        self.norm_q = nn.LayerNorm(config.attention_head_dim, eps=_QK_NORM_EPS)
        self.norm_k = nn.LayerNorm(config.attention_head_dim, eps=_QK_NORM_EPS)

    def forward(
        self, tokens: TextAndVideo, temb: TimeEmbeds, rotary: RotaryTables | None, *, needs_query: bool
    ) -> Projected:
        video, text, video_gate, text_gate = self.norm1(tokens.video, tokens.text, temb)
        gates = TextAndVideo(text_gate, video_gate)
        normed, num_text_tokens = torch.cat([text, video], dim=1), text.shape[1]
        split = (self.num_heads, -1)  # (batch, token, dim) -> (batch, token, head, head_dim)
        value = self.to_v(normed).unflatten(2, split)
        # Keys may be cached for a whole generation, so store them in the dtype in which attention reads them.
        key = self.norm_k(self.to_k(normed).unflatten(2, split))
        key = rotate_video(key, num_text_tokens, rotary).type_as(value)
        if not needs_query:
            return Projected(ReferenceAttention(None, key, value), gates)
        query = self.norm_q(self.to_q(normed).unflatten(2, split))
        query = rotate_video(query, num_text_tokens, rotary).type_as(value)
        return Projected(ReferenceAttention(query, key, value), gates)


class ExpertOutput(nn.Module):
    """The expert after the attention: output projection, gates, modulated norm, feed-forward."""

    def __init__(self, config: FrozenDict) -> None:
        super().__init__()
        dim = config.num_attention_heads * config.attention_head_dim
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(0.0)])
        self.norm2 = _make_norm(config)
        self.ff = FeedForward(dim, dropout=config.dropout, activation_fn=config.activation_fn, final_dropout=True)

    def forward(self, tokens: TextAndVideo, heads: JoinedTokens, gates: TextAndVideo, temb: TimeEmbeds) -> TextAndVideo:
        attention = self.to_out[1](self.to_out[0](heads))
        text, video = attention.tensor_split([tokens.text.shape[1]], dim=1)
        return finish_block(self, tokens, TextAndVideo(text, video), gates, temb)


class CogVideoXExpert(nn.Module):
    """One block's weights for the reference, in three parts; `forward` runs the reference alone (one-way)."""

    def __init__(self, config: FrozenDict) -> None:
        super().__init__()
        self.projection = ExpertProjection(config)
        self.attention = IsolatedAttention()
        self.output = ExpertOutput(config)

    def forward(self, tokens: TextAndVideo, stream: ReferenceStream, *, needs_output: bool) -> ExpertResult:
        assert stream.temb is not None
        attended, gates = self.projection(tokens, stream.temb, stream.rotary, needs_query=needs_output)
        if needs_output:
            tokens = self.output(tokens, self.attention(attended), gates, stream.temb)
        return ExpertResult((tokens.video, tokens.text), attended.key, attended.value)


def _make_norm(config: FrozenDict) -> CogVideoXLayerNormZero:
    dim = config.num_attention_heads * config.attention_head_dim
    return CogVideoXLayerNormZero(
        config.time_embed_dim, dim, config.norm_elementwise_affine, config.norm_eps, bias=True
    )


class CogVideoXVideoAsPromptBlock(CogVideoXBlock):
    """CogVideoX's block with an expert. Without a reference it is the stock block, bit for bit."""

    def __init__(self, config: FrozenDict, *, is_last_expert: bool = False) -> None:
        super().__init__(
            config.num_attention_heads * config.attention_head_dim,
            config.num_attention_heads,
            config.attention_head_dim,
            config.time_embed_dim,
            config.dropout,
            config.activation_fn,
            config.attention_bias,
            config.norm_elementwise_affine,
            config.norm_eps,
        )
        self.attn1.set_processor(CogVideoXJointAttnProcessor())
        self.expert = CogVideoXExpert(config)
        # No later block reads the reference, so the last expert computes only its keys and values.
        self.needs_reference_output = not is_last_expert

    def forward(
        self,
        hidden_states: Tokens,
        encoder_hidden_states: TextTokens,
        temb: TimeEmbeds | None,
        image_rotary_emb: tuple[RotaryTable, RotaryTable] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        reference: ReferenceAttention | ReferenceStream | None = None,
    ) -> tuple[Tokens, TextTokens] | ExpertResult:
        """Run the block in one of four ways, chosen by `reference`.

        - None: the stock block on the target's tokens.
        - `ReferenceAttention`: target tokens in and out; they also read the given (cached) keys and values.
        - `ReferenceStream` with a `temb`: target and reference tokens joined on the token axis, video and text each,
          in and out; each reads all four (two-way attention).
        - `ReferenceStream` without `temb`: reference tokens only, which read only each other; `ExpertResult` out.
        """
        if reference is None:
            return super().forward(hidden_states, encoder_hidden_states, temb, image_rotary_emb, attention_kwargs)
        tokens = TextAndVideo(encoder_hidden_states, hidden_states)
        if isinstance(reference, ReferenceStream) and temb is None:
            needs_output = (self.needs_reference_output or reference.finishes) and not reference.keys_only
            return self.expert(tokens, reference, needs_output=needs_output)

        assert temb is not None
        if isinstance(reference, ReferenceAttention):
            target, _ = self._run_target(tokens, temb, image_rotary_emb, attention_kwargs, reference)
            return target.video, target.text

        assert reference.temb is not None
        num_texts = encoder_hidden_states.shape[1] - sum(text.shape[1] for text in reference.texts)
        text, source_text = encoder_hidden_states.tensor_split([num_texts], dim=1)
        num_videos = hidden_states.shape[1] - sum(reference.lengths)
        video, source_video = hidden_states.tensor_split([num_videos], dim=1)
        source = TextAndVideo(source_text, source_video)
        attended, gates = self.expert.projection(
            source, reference.temb, reference.rotary, needs_query=self.needs_reference_output
        )
        attended = attended._replace(strength=reference.strength)
        target, heads = self._run_target(TextAndVideo(text, video), temb, image_rotary_emb, attention_kwargs, attended)
        if self.needs_reference_output:
            source = self.expert.output(source, heads, gates, reference.temb)
        return torch.cat([target.video, source.video], dim=1), torch.cat([target.text, source.text], dim=1)

    def _run_target(
        self,
        tokens: TextAndVideo,
        temb: TimeEmbeds,
        rotary: tuple[RotaryTable, RotaryTable] | None,
        attention_kwargs: dict[str, Any] | None,
        reference: ReferenceAttention,
    ) -> tuple[TextAndVideo, JoinedTokens]:
        """Run the stock block on the target; also return the reference's attention, empty if it has no queries."""
        video, text, video_gate, text_gate = self.norm1(tokens.video, tokens.text, temb)
        video, text = self.attn1(
            video,
            encoder_hidden_states=text,
            image_rotary_emb=rotary,
            reference=reference,
            **(attention_kwargs or {}),
        )
        video, heads = video.tensor_split([tokens.video.shape[1]], dim=1)
        target = finish_block(self, tokens, TextAndVideo(text, video), TextAndVideo(text_gate, video_gate), temb)
        return target, heads


# diffusers' caching and compilation look blocks up by their class; a subclass is unknown until it is registered.
TransformerBlockRegistry.register(
    CogVideoXVideoAsPromptBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1),
)
