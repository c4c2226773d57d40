"""Optimizers and schedules of the harness."""

import copy

import pytest
import torch
from torch import nn

from codec.causal import CausalDepthwiseConv
from codec.config import EscLiveConfig
from codec.esc import Esc
from codec.live import EscLive
from engine.errors import ConfigError
from recipes.esc import tiny as esc_tiny
from recipes.harness.optim import Muon, decay_groups, make_optimizer, orthogonal_groups, orthogonalized
from recipes.recipe import CodecRecipe


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8), (1, 16, 16)])
def test_orthogonalized_keeps_directions_and_evens_out_lengths(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    steps = orthogonalized(matrices)
    for matrix, step in zip(matrices, steps, strict=True):
        values = torch.linalg.svdvals(step)
        assert float(values.min()) > 0.3 and float(values.max()) < 1.3  # Newton-Schulz stops early, by design
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        exact = left @ right
        assert float((step * exact).sum() / (step.norm() * exact.norm())) > 0.95


def regression():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 4))
    x = torch.randn(64, 12)
    return model, x, torch.tanh(x @ torch.randn(12, 4))


def steps(model, optimizer, x, y, count):
    for _ in range(count):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_muon_learns_and_its_state_resumes_exactly():
    model, x, y = regression()
    optimizer = Muon(orthogonal_groups(model, 0.01), lr=0.05)
    assert [group["orthogonal"] for group in optimizer.param_groups] == [True, False, False]
    first = steps(model, optimizer, x, y, 1)
    steps(model, optimizer, x, y, 10)
    twin = copy.deepcopy(model)
    resumed = Muon(orthogonal_groups(twin, 0.01), lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    last = steps(model, optimizer, x, y, 30)
    assert steps(twin, resumed, x, y, 30) == last < 0.2 * first


def test_muon_moves_a_matrix_by_the_rate_whatever_the_gradient():
    for scale in (1e-4, 1e4):
        weight = nn.Parameter(torch.zeros(32, 8))
        optimizer = Muon([{"params": [weight], "weight_decay": 0.0, "orthogonal": True}], lr=0.1)
        weight.grad = scale * torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        assert 0.7 < float(weight.detach().norm()) / (0.1 * 0.2 * 32**0.5 * 8**0.5) < 1.3


def test_kernels_are_matrices_and_class_vectors_are_not():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Conv1d(8, 24, 3)
            self.depthwise = nn.Conv1d(8, 8, 3, groups=8)
            self.classifiers = nn.ModuleList([nn.Linear(8, 5, bias=False)])

    net = Net()
    orthogonal, others, plain = (group["params"] for group in orthogonal_groups(net, 0.01))
    assert [id(p) for p in orthogonal] == [id(net.wide.weight)]
    assert {id(p) for p in others} == {id(net.depthwise.weight), id(net.classifiers[0].weight)}
    assert len(plain) == 2
    optimizer = Muon([{"params": orthogonal, "weight_decay": 0.0, "orthogonal": True}], lr=0.1)
    before = net.wide.weight.detach().clone()
    net.wide.weight.grad = torch.randn(24, 8, 3, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    step = (before - net.wide.weight.detach()).flatten(1)
    values = torch.linalg.svdvals(step) / (0.1 * 0.2 * 24**0.5)
    assert float(values.min()) > 0.3 and float(values.max()) < 1.3
    left, _, right = torch.linalg.svd(net.wide.weight.grad.flatten(1), full_matrices=False)
    assert float((step * (left @ right)).sum() / (step.norm() * 24**0.5)) > 0.95


def test_depthwise_kernels_of_the_codec_are_filters():
    model = EscLive(EscLiveConfig())
    depthwise = {id(m.weight) for m in model.modules() if isinstance(m, CausalDepthwiseConv)}
    orthogonal = {id(p) for p in orthogonal_groups(model, 0.01)[0]["params"]}
    assert len(depthwise) > 5 and len(orthogonal) > 20 and not depthwise & orthogonal


def test_a_state_of_other_groups_is_an_error():
    model, *_ = regression()
    older = Muon([{"params": list(model.parameters()), "weight_decay": 0.0, "orthogonal": False}])
    with pytest.raises(ConfigError, match="begin a run with --init"):
        Muon(orthogonal_groups(model, 0.0)).load_state_dict(older.state_dict())


def test_an_unknown_optimizer_is_an_error():
    with pytest.raises(ConfigError, match="adamw and muon"):
        make_optimizer(nn.Linear(2, 2), CodecRecipe(name="x", optimizer="sgd"))


def test_position_biases_of_both_codecs_neither_decay_nor_are_orthogonalized():
    for model, name in ((Esc(esc_tiny().model), "position_bias"), (EscLive(EscLiveConfig()), "attention.bias")):
        tables = {id(p) for n, p in model.named_parameters() if n.endswith(name)}
        decayed, plain = decay_groups(model, 0.1)
        assert tables and tables <= {id(p) for p in plain["params"]}
        matrices = orthogonal_groups(model, 0.1)
        assert not tables & {id(p) for group in matrices if group.get("orthogonal") for p in group["params"]}
