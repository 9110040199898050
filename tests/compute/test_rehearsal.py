"""Memory measured on the meta device against that of the same networks computing on the CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model_folders import make_cogvideox_vae
from sememe.backbones.autoencoder import decode_latents, encode_video, latent_grid
from sememe.compute.rehearsal import Segment, copy_to_meta, measure_peak, measure_phase, track_memory
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.transformer_files import WAN
from video_as_prompt import cogvideox_factories, wan_factories


def test_birth_and_death() -> None:
    with track_memory() as memory:
        first = torch.zeros(1000)
        second = first + 1
        assert (memory.live_bytes, memory.peak_bytes) == (8000, 8000)
        del first
        assert (memory.live_bytes, memory.peak_bytes) == (4000, 8000)
        memory.reset_peak()
        third = second * 2
        assert memory.peak_bytes == 8000
        del second, third
        assert memory.live_bytes == 0


def test_a_view_is_no_memory_and_keeps_its_source_alive() -> None:
    with track_memory() as memory:
        whole = torch.zeros(10, 100)
        part = whole.t()[3:4]
        del whole
        assert memory.live_bytes == 4000
        del part
        assert memory.live_bytes == 0


def test_what_was_there_before_counts_nothing() -> None:
    before = torch.zeros(1000)
    with track_memory() as memory:
        view = before.view(10, 100)
        before.add_(1)
        assert memory.peak_bytes == 0
        del view, before
        assert memory.live_bytes == 0


def test_the_peak_of_composed_operations() -> None:
    tensor = torch.zeros(1000)
    # Two factors and the sum are alive together.
    assert measure_peak(lambda: tensor * 2 + tensor * 3) == 3 * 4000
    layers = torch.nn.Sequential(torch.nn.Linear(10, 1000), torch.nn.GELU(), torch.nn.Linear(1000, 10))
    # Before the activation is done its input is alive too.
    assert measure_peak(lambda: layers(torch.ones(4, 10))) >= 2 * 4 * 1000 * 4


def test_nothing_need_be_computed() -> None:
    with FakeTensorMode():
        huge = torch.empty(10**6, 10**6)
        assert measure_peak(lambda: huge + 1) == 4 * 10**12


FAMILIES: dict[str, Callable[..., Any]] = {
    "wan": wan_factories.make_transformer,
    "cogvideox": cogvideox_factories.make_transformer,
}


def make_step(family: str, model: Any, dtype: torch.dtype, device: str) -> Callable[[], None]:
    """A step with one reference, on inputs of a device."""
    size, text = (3, 20, 24), torch.zeros(1, 5, 16, dtype=dtype, device=device)
    timestep = torch.full((1,), 500.0, device=device)
    if family == "wan":
        video = torch.zeros(1, wan_factories.IN_CHANNELS, *size, dtype=dtype, device=device)
        arguments, settings = (video, timestep, text), {}
    else:
        video = torch.zeros(1, size[0], cogvideox_factories.IN_CHANNELS, *size[1:], dtype=dtype, device=device)
        arguments = (video, text, timestep)
        settings = {"image_rotary_emb": model.rotary_tables(*size, torch.device(device))}
    reference = ReferenceInputs((video,), (text,))
    return lambda: model(*arguments, reference=reference, **settings)


@pytest.mark.parametrize(
    ("family", "mode", "dtype"),
    [
        ("wan", "joint", torch.bfloat16),
        ("wan", "cached", torch.float32),
        ("cogvideox", "joint", torch.float32),
        ("cogvideox", "cached", torch.bfloat16),
    ],
    ids=str,
)
def test_a_step_takes_on_meta_what_it_takes_on_the_cpu(family: str, mode: str, dtype: torch.dtype) -> None:
    model = nn.Module.to(FAMILIES[family](attention_mode=mode), dtype)
    twin = copy_to_meta(model)
    real = measure_phase(make_step(family, model, dtype, "cpu"), {"transformer": model})
    assert measure_phase(make_step(family, twin, dtype, "meta"), {"transformer": twin}) == real
    assert real.segments[-1].peak_bytes > 100_000


@pytest.mark.parametrize(
    ("vae", "dtype"),
    [
        (wan_factories.make_wan_vae, torch.float32),
        (wan_factories.make_wan_vae, torch.bfloat16),
        (make_cogvideox_vae, torch.float32),
        (wan_factories.make_linear_vae, torch.float32),
    ],
)
def test_an_autoencoder_takes_on_meta_what_it_takes_on_the_cpu(
    vae: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    model: Any = nn.Module.to(vae(), dtype)
    twin: Any = copy_to_meta(model)
    found = []
    for module, device in ((model, "cpu"), (twin, "meta")):
        video = torch.zeros(1, 3, 9, 64, 48, device=device)
        latents = torch.zeros(1, *latent_grid(module).latent_shape(9, 64, 48), device=device)
        work: tuple[Callable[[], object], ...] = (
            partial(encode_video, module, video),
            partial(decode_latents, module, latents),
        )
        found.append([measure_phase(run, {"vae": module}) for run in work])
    assert found[0] == found[1]
    assert min(phase.segments[-1].peak_bytes for phase in found[0]) > 100_000


def test_the_released_transformer_on_meta() -> None:
    """The two-way step of Wan-14B in bfloat16, at 480x832 pixels and 49 frames."""
    shapes = ((36, 13, 60, 104), (512, 4096), (257, 1280))
    released = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
    with torch.device("meta"):
        model = WAN.transformer(**released, **WAN.released_settings(WAN.released_expert_blocks))
        nn.Module.to(model, torch.bfloat16)
        video, text, image = (torch.zeros(1, *shape, dtype=torch.bfloat16) for shape in shapes)
        timestep = torch.zeros(1)
    with torch.no_grad():
        reference = model.embed_reference(ReferenceInputs((video,), (text,), (image,)))
    measured = measure_phase(lambda: model(video, timestep, text, image, reference=reference), {"transformer": model})
    assert measured.segments[-1].peak_bytes / 1e9 == pytest.approx(5.5036, abs=1e-4)


def test_segments_follow_the_calls_of_components() -> None:
    first, second = nn.Linear(10, 100, device="meta"), nn.Linear(100, 10, device="meta")
    kept: list[torch.Tensor] = []

    def run() -> None:
        given = torch.zeros(1, 10, device="meta")
        kept.append(first(given))
        kept.append(second(kept[0]))
        second(kept[0])

    measured = measure_phase(run, {"first": first, "second": second})
    assert measured.segments == (Segment("", 40), Segment("first", 40 + 400), Segment("second", 40 + 400 + 40 + 40))
    assert measured.kept_bytes == 400 + 40
    assert not hasattr(first, "_hf_hook")


def test_a_copy_on_meta_has_no_weights() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10))
    twin = copy_to_meta(model)
    assert {tensor.device.type for tensor in (*twin.parameters(), *twin.buffers())} == {"meta"}
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert {name: each.shape for name, each in twin.state_dict().items()} == {
        name: each.shape for name, each in model.state_dict().items()
    }


def test_repeated_operations_on_the_meta_device_count_as_computed_ones() -> None:
    def work(device: str) -> int:
        left, right = torch.empty(6, 8, 4, device=device), torch.empty(6, 4, 8, device=device)

        def run() -> torch.Tensor:
            total = left @ right  # ends in a view that does not declare itself as one
            for _ in range(3):
                total = (left @ right).add(total).relu_().transpose(1, 2)
            return torch.cat([total, *total.split(3)])

        return measure_peak(run)

    assert work("meta") == work("cpu")
