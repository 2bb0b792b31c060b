"""Attention, written out and by the fused kernel."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from ddt_tokenizer import attend as module
from ddt_tokenizer.attend import attend, better_written_out

MASKS = {
    "all": lambda b, s: None,
    "causal": lambda b, s: torch.ones(s, s, dtype=torch.bool).tril()[None, None],
    "tokens": lambda b, s: torch.cat([torch.ones(b, 1, 1, 1), torch.rand(b, 1, 1, s - 1).round()], -1).bool(),
    "rows": lambda b, s: (torch.rand(b, 1, s, s) > 0.5) | torch.eye(s, dtype=torch.bool),
}


def plain(q, k, v, visible, scale):
    """In double, the formula."""
    q, k, v = (x.double() for x in (q, k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if visible is not None:
        scores = torch.where(visible, scores, -math.inf)
    return torch.softmax(scores, -1) @ v


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("batch", [0, 1, 2, 7])
def test_both_ways_are_the_formula(mask, scale, batch, monkeypatch):
    """Written out in parts of three rows, then in parts of one, then at once."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, 2, 9, 4, requires_grad=True) for _ in range(3))
    visible, outer = MASKS[mask](batch, 9), torch.randn(batch, 2, 9, 4)
    expected = plain(q, k, v, visible, scale)
    expected_gradients = torch.autograd.grad((expected * outer).sum(), (q, k, v))
    for written, part in ((False, 0), (True, 3 * 2 * 81), (True, 1), (True, 2**20)):
        monkeypatch.setattr(module, "better_written_out", lambda q, k, written=written: written)
        monkeypatch.setattr(module, "PART", part)
        found = attend(q, k, v, visible, scale)
        gradients = torch.autograd.grad((found * outer).sum(), (q, k, v))
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)


def test_it_is_written_out_in_bf16_alone_and_as_exact_as_the_kernel():
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 50, 8) for _ in range(3))
    assert not better_written_out(q, k) and not better_written_out(q.to("meta"), k)
    low = [x.bfloat16() for x in (q, k, v)]
    assert better_written_out(*low[:2]) and not better_written_out(low[0], low[1].repeat(1, 1, 21, 1))
    visible = MASKS["rows"](3, 50)
    expected = plain(q, k, v, visible, None)
    ours, kernel = attend(*low, visible), F.scaled_dot_product_attention(*low, attn_mask=visible)
    assert ours.dtype == torch.bfloat16
    assert (ours - expected).norm() < 1.5 * (kernel - expected).norm()


def test_compiled_it_is_the_same_for_all_sizes_by_one_graph():
    """In bf16, where the number of parts follows from sizes."""
    counter = CompileCounter()
    compiled = torch.compile(attend, backend=counter, dynamic=True)
    for batch, length in ((3, 50), (7, 80), (40, 200)):
        q, k, v = (torch.randn(batch, 2, length, 8).bfloat16() for _ in range(3))
        visible = MASKS["rows"](batch, length)
        torch.testing.assert_close(compiled(q, k, v, visible), attend(q, k, v, visible))
    assert counter.frame_count == 1
