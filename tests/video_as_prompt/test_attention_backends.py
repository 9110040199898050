"""The choice of an attention backend reaches every attention of a transformer with experts, and nothing else."""

from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from sememe.compute.speed import list_usable_attention, set_attention
from sememe.errors import InputError
from video_as_prompt import cogvideox_factories, wan_factories
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline


def predict(pipe: Any) -> list[torch.Tensor]:
    """What the transformer predicts without a reference, with one of full strength, and with a weaker one."""
    model = pipe.transformer
    if pipe.family.name == "wan":
        target, reference = wan_factories.make_target(), wan_factories.make_reference()
    else:
        target, reference = cogvideox_factories.make_target(model), cogvideox_factories.make_reference()
    with torch.no_grad():
        full = [model(**target, reference=given).sample for given in (None, reference)]
        return [*full, model(**target, reference=reference, reference_strength=0.5).sample]


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("this attention was not told which backend to use")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["native", "_native_math", "flex"])
@pytest.mark.parametrize("kind", ["joint", "cached", "cogvideox"])
def test_every_attention_takes_the_chosen_backend(kind: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_cogvideox_pipeline() if kind == "cogvideox" else make_pipeline(kind)
    expected = predict(pipe)
    before = _AttentionBackendRegistry.get_active_backend()[0]
    set_attention(pipe, backend)
    assert _AttentionBackendRegistry.get_active_backend()[0] == before, "other models are left alone"
    # Every other way to attend fails; flex calls none of torch's own.
    chosen = {name: fn if name.value == backend else refuse for name, fn in _AttentionBackendRegistry._backends.items()}
    monkeypatch.setattr(_AttentionBackendRegistry, "_backends", chosen)
    if backend == "flex":
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    for got, wanted in zip(predict(pipe), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_a_weaker_reference_needs_attention_that_takes_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipeline()
    set_attention(pipe, "_native_flash")
    given: dict[str, Any] = {"image": make_picture(), "references": [make_clip()], "output_type": "latent"}
    with monkeypatch.context() as patch:
        patch.setattr(type(pipe.text_encoder), "forward", refuse)
        with pytest.raises(
            InputError, match=r"needs attention that takes a mask, .* one of the backends .*native"
        ) as told:
            pipe(**given, reference_strength=0.5)
    assert "\n" not in str(told.value)
    for strength in (0.0, 1.0):
        pipe(**given, reference_strength=strength, num_inference_steps=1)
    # A backend that takes a mask and does nothing with it.
    native = _AttentionBackendRegistry._backends
    deaf = {name: partial(leave_out_mask, function) for name, function in native.items()}
    monkeypatch.setattr(_AttentionBackendRegistry, "_backends", deaf)
    set_attention(pipe, "native")
    with pytest.raises(InputError, match="it leaves the mask out"):
        pipe(**given, reference_strength=0.5)


def leave_out_mask(function: Any, *args: Any, attn_mask: Any = None, **kwargs: Any) -> Any:
    return function(*args, attn_mask=None, **kwargs)


def test_what_cannot_be_used_is_refused_in_one_line() -> None:
    pipe = make_pipeline()
    usable = list_usable_attention(pipe)
    assert {"native", "_native_math"} <= set(usable)
    assert not any(name.endswith("_hub") for name in usable)
    for name, message in (
        ("sdpa", "expected an attention backend, one of .*native.*, got 'sdpa'"),
        ("flash_hub", "'flash_hub' cannot be used here .*fetch code from the hub.* these can: .*native"),
        (
            next(name for name in ("sage", "flash", "xformers") if name not in usable),
            "missing package.* these can: .*native",
        ),
    ):
        with pytest.raises(InputError, match=message) as refused:
            set_attention(pipe, name)
        assert "\n" not in str(refused.value)
    processors = pipe.transformer.attn_processors.values()
    assert all(processor._attention_backend is None for processor in processors), "a refusal changes nothing"
