"""An expert's tensors: their names, ours and released; what is written comes back, what does not fit is named."""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sememe.checkpoints.tensor_files import INDEX_NAME, WEIGHTS_NAME, iterate_tensors
from sememe.errors import ModelError
from sememe.video_as_prompt.expert_files import COGVIDEOX_KEYS, WAN_KEYS, KeyMap
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from video_as_prompt import cogvideox_factories, wan_factories
from video_as_prompt.cogvideox_factories import GROUPED, LEARNED, SINES

WAN_NAMES = {
    "blocks.2.expert.projection.to_q.weight": "blocks.2.attn1_mot_ref.to_q.weight",
    "blocks.2.expert.projection.norm_k.weight": "blocks.2.attn1_mot_ref.norm_k.weight",
    "blocks.2.expert.output.to_out.0.bias": "blocks.2.attn1_mot_ref.to_out.0.bias",
    "blocks.2.expert.output.attn2.add_k_proj.bias": "blocks.2.attn2_mot_ref.add_k_proj.bias",
    "blocks.2.expert.output.norm2.bias": "blocks.2.norm2_mot_ref.bias",
    "blocks.2.expert.output.ffn.net.0.proj.weight": "blocks.2.ffn_mot_ref.net.0.proj.weight",
    "blocks.2.expert.modulation.scale_shift_table": "blocks.2.scale_shift_table_mot_ref",
    "expert_embedder.patch_embedding.bias": "patch_embedding_mot_ref.bias",
    "expert_embedder.condition_embedder.time_proj.bias": "condition_embedder_mot_ref.time_proj.bias",
}
COGVIDEOX_NAMES = {
    "transformer_blocks.2.expert.projection.norm1.linear.weight": "transformer_blocks.2.norm1_mot_ref.linear.weight",
    "transformer_blocks.2.expert.projection.norm1.norm.bias": "transformer_blocks.2.norm1_mot_ref.norm.bias",
    "transformer_blocks.2.expert.projection.to_q.weight": "transformer_blocks.2.attn1_mot_ref.to_q.weight",
    "transformer_blocks.2.expert.projection.norm_k.bias": "transformer_blocks.2.attn1_mot_ref.norm_k.bias",
    "transformer_blocks.12.expert.output.to_out.0.bias": "transformer_blocks.12.attn1_mot_ref.to_out.0.bias",
    "transformer_blocks.2.expert.output.norm2.linear.bias": "transformer_blocks.2.norm2_mot_ref.linear.bias",
    "transformer_blocks.2.expert.output.ff.net.0.proj.weight": "transformer_blocks.2.ff_mot_ref.net.0.proj.weight",
    "expert_embedder.patch_embed.pos_embedding": "patch_embed_mot_ref.pos_embedding",
    "expert_embedder.patch_embed.text_proj.bias": "patch_embed_mot_ref.text_proj.bias",
    "expert_embedder.time_embedding.linear_1.weight": "time_embedding_mot_ref.linear_1.weight",
}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        (wan_factories, {"image_dim": 20, "added_kv_proj_dim": 48}),
        (cogvideox_factories, LEARNED),
        (cogvideox_factories, GROUPED),
    ],
    ids=["wan", "learned", "grouped"],
)
def test_the_map_is_a_bijection_on_every_expert_tensor(family: Any, settings: dict[str, Any]) -> None:
    model = family.make_transformer(expert_blocks=[0, 2], **settings)
    tensors, names = model.state_dict(), model.key_map
    own = {key for key in tensors if names.is_expert_key(key)}
    official = {names.to_official_key(key) for key in own}
    assert len(official) == len(own)
    assert all(names.is_official_expert_key(key) for key in official)
    assert {names.from_official_key(key) for key in official} == own
    for key in own:
        assert names.from_official_key(names.to_official_key(key)) == key
        # The released rule: the suffix stripped, it is the backbone's twin, of the same shape.
        assert names.to_official_key(key).replace("_mot_ref", "") == names.to_backbone_key(key)
        assert tensors[names.to_backbone_key(key)].shape == tensors[key].shape


@pytest.mark.parametrize(("names", "pairs"), [(WAN_KEYS, WAN_NAMES), (COGVIDEOX_KEYS, COGVIDEOX_NAMES)])
def test_released_names(names: KeyMap, pairs: dict[str, str]) -> None:
    assert {own: names.to_official_key(own) for own in pairs} == pairs
    assert {names.from_official_key(official): official for official in pairs.values()} == pairs


