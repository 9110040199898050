"""Share between transformers with experts how experts are added to a backbone and which weights are trained."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float
from peft import PeftConfig
from torch import Tensor, nn

from sememe.compute.lora import restrict_to_backbone
from sememe.compute.speed import check_two_way, enable_checked, without_feature_cache
from sememe.errors import ModelError
from sememe.video_as_prompt.context_parallel import check_ranks, count_ranks, split_reference
from sememe.video_as_prompt.expert_files import TwoFolderFiles
from sememe.video_as_prompt.reference_attention import ReferenceAttention, ReferenceStream
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, ReferenceTokens
from sememe.video_as_prompt.shapes import FrameFirstLatents, Heads, Tokens, TokenStreams, VideoLatents

M = TypeVar("M", bound="ExpertModel")


@dataclass(frozen=True)
class RefreshedPrediction:
    """A prediction, and the reference's KV cache of that step."""

    sample: VideoLatents | FrameFirstLatents
    reference: ReferenceCache


class ExpertModel(TwoFolderFiles):
    """Methods of a transformer with experts; list the stock class after it among the bases.

    A subclass has `_embed_reference(inputs)`, which makes `ReferenceTokens`; `_make_stream(reference, **step)`, which
    makes the blocks' inputs for a reference at a step; and `_forward_with_reference`, where it differs from the stock
    forward.

    Attributes:
        may_follow_target: Whether the reference may be read at the target's timestep.
        has_text_tokens: Whether texts are tokens of the blocks beside the video's.
        forward_methods: Methods beside `forward` that run parts of the model in training.
    """

    forward_methods: ClassVar[tuple[str, ...]] = ("embed_reference", "encode_reference", "denoise_reference")
    may_follow_target: ClassVar[bool] = False
    has_text_tokens: ClassVar[bool] = False

    @classmethod
    def from_backbone(cls: type[M], backbone: ModelMixin, *values: Any, **settings: Any) -> M:  # noqa: PYI019 (as in `TwoFolderFiles`)
        """Add experts to a backbone, each a copy of its block.

        The new model takes over the backbone's modules without copying them, so do not use `backbone` afterwards.

        Args:
            backbone: Model of the stock class.
            values: Values of `own_settings`, in their order.
            settings: The same by name. `own_settings` has those that are not given.

        Raises:
            ModelError: If a setting does not fit the backbone.
        """
        assert len(values) <= len(cls.own_settings)
        own_settings = {**cls.own_settings, **dict(zip(cls.own_settings, values, strict=False)), **settings}
        taken = inspect.signature(cls.__init__).parameters  # a config may have settings of a later version
        settings = {key: value for key, value in backbone.config.items() if key in taken}
        with init_empty_weights(include_buffers=False):
            model = cls(**settings, **own_settings)
        list_name = cls.key_map.blocks
        blocks = getattr(model, list_name)
        for index, block in enumerate(getattr(backbone, list_name)):
            for name in ("attn1", "attn2"):
                if hasattr(block, name):
                    getattr(block, name).set_processor(getattr(blocks[index], name).processor)
            if index not in model.config.expert_blocks:
                blocks[index] = block
                continue
            _move_weights(block, blocks[index])
        _move_weights(backbone, model, skip=list_name)
        model.copy_backbone_to_expert()
        model.gradient_checkpointing = backbone.gradient_checkpointing
        return model.train(backbone.training)

    @torch.no_grad()
    def copy_backbone_to_expert(self) -> None:
        """Set every expert tensor to a copy of the backbone's, with the same dtype and device; those without to 0."""
        tensors, names, copies = self.state_dict(), self.key_map, {}
        like = next(iter(tensors.values()))
        for key in filter(names.is_expert_key, tensors):
            twin = names.find_twin(key)
            copies[key] = like.new_zeros(tensors[key].shape) if twin is None else tensors[twin].clone()
        self.load_state_dict(copies, strict=False, assign=True)
        # Move tables that are computed, not stored, to the device of the weights.
        embedder = self.expert_embedder
        embedder.to(next(embedder.parameters()).device)

    @torch.no_grad()
    def blend_expert_with_backbone(self, share: float) -> None:
        """Move every expert tensor from its trained value towards the backbone's, where its training began.

        Between the two, a fine-tuned network often serves inputs that it was not trained on better than either end
        (arXiv 2109.01903); here, conditions that the expert never saw.

        Args:
            share: Share of the way from the backbone to the trained expert, in 0..1; 1 changes nothing.
        """
        tensors, names = self.state_dict(), self.key_map
        for key in filter(names.is_expert_key, tensors):
            twin = names.find_twin(key)
            start = torch.zeros_like(tensors[key]) if twin is None else tensors[twin]
            tensors[key].copy_(start.lerp(tensors[key].to(start), share))

    @torch.no_grad()
    def copy_expert(self, other: "ExpertModel") -> None:
        """Set every expert tensor to a copy of that of a model with experts in the same blocks, whatever its mode."""
        tensors = other.state_dict()
        copies = {key: tensor.clone() for key, tensor in tensors.items() if self.key_map.is_expert_key(key)}
        self.load_state_dict(copies, strict=False, assign=True)

    def expert_named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return names and parameters of the expert."""
        return [entry for entry in self.named_parameters() if self.key_map.is_expert_key(entry[0])]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the expert's parameters except those after its last attention, whose result is unused.

        Of an expert with an adapter these are the adapter's alone.
        """
        prefix = f"{self.key_map.blocks}.{self.config.expert_blocks[-1]}.expert."
        unread = tuple(prefix + part for part in ("output.", "projection.to_q.", "projection.norm_q."))
        read = {name: each for name, each in self.expert_named_parameters() if not name.startswith(unread)}
        adapters = {name: each for name, each in read.items() if ".lora_" in name}
        return list((adapters or read).values())

    def add_adapter(self, adapter_config: PeftConfig, adapter_name: str = "default") -> None:
        """Add a PEFT adapter to the backbone; for the expert see `sememe.compute.lora`.

        Args:
            adapter_config: PEFT configuration such as `LoraConfig`; its targets are matched outside the expert only.
            adapter_name: Name of the adapter.
        """
        super().add_adapter(restrict_to_backbone(self, adapter_config), adapter_name)

    def enable_cache(self, config: Any) -> None:
        """Enable one of diffusers' feature caches; `sememe.compute.speed` lists those that work.

        Raises:
            ModelError: If the cache would have no effect or give wrong results.
        """
        enable_checked(self, config, super().enable_cache)

    def freeze_backbone(self) -> None:
        """Require gradients for `trainable_parameters` only."""
        self.requires_grad_(False)
        for parameter in self.trainable_parameters():
            parameter.requires_grad_(True)

    def _add_experts(
        self,
        block_class: type[nn.Module],
        expert_blocks: Sequence[int] | None,
        attention_mode: str,
        reference_timestep: float | None,
    ) -> None:
        """Check a new model's own settings, and replace the blocks that have an expert."""
        num_layers = self.config.num_layers
        indices = sorted(range(num_layers) if expert_blocks is None else expert_blocks)
        if not indices or len(set(indices)) < len(indices) or not 0 <= indices[0] <= indices[-1] < num_layers:
            raise ModelError(f"expert_blocks must be different indices within 0..{num_layers - 1}, got {indices}")
        if attention_mode not in ("joint", "cached"):
            raise ModelError(f"attention_mode must be 'joint' or 'cached', got {attention_mode!r}")
        if reference_timestep is None and not (self.may_follow_target and attention_mode == "joint"):
            raise ModelError(
                f"reference_timestep must be a number within 0..1000 for attention_mode {attention_mode!r} of a "
                f"{type(self).__name__}, got None"
            )
        if reference_timestep is not None and not 0 <= reference_timestep <= 1000:
            raise ModelError(f"reference_timestep must be within 0..1000, got {reference_timestep}")
        self.register_to_config(expert_blocks=indices)
        blocks = getattr(self, self.key_map.blocks)
        for index in indices:
            blocks[index] = block_class(self.config, is_last_expert=index == indices[-1])

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def embed_reference(self, inputs: ReferenceInputs) -> ReferenceTokens:
        """Embed references once, for all steps of a two-way model.

        Raises:
            ModelError: If the inputs do not fit the model.
        """
        tokens: ReferenceTokens = self._split_tokens(self._embed_reference(inputs))
        return tokens

    def _split_tokens(self, tokens: ReferenceTokens) -> ReferenceTokens:
        """Return this rank's share of references, which is all of them without context parallelism."""
        if self._parallel_config is None:
            return tokens
        num_ranks = count_ranks(self._parallel_config)
        return split_reference(self.split, tokens, num_ranks, has_text_tokens=self.has_text_tokens)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode_reference(self, inputs: ReferenceInputs, *, approximate: bool = False, **step: Any) -> ReferenceCache:
        """Run references through the expert alone and keep their keys and values; differentiable.

        Args:
            inputs: References, of which the first counts as the farthest in time.
            approximate: Allow this for a two-way model, whose result then deviates.
            step: On CogVideoX `timestep`, the target's in 0..1000, for a model whose reference follows it
                (`reference_timestep` None in the config); the cache is approximate at other timesteps. And `ofs` as in
                `forward`, for CogVideoX 1.5.

        Raises:
            ModelError: If the model was trained two-way and `approximate` is False, or the inputs do not fit.
        """
        # A cache compares successive steps of a target.
        with without_feature_cache(self):
            return self._encode_tokens(self.embed_reference(inputs), approximate=approximate, **step)

    def _encode_tokens(self, reference: ReferenceTokens, *, approximate: bool = False, **step: Any) -> ReferenceCache:
        if self.config.attention_mode != "cached" and not approximate:
            raise ModelError(
                "this expert was trained two-way (attention_mode 'joint'), so its reference cannot be encoded once "
                "for all steps; pass approximate=True to do so nevertheless, or use the joint mode"
            )
        _, kept = self._run_experts(reference, self._make_stream(reference, **step))
        return _make_cache(kept, reference)

    def _run_experts(
        self, reference: ReferenceTokens, stream: ReferenceStream
    ) -> tuple[TokenStreams, list[list[Heads]]]:
        """Run a reference alone; return its tokens, and its keys and values in each expert block."""
        tokens, kept = self._list_tokens(reference), []
        for index in self.config.expert_blocks:
            tokens, *pair = self._run_block(index, *tokens, *_NO_TARGET, stream)
            kept.append(pair)
        return tokens, kept

    def _list_tokens(self, reference: ReferenceTokens) -> TokenStreams:
        """Return a reference's tokens as its blocks take them: of its video, and of its captions where they attend."""
        texts = (torch.cat(reference.stream.texts, dim=1),) if self.has_text_tokens else ()
        return (reference.hidden_states, *texts)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def refresh_reference(
        self, *arguments: Any, reference: ReferenceTokens, reference_strength: float = 1.0, **settings: Any
    ) -> RefreshedPrediction:
        """Run a two-way forward and return the reference's KV cache too, for `forward` at the steps that follow.

        The cache holds the keys and values of this step, in which the reference read the target; at other steps it is
        approximate. Arguments are those of `forward`, with a strength above 0.

        Raises:
            ModelError: If the model was trained one-way, or reference and target do not fit together.
        """
        if self.config.attention_mode != "joint":
            raise ModelError("this expert was trained one-way: encode_reference gives its exact keys and values")
        check_strength(reference_strength)
        assert reference_strength > 0.0
        if self.is_cache_enabled:
            raise ModelError("reference_refresh and a feature cache both skip steps; disable one of them")
        kept: list[tuple[Heads, Heads]] = []
        output = self._forward_with_reference(
            *arguments, reference=reference, strength=reference_strength, kept=kept, **settings
        )
        return RefreshedPrediction(output.sample, _make_cache(kept, reference))

    def _prepare_reference(
        self,
        reference: ReferenceCache | ReferenceTokens | ReferenceInputs | None,
        grid: tuple[int, int],
        batch_size: int,
        **step: Any,
    ) -> ReferenceCache | ReferenceTokens | None:
        """Convert a reference to the form for this model's mode, one entry per target, at the grid of the target."""
        if reference is None:
            return None
        if not isinstance(reference, ReferenceInputs):
            check_ranks(reference, self._parallel_config)
        if isinstance(reference, ReferenceCache):
            _check_cache(reference, self.config)
            prepared: ReferenceCache | ReferenceTokens = reference
        else:
            prepared = self.embed_reference(reference) if isinstance(reference, ReferenceInputs) else reference
            if self.config.attention_mode == "cached":
                if self.is_cache_enabled:
                    raise ModelError("with a feature cache on, pass what encode_reference returned, not the reference")
                prepared = self._encode_tokens(prepared, **step)
            elif self.is_cache_enabled:
                check_two_way(self, len(prepared.stream.lengths))
        if prepared.grid != grid:
            raise ModelError(
                f"reference and target must have the same height and width: got {prepared.grid} and {grid} "
                "(rows, columns of tokens)"
            )
        return prepared.expand(batch_size)

    def _run_blocks(
        self,
        tokens: TokenStreams,
        arguments: Sequence[tuple[Any, ...]],
        reference: ReferenceCache | ReferenceTokens | None,
        strength: float,
        kept: list[tuple[Heads, Heads]] | None,
        **step: Any,
    ) -> TokenStreams:
        """Run all blocks on a target, alone or with a reference; `kept` collects its keys and values."""
        places = {block: place for place, block in enumerate(self.config.expert_blocks)}
        if isinstance(reference, ReferenceTokens):
            stream = self._make_stream(reference, **step)._replace(strength=strength)
            source = self._list_tokens(reference)
        for index, others in enumerate(arguments):
            if index not in places or reference is None:
                tokens = _as_tuple(self._run_block(index, *tokens, *others))
                continue
            place = places[index]
            if isinstance(reference, ReferenceCache):
                read = ReferenceAttention(None, reference.keys[place], reference.values[place], strength)
                tokens = _as_tuple(self._run_block(index, *tokens, *others, read))
                continue
            if kept is not None:
                _, *pair = self._run_block(index, *source, *_NO_TARGET, stream._replace(keys_only=True))
                kept.append(tuple(pair))
            if reference.text_keys is not None:
                stream = stream._replace(texts=reference.text_keys[place])
            # (batch, target token + reference token, dim), of the video and of texts where they are tokens
            joined = [torch.cat(pair, dim=1) for pair in zip(tokens, source, strict=True)]
            results = _as_tuple(self._run_block(index, *joined, *others, stream))
            lengths = [part.shape[1] for part in tokens]
            halves = [both.tensor_split([length], dim=1) for both, length in zip(results, lengths, strict=True)]
            tokens, source = zip(*halves, strict=True)
        return tokens

    def _run_block(self, index: int, *arguments: Any) -> Any:
        block = getattr(self, self.key_map.blocks)[index]
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *arguments)
        return block(*arguments)


