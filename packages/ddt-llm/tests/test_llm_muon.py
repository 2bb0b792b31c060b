"""Muon, and what it makes of gradients as they are: of a few large singular values and many tiny ones."""

import copy

import pytest
import torch

from ddt_llm import OptimizerConfig, collate, muon, token_loss
from ddt_llm.muon import Muon, orthogonalise
from ddt_llm.optimizer import build_optimizer


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_muon_follows_that_of_torch(shape):
    """The reference computes in bfloat16, hence the tolerance."""
    torch.manual_seed(0)
    ours, theirs = torch.nn.Parameter(torch.randn(shape)), torch.nn.Parameter(torch.empty(shape))
    theirs.data.copy_(ours.data)
    start = ours.detach().clone()
    optimizers = [
        Muon([ours], lr=0.1, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (ours - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_orthogonalise_gives_singular_values_near_one():
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, 12, 40)))
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("in_bf16", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 192), (192, 48), (64, 64)])
def test_no_singular_value_explodes(monkeypatch, in_bf16, dtype, shape):
    monkeypatch.setattr(muon, "multiplies_bf16", lambda device: in_bf16)
    torch.manual_seed(0)
    rows, columns, rank = *shape, min(shape)
    left, _ = torch.linalg.qr(torch.randn(4, rows, rank))
    right, _ = torch.linalg.qr(torch.randn(4, columns, rank))
    gradients = ((left * torch.logspace(0, -6, rank)) @ right.mT).to(dtype)  # of condition 1e6
    updates = orthogonalise(gradients)
    values = torch.linalg.svdvals(updates.float())
    assert updates.dtype == dtype and updates.shape == gradients.shape
    assert values.max() < 1.3 and values[:, 0].min() > 0.6


def test_a_state_that_ddt_llm_1_0_0_saved_is_taken_up(make_lm, ids):
    """It had classes of its own, whose state dict was that of a `Muon` and of an `AdamW` by name."""
    lm = make_lm()
    batch = collate([lm.sequences.text_to_image("a red fox", ids[0])], lm.sequences.pad)
    token_loss(lm.model, lm.vocabulary, **batch).mean.backward()
    optimizer = build_optimizer(lm.model, OptimizerConfig(steps=9, optimizer="muon"))
    layers = [weight for weight in lm.model.model.layers.parameters() if weight.ndim == 2]
    vectors = [weight for weight in lm.model.parameters() if weight.ndim < 2]
    adamw = {"betas": (0.9, 0.95), "eps": 1e-8, "amsgrad": False, "maximize": False, "foreach": None, "fused": True}
    adamw |= {"capturable": False, "differentiable": False, "decoupled_weight_decay": True}
    rate = {"lr": 1e-3, "initial_lr": 2e-3}

    def moments(weight):
        step, first, second = torch.tensor(4.0), torch.full_like(weight, 0.1), torch.full_like(weight, 0.2)
        return {"step": step, "exp_avg": first, "exp_avg_sq": second}

    tables = [lm.model.get_input_embeddings().weight]
    saved = {
        "muon": {
            "state": {i: {"momentum": torch.full_like(weight, 0.3)} for i, weight in enumerate(layers)},
            "param_groups": [
                {**rate, "weight_decay": 0.05, "momentum": 0.95, "params": list(range(len(layers)))},
            ],
        },
        "adamw": {
            "state": {i: moments(weight) for i, weight in enumerate(tables + vectors)},
            "param_groups": [
                {**adamw, **rate, "weight_decay": 0.05, "name": "vocabulary", "params": [0]},
                {**adamw, **rate, "weight_decay": 0.0, "params": list(range(1, 1 + len(vectors)))},
            ],
        },
    }
    optimizer.load_state_dict(copy.deepcopy(saved))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3] * 3
    assert all(torch.equal(optimizer.muon.state[w]["momentum"], torch.full_like(w, 0.3)) for w in layers)
    assert all(torch.equal(optimizer.adamw.state[w]["exp_avg"], torch.full_like(w, 0.1)) for w in tables + vectors)
    assert optimizer.state_dict()["param_groups"][0] == saved["muon"]["param_groups"][0]
    before = layers[0].detach().clone()
    optimizer.step()
    assert not torch.equal(layers[0], before)
