"""The project's own vectors, and the official ones where they lie beside the project, through the public check."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity import generations
from sememe.video_as_prompt.parity import check_parity

OWN = Path(__file__).parent / "vectors"
OFFICIAL = Path(__file__).parents[2].parent / "shared" / "parity"
# Whatever lies there, so that vectors that come later are compared too.
FORWARDS = sorted(path.parent.name for path in OFFICIAL.glob("*/weights.safetensors"))
GENERATIONS = sorted(path.parent.name for path in OFFICIAL.glob("*/call.json"))


@pytest.mark.parametrize("name", ["wan", "cogvideox", "cogvideox_2refs"])
def test_own_vectors(name: str) -> None:
    result = check_parity(OWN / name)
    assert (result.kind, result.ok) == ("forward", True)
    assert result.max_abs_error < 1e-5


def test_a_changed_weight_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "wan"
    shutil.copytree(OWN / "wan", folder)
    weights = load_file(folder / "weights.safetensors")
    weights["blocks.2.attn1_mot_ref.to_k.weight"] *= 1.1
    save_file(weights, folder / "weights.safetensors")
    assert not check_parity(folder).ok


@pytest.mark.parametrize("name", FORWARDS)
def test_official_forward(name: str) -> None:
    assert check_parity(OFFICIAL / name).max_abs_error < 1e-5


@pytest.mark.parametrize("name", GENERATIONS)
def test_official_generation(name: str) -> None:
    result = check_parity(OFFICIAL / name)
    assert result.kind == "pipeline"
    assert result.max_abs_error < 1e-5
    assert result.latents_error is not None
    assert result.latents_error < 1e-4


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the parity vectors are not beside the project")
def test_a_generation_from_other_noise_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(OFFICIAL / "pipeline_wan", folder, copy_function=shutil.copyfile)
    inputs = load_file(folder / "inputs.safetensors")
    inputs["initial_latents"] = inputs["initial_latents"] + 0.01 * torch.ones(())
    (folder / "inputs.safetensors").unlink()
    save_file(inputs, folder / "inputs.safetensors")
    result = check_parity(folder)
    assert not result.ok
    assert result.max_abs_error > 1e-3


@pytest.mark.parametrize("name", generations.NAMES)
def test_own_generations(name: str) -> None:
    expected = load_file(generations.PATH)[name]
    torch.testing.assert_close(generations.generate(name), expected, atol=1e-4, rtol=1e-4)
