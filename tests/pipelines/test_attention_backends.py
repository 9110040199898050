"""The choice of an attention backend reaches every attention of a transformer with experts, and nothing else."""

from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from models import cogvideox_factories, factories
from pipelines.factories import make_cogvideox_pipeline, make_pipeline
from sememe.errors import InputError
from sememe.pipelines.acceleration import list_usable_attention, set_attention


def predict(pipe: Any) -> list[torch.Tensor]:
    """What the transformer predicts without a reference, with one of full strength, and with a weaker one."""
    model = pipe.transformer
    if pipe.family.name == "wan":
        target, reference = factories.make_target(), factories.make_reference()
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
