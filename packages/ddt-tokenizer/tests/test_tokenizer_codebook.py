"""The codebook's life: against vector-quantize-pytorch, slow obvious versions, and Selftok's rules."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from vector_quantize_pytorch import VectorQuantize

from ddt_tokenizer import VectorConfig, VectorQuantizer
from ddt_tokenizer.quantizers.diversity import diversity_loss
from ddt_tokenizer.quantizers.nearest import nearest


def build(num_tokens=None, **settings):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(
        16, VectorConfig(**{"codebook_size": 64, "code_width": 16, "dead_share": 0.0} | settings), num_tokens
    )
    torch.nn.init.eye_(quantizer.project.weight)
    torch.nn.init.zeros_(quantizer.project.bias)
    return quantizer.train()


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives, backward pass included."""

    numel = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **named or {})
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_updates_equal_those_of_vector_quantize_pytorch():
    ours = build()
    theirs = VectorQuantize(dim=16, codebook_size=64, decay=0.99, use_cosine_sim=True, commitment_weight=1.0).train()
    ours(torch.randn(8, 32, 16))  # starts the codebook
    theirs._codebook.embed.copy_(ours.codebook[None])
    theirs._codebook.embed_avg.copy_(ours.sums[None])
    theirs._codebook.cluster_size.copy_(ours.counts[None])
    for _ in range(20):
        vectors = F.normalize(torch.randn(8, 32, 16), dim=-1).requires_grad_()
        tokens, ids, loss = ours(vectors)
        their_tokens, their_ids, their_loss = theirs(vectors)
        assert torch.equal(ids, their_ids)
        assert torch.allclose(tokens, F.layer_norm(their_tokens, (16,), eps=1e-6), atol=1e-5)
        assert torch.allclose(loss, their_loss, atol=1e-6)
    assert torch.allclose(ours.codebook, theirs._codebook.embed[0], atol=1e-5)
    assert torch.allclose(ours.counts, theirs._codebook.cluster_size[0], atol=1e-4)


@pytest.mark.parametrize("size", [1, 63, 64, 100, 4096, 9000, 16384])
def test_search_in_chunks_finds_the_nearest(size):
    torch.manual_seed(0)
    vectors, codebook = torch.randn(700, 8), torch.randn(size, 8)
    assert torch.equal(nearest(vectors, codebook), (vectors @ codebook.T).argmax(-1))


def test_the_first_of_equal_entries_wins():
    codebook = torch.randn(3, 8).repeat(2000, 1)
    assert nearest(torch.randn(50, 8), codebook).max() < 3


def test_random_replacement_takes_vectors_of_the_batch():
    quantizer = build(dead_share=0.2, replacement="random")
    quantizer(torch.randn(8, 32, 16))
    quantizer.counts[[3, 9]] = -1e3
    z = F.normalize(torch.randn(8, 32, 16), dim=-1)
    quantizer(z)
    for code in (3, 9):
        assert (z.flatten(0, 1) - quantizer.codebook[code]).norm(dim=-1).min() < 1e-5
    assert quantizer.revived == 2


def test_poor_positions_give_more_new_codes():
    quantizer = build(num_tokens=4, dead_share=0.2, replacement="position", revived_share=0.5)
    quantizer.histogram[:3] = 1 / 64
    quantizer.histogram[3] = F.one_hot(torch.tensor(5), 64)  # uses one code
    ids = torch.zeros(100, 4, dtype=torch.long)
    donors = quantizer._donors(2000, torch.zeros(400), ids)
    weights = (10 / torch.tensor([64.0, 64, 64, 1])).softmax(0)
    shares = torch.bincount(donors % 4, minlength=4) / 2000
    assert torch.allclose(shares, weights, atol=0.02) and donors.max() < 400
    quantizer(torch.randn(8, 4, 16))
    quantizer.counts[7] = -1e3
    quantizer(torch.randn(8, 4, 16))
    assert quantizer.counts[7] == 0.5 * 32 / 64


