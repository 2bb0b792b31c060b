"""Muon: its iteration in both forms, its steps against torch's, its state from before there was weight decay."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import ddt_tokenizer.muon
from ddt_tokenizer.muon import Muon, MuonAdamW, orthogonalise


@pytest.fixture(params=[False, True], ids=["fp32", "bf16"])
def in_bf16(request, monkeypatch):
    """Take one way or the other, whatever this machine has."""
    monkeypatch.setattr(ddt_tokenizer.muon, "multiplies_bf16", lambda device: request.param)
    return request.param


@pytest.fixture
def in_fp32(monkeypatch):
    monkeypatch.setattr(ddt_tokenizer.muon, "multiplies_bf16", lambda device: False)


def conditioned(rows, columns, decades):
    """A gradient with singular values from 1 to 10^-decades, as they are in training."""
    u, _, vh = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    return u * torch.logspace(0, -decades, min(rows, columns)) @ vh


def test_orthogonalise_keeps_the_directions_and_evens_the_singular_values(in_fp32):
    matrices = torch.randn(3, 8, 20)
    result = orthogonalise(matrices)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    assert ((torch.linalg.svdvals(result) > 0.5) & (torch.linalg.svdvals(result) < 1.5)).all()
    inside = u.mT @ result @ vh.mT  # diagonal: the singular vectors are those of the input
    assert torch.allclose(inside, torch.diag_embed(torch.diagonal(inside, dim1=1, dim2=2)), atol=1e-3)
    assert torch.allclose(orthogonalise(matrices.mT), result.mT, atol=1e-4)


def test_orthogonalise_is_the_newton_schulz_iteration(in_fp32):
    matrices = torch.stack([conditioned(24, 60, decades=6) for _ in range(4)])
    matrices[3] = torch.randn(24, 3) @ torch.randn(3, 60)  # and a matrix of rank 3
    x = matrices.double() / matrices.double().norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.mT) @ x + 2.0315 * (x @ x.mT) @ (x @ x.mT) @ x
    assert (orthogonalise(matrices) - x).norm() < 1e-3 * x.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 64), (24, 96), (96, 24)])
def test_singular_values_stay_small_on_gradients_of_condition_1e6(in_bf16, dtype, shape):
    for seed in range(3):
        torch.manual_seed(seed)
        gradient = torch.stack([conditioned(*shape, decades) for decades in (2, 4, 6)]).to(dtype)
        result = orthogonalise(gradient)
        assert result.dtype == dtype and result.shape == gradient.shape
        values = torch.linalg.svdvals(result.float())
        assert values.max() < 1.3 and values[:, 0].min() > 0.6


def test_both_ways_agree(monkeypatch):
    torch.manual_seed(0)
    matrices, results = torch.randn(3, 24, 60), []
    for way in (False, True):
        monkeypatch.setattr(ddt_tokenizer.muon, "multiplies_bf16", lambda device, way=way: way)
        results.append(orthogonalise(matrices))
    assert 0 < (results[0] - results[1]).norm() < 0.05 * results[0].norm()


def test_muon_agrees_with_torch(in_bf16):
    torch.manual_seed(0)
    ours, theirs, bias = (
        nn.Parameter(torch.randn(16, 40)),
        nn.Parameter(torch.zeros(16, 40)),
        nn.Parameter(torch.zeros(1)),
    )
    theirs.data.copy_(ours.data)
    optimizer = MuonAdamW(Muon([ours], 1e-2), torch.optim.AdamW([bias], 1e-2))
    reference = torch.optim.Muon([theirs], 1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    start = ours.data.clone()
    for _ in range(5):
        gradient = torch.randn(16, 40)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    # torch's works in bf16, so equal up to that.
    assert (ours - theirs).norm() < 0.05 * (ours - start).norm()


def test_training_in_bf16_does_not_explode(in_bf16):
    torch.manual_seed(0)
    x = torch.randn(64, 32).bfloat16()
    target = x @ torch.randn(32, 8).bfloat16() / 6
    network = nn.Sequential(nn.Linear(32, 96, bias=False), nn.Tanh(), nn.Linear(96, 8, bias=False)).bfloat16()
    optimizer = MuonAdamW(
        Muon([layer.weight for layer in network if isinstance(layer, nn.Linear)], 5e-3),
        torch.optim.AdamW([nn.Parameter(torch.zeros(1))], 5e-3),
    )
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (network(x) - target).float().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses) < 2 * losses[0] and losses[-1] < losses[0] / 3


def as_of_0_1_0(state):
    """The state of one Muon and one AdamW group as it was written before they were one, and had weight decay."""
    muon, adamw = ({**group, "params": [0]} for group in state["param_groups"])
    del muon["weight_decay"]
    return {
        "muon": {"state": {0: state["state"][0]}, "param_groups": [muon]},
        "adamw": {"state": {0: state["state"][1]}, "param_groups": [adamw]},
    }


@pytest.mark.parametrize("form", [as_of_0_1_0, dict])
def test_a_state_loads_in_the_form_of_now_and_of_before(form):
    def start():
        torch.manual_seed(0)
        matrix, bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))
        return [matrix, bias], MuonAdamW(Muon([matrix], 1e-2), torch.optim.AdamW([bias], 1e-2))

    def step(weights, optimizer):
        for p in weights:
            p.grad = p.detach().cos()
        optimizer.step()

    weights, optimizer = start()
    step(weights, optimizer)
    state = form(deepcopy(optimizer.state_dict()))  # which shares its tensors with both
    others, resumed = start()
    with torch.no_grad():
        for p, q in zip(others, weights, strict=True):
            p.copy_(q)
    resumed.load_state_dict(state)
    assert resumed.param_groups[0] is resumed.muon.param_groups[0]  # one schedule reaches both halves
    assert resumed.param_groups[1] is resumed.adamw.param_groups[0] and resumed.state is resumed.adamw.state
    for each in ((weights, optimizer), (others, resumed)):
        step(*each)
    assert all(torch.equal(p, q) for p, q in zip(others, weights, strict=True))