@pytest.mark.parametrize(
    ("names", "keys", "official"),
    [
        (
            WAN_KEYS,
            ("blocks.2.attn1.to_q.weight", "proj_out.weight", "rope.freqs_cos"),
            ("blocks.2.attn1.to_q.weight", "proj_out_mot_ref.weight", "scale_shift_table_mot_ref"),
        ),
        (
            COGVIDEOX_KEYS,
            ("transformer_blocks.2.attn1.to_q.weight", "proj_out.weight", "patch_embed.pos_embedding"),
            (
                "proj_out_mot_ref.weight",
                "norm_final_mot_ref.weight",
                "blocks.2.attn1_mot_ref.to_q.weight",
                "transformer_blocks.2.attn2_mot_ref.to_q.weight",
                "transformer_blocks.2.attn1.to_q_mot_ref.weight",
                "transformer_blocks_mot_ref.2.attn1.to_q.weight",
            ),
        ),
    ],
    ids=["wan", "cogvideox"],
)
def test_what_is_no_expert_tensor_is_refused(names: KeyMap, keys: tuple[str, ...], official: tuple[str, ...]) -> None:
    for key in keys:
        assert not names.is_expert_key(key)
        assert not names.is_official_expert_key(key)
        with pytest.raises(KeyError):
            names.to_official_key(key)
    for key in (*keys, *official):
        with pytest.raises(KeyError):
            names.from_official_key(key)


@pytest.mark.parametrize(
    ("family", "kind", "timestep"),
    [(wan_factories, {}, 3.0)]
    + [(cogvideox_factories, kind, timestep) for kind in ({}, LEARNED, SINES) for timestep in (None, 3.0)],
)
@torch.no_grad()
def test_round_trip_through_two_folders(
    tmp_path: Path, family: Any, kind: dict[str, Any], timestep: float | None
) -> None:
    model = family.make_transformer(expert_blocks=[0, 1], reference_timestep=timestep, **kind)
    target, reference = family.make_target(model), family.make_reference()
    expected = model(**target, reference=reference).sample
    model.save_backbone(tmp_path / "transformer")
    model.save_expert(tmp_path / "expert")

    assert all(model.key_map.is_expert_key(key) for key in load_file(tmp_path / "expert" / WEIGHTS_NAME))
    stock = model.backbone_class.from_pretrained(tmp_path / "transformer")
    assert torch.equal(stock(**target).sample, family.make_backbone(**kind)(**target).sample)
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    assert config["_class_name"] == model.backbone_class.__name__

    loaded = type(model).from_folders(tmp_path / "transformer", tmp_path / "expert")
    assert not loaded.training
    assert loaded.config.expert_blocks == [0, 1]
    assert loaded.config.reference_timestep == timestep
    assert {each.data_ptr() % 64 for each in loaded.parameters()} == {0}, "no product depends on where a file has it"
    assert torch.equal(loaded(**target, reference=reference).sample, expected)


@pytest.mark.parametrize("family", [wan_factories, cogvideox_factories], ids=["wan", "cogvideox"])
def test_precision_follows_the_backbone(tmp_path: Path, family: Any) -> None:
    model = family.make_transformer()
    model.save_backbone(tmp_path / "transformer")
    model.save_expert(tmp_path / "expert")
    loaded = type(model).from_folders(tmp_path / "transformer", tmp_path / "expert", torch_dtype=torch.bfloat16)
    tensors, names = loaded.state_dict(), loaded.key_map
    own = [key for key in tensors if names.is_expert_key(key)]
    assert all(tensors[key].dtype == tensors[names.to_backbone_key(key)].dtype for key in own)
    # diffusers keeps these in float32, and so must the expert's.
    kept = {key for key in own if tensors[key].dtype == torch.float32}
    wanted = ("modulation.scale_shift_table", "output.norm2.weight") if family is wan_factories else ()
    assert all(f"blocks.0.expert.{name}" in kept for name in wanted)
    assert bool(kept) == bool(wanted)
    assert {tensors[key].dtype for key in own} - {torch.float32} == {torch.bfloat16}


def test_an_expert_for_another_backbone_is_refused(tmp_path: Path) -> None:
    model = cogvideox_factories.make_transformer()
    model.save_expert(tmp_path / "expert")
    with pytest.raises(ModelError, match="max_text_seq_length = 5, but the model at hand has 6"):
        cogvideox_factories.make_transformer(max_text_seq_length=6).load_expert(tmp_path / "expert")
    wan_factories.make_transformer().save_expert(tmp_path / "wan")
    with pytest.raises(ModelError, match="expected to hold a CogVideoXVideoAsPromptExpert"):
        model.load_expert(tmp_path / "wan")
    with pytest.raises(ModelError, match="expected to hold a WanVideoAsPromptExpert"):
        wan_factories.make_transformer().load_expert(tmp_path / "expert")


def test_shards_are_written_and_read(tmp_path: Path) -> None:
    model = wan_factories.make_transformer()
    model.save_expert(tmp_path)
    model.save_expert(tmp_path, max_shard_size=100_000)
    assert (tmp_path / INDEX_NAME).exists()
    assert not (tmp_path / WEIGHTS_NAME).exists()
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    other = wan_factories.make_transformer(seed=5)
    other.load_expert(tmp_path)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(*map(expert_tensors, (model, other)), strict=True))
    # Back in one file: no shard and no index may stay behind.
    model.save_expert(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS_NAME]