def test_the_histogram_follows_the_codes_of_each_position():
    quantizer = build(num_tokens=4, replacement="position")
    slow = torch.full((4, 64), 1 / 64)
    for step in range(3):
        ids = quantizer(torch.randn(8, 4, 16)).ids
        decay = 0.99 if step else 0.3
        slow = decay * slow + (1 - decay) * F.one_hot(ids, 64).float().mean(0)
    assert torch.allclose(quantizer.histogram, slow, atol=1e-7)


@pytest.mark.parametrize("peak", [0.0, 1.0, 0.93])
def test_diversity_equals_the_formula(peak):
    torch.manual_seed(0)
    z = F.normalize(torch.randn(3, 130, 4), dim=-1).double().requires_grad_()
    codebook = F.normalize(torch.randn(20, 4), dim=-1).double()
    flat = torch.full((130, 20), 1 / 20, dtype=torch.double)
    histogram = (1 - peak) * flat + peak * F.one_hot(torch.randint(20, (130,)), 20)

    probabilities = (10 * torch.einsum("bkd,vd->bkv", z, codebook)).softmax(-1)
    mixed = 0.8 * histogram + 0.2 * probabilities.mean(0)
    by_position = -(mixed * mixed.log()).sum(-1).mean()
    groups = torch.stack([part.mean(0) for part in mixed.tensor_split(64)])
    by_group = -(groups * groups.log()).sum(-1).mean()
    fraction = torch.exp(-(histogram * (histogram + 1e-30).log()).sum(-1)).mean().item() / 20
    weight = 0.5 if fraction < 0.1 else max(0.5 - 0.5 / 0.2 * (fraction - 0.1), 0.0)
    slow = -weight * (by_position + by_group) / 2

    ours = diversity_loss(z, codebook, histogram)
    assert torch.allclose(ours, slow, atol=1e-10)
    if weight:
        assert torch.allclose(torch.autograd.grad(ours, z)[0], torch.autograd.grad(slow, z)[0], atol=1e-12)


def test_diversity_spreads_the_codes_of_a_position():
    torch.manual_seed(0)
    quantizer = build(num_tokens=2, diversity=1.0, commitment=0.0)
    offsets = torch.nn.Parameter(torch.randn(1, 2, 16) * 3)
    directions = torch.randn(256, 2, 16)
    optimizer = torch.optim.Adam([offsets], 0.1)
    with torch.no_grad():
        quantizer.eval()
        before = len(quantizer(directions + offsets).ids[:, 0].unique())
        quantizer.train()
    for _ in range(60):
        optimizer.zero_grad()
        quantizer(directions + offsets).loss.backward()
        optimizer.step()
    assert offsets.grad is not None and len(quantizer.eval()(directions + offsets).ids[:, 0].unique()) > before


def test_a_batch_that_is_not_finite_changes_nothing():
    quantizer = build(num_tokens=4, dead_share=0.2, diversity=1.0)
    bad = torch.randn(8, 4, 16)
    bad[3, 2, 1] = torch.nan
    for _ in range(2):  # before the codebook has started, and after
        before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
        assert not quantizer(bad).loss.isfinite()
        assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())
        quantizer(torch.randn(8, 4, 16))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="num_tokens"):
        build(replacement="position")


@pytest.mark.parametrize("settings", [{}, {"diversity": 1.0, "replacement": "position"}], ids=["plain", "diversity"])
def test_no_tensor_of_all_vectors_times_all_codes_exists(settings):
    quantizer = build(num_tokens=128, codebook_size=8192, dead_share=0.2, **settings)
    quantizer.counts += 1
    quantizer.sums.copy_(quantizer.codebook)
    vectors = torch.randn(32, 128, 16, requires_grad=True)
    with Largest() as largest:
        tokens, _, loss = quantizer(vectors)
        (tokens.sum() + loss).backward()
    assert largest.numel <= 4096 * 8192 / 32  # B * K * V / 32; Selftok's groups hold B * K * V / 64
    assert vectors.grad.any()
