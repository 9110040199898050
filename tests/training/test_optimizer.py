from typing import Any

import pytest
import torch
from torch import nn

from sememe.errors import ModelError, RecipeError
from sememe.training.config import TrainingConfig
from sememe.training.optimizer import NamedOptimizer, WeightAverage, split_parameters, tracked_tensors
from training.small_stage import SmallNetwork


def make_config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**({"num_steps": 10, "learning_rate": 0.01} | changes))


def test_embeddings_and_vectors_are_not_decayed_and_hidden_matrices_are_muons() -> None:
    modules = {"network": SmallNetwork()}
    split = split_parameters(modules, make_config(optimizer="muon"))
    assert split.hidden == ("network.hidden.weight",)
    assert split.decayed == ("network.convolution.weight", "network.head.weight")
    assert "network.token_embedding.weight" in split.plain
    assert "network.hidden.bias" in split.plain
    assert not any("frozen" in name for name in (*split.hidden, *split.decayed, *split.plain))
    assert split_parameters(modules, make_config()).hidden == ()


def test_buffers_and_trained_parameters_are_tracked() -> None:
    names = set(tracked_tensors({"network": SmallNetwork()}))
    assert {"network.statistics.running_mean", "network.head.weight"} <= names
    assert "network.frozen.weight" not in names


def test_weight_decay_shrinks_matrices_only() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Embedding(2, 2))
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimizer = NamedOptimizer({"n": network}, make_config(weight_decay=1.0))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(network.named_parameters())
    torch.testing.assert_close(after["0.weight"].detach(), before["0.weight"] * 0.99)
    assert torch.equal(after["0.bias"], before["0.bias"])
    assert torch.equal(after["1.weight"], before["1.weight"])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_state_survives_a_round_trip_with_another_memory_layout(kind: str) -> None:
    torch.manual_seed(0)
    first, second = SmallNetwork(), SmallNetwork()
    second.load_state_dict(first.state_dict())
    optimizers = [NamedOptimizer({"n": network}, make_config(optimizer=kind)) for network in (first, second)]

    def step(index: int) -> None:
        network = (first, second)[index]
        torch.manual_seed(1)
        network.train()
        network(torch.arange(5), torch.randn(5, 3, 4, 4)).square().mean().backward()
        optimizers[index].step()
        optimizers[index].clear_gradients()

    step(0)
    state = {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in optimizers[0].tensors().items()
    }
    second.load_state_dict(first.state_dict())
    optimizers[1].load(state)
    step(0)
    step(1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_the_learning_rate_reaches_all_parameters() -> None:
    network = SmallNetwork()
    optimizer = NamedOptimizer({"n": network}, make_config(optimizer="muon", weight_decay=0.0))
    before = [value.detach().clone() for value in network.parameters()]
    optimizer.set_learning_rate(0.0)
    network(torch.arange(5), torch.randn(5, 3, 4, 4)).sum().backward()
    optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_factors_of_the_learning_rate_follow_names(kind: str) -> None:
    network, other = SmallNetwork(), SmallNetwork()
    other.load_state_dict(network.state_dict())
    factors = {"n.head.*": 0.5, "*.weight": 3.0}
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    for each, given in ((network, {}), (other, factors)):
        optimizer = NamedOptimizer(
            {"n": each}, make_config(optimizer=kind, weight_decay=0.0, learning_rate_factors=given)
        )
        optimizer.set_learning_rate(1e-3)
        each.eval()(torch.arange(5), torch.ones(5, 3, 4, 4)).sum().backward()
        optimizer.step()
    for name, value in other.named_parameters():
        factor = (0.5 if name.startswith("head.") else 1.0) * (3.0 if name.endswith(".weight") else 1.0)
        plain = dict(network.named_parameters())[name]
        torch.testing.assert_close(value - before[name], factor * (plain - before[name]), atol=1e-7, rtol=1e-3)
    with pytest.raises(RecipeError, match="no trained parameter matches"):
        NamedOptimizer({"n": network}, make_config(learning_rate_factors={"n.frozen*": 2.0}))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match="needs hidden matrices"):
        NamedOptimizer({"n": nn.LayerNorm(3)}, make_config(optimizer="muon"))


def test_the_average_follows_its_formula_and_gives_the_weights_back() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.bfloat16))
    average = WeightAverage({"p": parameter}, decay=0.5)
    with torch.no_grad():
        parameter.fill_(3.0)
    average.update(0)
    torch.testing.assert_close(average.tensors()["p"], torch.tensor([2.8, 2.8]))
    average.update(100)
    torch.testing.assert_close(average.tensors()["p"], torch.tensor([2.9, 2.9]))
    with average.applied():
        assert parameter.dtype == torch.bfloat16
        assert parameter[0].item() == pytest.approx(2.9, abs=0.02)
    assert parameter[0].item() == 3.0
    average.load({"p": torch.zeros(2)})
    assert average.tensors()["p"].sum() == 0
    with pytest.raises(ModelError, match=r"shape \(2,\), got \(3,\)"):
        average.load({"p": torch.zeros(3)})
