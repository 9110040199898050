"""Prompts as Wan and as CogVideoX read them."""

import torch

from sememe.backbones.text import encode_prompts, encode_prompts_padded
from video_as_prompt.pipeline_factories import make_text_encoder, make_tokenizer


def test_wan_sees_no_padding_and_has_zeros_there() -> None:
    tokenizer, encoder = make_tokenizer(), make_text_encoder()
    embeds = encode_prompts(tokenizer, encoder, ["a red ball"])
    ids = tokenizer("a red ball", return_tensors="pt").input_ids
    with torch.no_grad():
        alone = encoder(ids).last_hidden_state
    assert embeds.shape[1] == 8 > ids.shape[1]
    torch.testing.assert_close(embeds[:, : ids.shape[1]], alone)
    assert embeds[:, ids.shape[1] :].eq(0).all()


def test_cogvideox_reads_padding_as_tokens() -> None:
    tokenizer, encoder = make_tokenizer(), make_text_encoder()
    embeds = encode_prompts_padded(tokenizer, encoder, ["a red ball"], 8)
    ids = tokenizer("a red ball", padding="max_length", max_length=8, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(embeds, encoder(ids).last_hidden_state)
    assert embeds[:, -1].ne(0).any()