def test_an_expert_is_loaded_in_the_place_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is never more than one copy: each tensor is freed when its successor comes."""
    wan_factories.make_transformer().save_expert(tmp_path)
    model = wan_factories.make_transformer(seed=5)
    before = [weakref.ref(tensor) for _, tensor in expert_tensors(model)]
    alive: list[int] = []

    def count(*arguments: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for entry in iterate_tensors(*arguments):
            alive.append(sum(each() is not None for each in before))
            yield entry

    monkeypatch.setattr("sememe.video_as_prompt.expert_files.iterate_tensors", count)
    model.load_expert(tmp_path)
    assert alive == list(range(len(before), len(before) - len(alive), -1))


def expert_tensors(model: WanVideoAsPromptTransformer) -> list[tuple[str, torch.nn.Parameter]]:
    return model.expert_named_parameters()


def damage(folder: Path, change: str) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    key = "blocks.1.expert.projection.to_k.weight"
    if change == "missing":
        del tensors[key]
    elif change == "extra":
        tensors["blocks.1.expert.surplus"] = torch.zeros(1)
    else:
        tensors[key] = torch.zeros(3, 3)
    save_file(tensors, folder / WEIGHTS_NAME)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 missing: blocks\.1\.expert\.projection\.to_k\.weight"),
        ("extra", r"1 not expected: blocks\.1\.expert\.surplus"),
        ("shape", r"1 of another shape: blocks\.1\.expert\.projection\.to_k\.weight \(3, 3\) instead of \(48, 48\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: str, message: str) -> None:
    model = wan_factories.make_transformer()
    model.save_expert(tmp_path)
    before = [parameter.clone() for _, parameter in model.expert_named_parameters()]
    damage(tmp_path, change)
    with pytest.raises(ModelError, match=message):
        model.load_expert(tmp_path)
    # Nothing was half-loaded.
    assert all(torch.equal(a, b[1]) for a, b in zip(before, model.expert_named_parameters(), strict=True))


def test_backbone_folder_is_read_strictly(tmp_path: Path) -> None:
    model = wan_factories.make_transformer()
    model.save_backbone(tmp_path / "transformer")
    model.save_expert(tmp_path / "expert")
    weights = tmp_path / "transformer" / WEIGHTS_NAME
    tensors = load_file(weights)
    proj_out = tensors.pop("proj_out.weight")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing keys: proj_out\.weight"):
        WanVideoAsPromptTransformer.from_folders(tmp_path / "transformer", tmp_path / "expert")
    save_file(tensors | {"proj_out.weight": proj_out, "surplus": torch.zeros(1)}, weights, {"format": "pt"})
    with pytest.raises(ModelError, match="unexpected keys: surplus"):
        WanVideoAsPromptTransformer.from_folders(tmp_path / "transformer", tmp_path / "expert")
    weights.write_bytes(b"not a safetensors file")
    with pytest.raises(ModelError, match="cannot be loaded"):
        WanVideoAsPromptTransformer.from_folders(tmp_path / "transformer", tmp_path / "expert")


def test_an_expert_for_another_use_is_taken_for_training_alone(tmp_path: Path) -> None:
    saved, model = wan_factories.make_transformer(1, "joint"), wan_factories.make_transformer(0, "cached")
    saved.save_expert(tmp_path)
    with pytest.raises(ModelError, match="made for attention_mode = joint, but the model at hand has cached"):
        model.load_expert(tmp_path)
    model.load_expert(tmp_path, for_any_use=True)
    assert model.config.attention_mode == "cached"
    for (name, one), (_, other) in zip(model.expert_named_parameters(), saved.expert_named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_folders_that_hold_something_else_are_named(tmp_path: Path) -> None:
    model = wan_factories.make_transformer()
    with pytest.raises(ModelError, match=r"config\.json cannot be read|cannot be read"):
        model.load_expert(tmp_path / "absent")
    model.save_backbone(tmp_path / "transformer")
    with pytest.raises(ModelError, match="WanVideoAsPromptExpert"):
        model.load_expert(tmp_path / "transformer")
    wan_factories.make_transformer(expert_blocks=[0]).save_expert(tmp_path / "expert")
    for any_use in (False, True):
        with pytest.raises(ModelError, match="expert_blocks"):
            model.load_expert(tmp_path / "expert", for_any_use=any_use)
    (tmp_path / "expert" / WEIGHTS_NAME).unlink()
    with pytest.raises(ModelError, match="has neither"):
        wan_factories.make_transformer(expert_blocks=[0]).load_expert(tmp_path / "expert")
    index = {"weight_map": {"a": "../transformer/" + WEIGHTS_NAME}}
    (tmp_path / "expert" / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(ModelError, match="files beside it"):
        wan_factories.make_transformer(expert_blocks=[0]).load_expert(tmp_path / "expert")