def add_reference_embedding(
    tokens: Tokens, embeddings: Float[Tensor, "embedding dim"] | None, place: int, count: int
) -> Tokens:
    """Add the learned embedding of a reference to its tokens, where there are such.

    Args:
        tokens: Tokens of the reference.
        embeddings: The embeddings, that of the nearest reference first.
        place: Place of the reference, of which the first is the farthest.
        count: Number of references.

    Raises:
        ModelError: There are more references than embeddings.
    """
    if embeddings is None:
        return tokens
    if count > len(embeddings):
        raise ModelError(
            f"expected at most {len(embeddings)} references, as many as the expert has learned, got {count}"
        )
    return tokens + embeddings[count - 1 - place]


def check_strength(strength: float) -> None:
    """Raise `ModelError` for a strength of the reference outside 0..1."""
    if not 0.0 <= strength <= 1.0:
        raise ModelError(f"reference_strength must be within 0..1, got {strength}")


# Arguments of a block for the target besides its tokens, where an expert runs on the reference alone.
_NO_TARGET = (None, None, None)


def _as_tuple(tokens: Any) -> TokenStreams:
    return tokens if isinstance(tokens, tuple) else (tokens,)


def _make_cache(kept: Sequence[Sequence[Heads]], reference: ReferenceTokens) -> ReferenceCache:
    keys, values = zip(*kept, strict=True)
    return ReferenceCache(keys, values, reference.grid, reference.num_ranks)


def _check_cache(cache: ReferenceCache, config: FrozenDict) -> None:
    expected = (len(config.expert_blocks), config.num_attention_heads, config.attention_head_dim)
    got = (len(cache.keys), *cache.keys[0].shape[2:])
    if got != expected:
        raise ModelError(
            f"this reference was encoded by another model: it has {got} experts, heads and channels of a head, this "
            f"model has {expected}"
        )


def _move_weights(source: nn.Module, target: nn.Module, skip: str = "") -> None:
    for name, module in source.named_children():
        if name != skip:
            setattr(target, name, module)
    for name, parameter in source.named_parameters(recurse=False):
        setattr(target, name, parameter)
