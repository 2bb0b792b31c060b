"""The quantizer against slow obvious versions, and the life of its codebook."""

import pytest
import torch
import torch.nn.functional as F

from ddt_tokenizer import VectorConfig, VectorQuantizer


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    return VectorQuantizer(24, VectorConfig(codebook_size=32, code_width=6))


def test_ids_are_those_of_the_nearest_code(quantizer):
    quantizer.eval()
    vectors = torch.randn(4, 8, 24)
    z = quantizer.to_code_space(vectors)
    distances = (z[:, :, None] - quantizer.codebook).norm(dim=-1)
    assert torch.equal(quantizer(vectors).ids, distances.argmin(-1))


def test_lookup_in_chunks_equals_lookup_at_once(quantizer):
    z = F.normalize(torch.randn(3, 6000, 6), dim=-1)
    assert torch.equal(quantizer.lookup(z), (z @ quantizer.codebook.T).argmax(-1))


def test_with_a_rate_a_common_entry_wins_over_a_rare_one_that_is_hardly_nearer():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(24, VectorConfig(codebook_size=128, code_width=6, rate=0.02)).eval()
    z = F.normalize(torch.randn(50, 7, 6), dim=-1)
    plain = (z @ quantizer.codebook.T).argmax(-1)
    assert torch.equal(quantizer.lookup(z), plain)  # before the first batch all are equally common
    quantizer.counts.copy_(torch.rand(128).pow(8) * 100)
    floor = 0.2 * quantizer.counts.mean()
    scores = z @ quantizer.codebook.T + 0.02 * (quantizer.counts + floor).log()
    ids = quantizer.lookup(z)
    assert torch.equal(ids, scores.argmax(-1)) and not torch.equal(ids, plain)
    assert quantizer.counts[ids].mean() > quantizer.counts[plain].mean()


def test_a_rate_saves_bits_and_hardly_changes_what_is_written():
    """Most vectors are nearly equal, as those of plain patches are; the rest lie anywhere."""
    torch.manual_seed(0)
    plain = F.normalize(torch.tensor([1.0, 0, 0, 0, 0, 0]) + 0.05 * torch.randn(3000, 6), dim=-1)
    vectors = torch.cat([plain, F.normalize(torch.randn(1000, 6), dim=-1)])[torch.randperm(4000)].view(40, 100, 6)
    bits, similarity = [], []
    for rate in (0.0, 0.01):
        torch.manual_seed(1)
        quantizer = VectorQuantizer(6, VectorConfig(codebook_size=64, code_width=6, rate=rate)).train()
        quantizer.to_code_space = lambda z: z
        for _ in range(20):
            quantizer(vectors)
        ids = quantizer.eval()(vectors).ids
        shares = ids.flatten().bincount(minlength=64) / ids.numel()
        bits.append(-(shares * shares.clamp(min=1e-9).log2()).sum())
        similarity.append((quantizer.codebook[ids] * vectors).sum(-1).mean())
    assert bits[1] < bits[0] - 0.5 and similarity[1] > similarity[0] - 0.005


def test_tokens_are_the_embedded_ids(quantizer):
    quantizer.eval()
    tokens, ids, _ = quantizer(torch.randn(4, 8, 24))
    assert torch.allclose(tokens, quantizer.embed(ids), atol=1e-6)


def test_gradients_pass_straight_through(quantizer):
    quantizer.eval()
    vectors = torch.randn(2, 3, 24, requires_grad=True)
    weights = torch.randn(2, 3, 6)
    quantized = quantizer(vectors)
    (quantized.tokens * weights).sum().backward()
    # The gradient of the same with the code put in place of z, times dz / dvectors.
    z = quantizer.to_code_space(vectors.detach().requires_grad_())
    codes = quantizer.codebook[quantized.ids].requires_grad_()
    (quantizer.normalise(codes) * weights).sum().backward()
    leaf = vectors.detach().requires_grad_()
    quantizer.to_code_space(leaf).backward(codes.grad)
    assert z.shape == codes.shape and torch.allclose(vectors.grad, leaf.grad, atol=1e-6)


def test_one_update_equals_the_formula(quantizer):
    quantizer.train()
    quantizer(torch.randn(16, 8, 24))  # starts the codebook
    quantizer.config = VectorConfig(codebook_size=32, code_width=6, dead_share=0.0)
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    vectors = torch.randn(16, 8, 24)
    ids = quantizer(vectors).ids.flatten()
    z = quantizer.to_code_space(vectors).flatten(0, 1)
    one_hot = F.one_hot(ids, 32).float()
    counts = 0.99 * before["counts"] + 0.01 * one_hot.sum(0)
    sums = 0.99 * before["sums"] + 0.01 * one_hot.T @ z
    assert torch.allclose(quantizer.counts, counts, atol=1e-5)
    assert torch.allclose(quantizer.codebook, F.normalize(sums, dim=-1), atol=1e-5)


def test_codes_stay_on_the_unit_sphere(quantizer):
    quantizer.train()
    for _ in range(5):
        quantizer(torch.randn(8, 8, 24))
    assert torch.allclose(quantizer.codebook.norm(dim=-1), torch.ones(32), atol=1e-5)


def test_dead_codes_come_back(quantizer):
    quantizer.train()
    quantizer(torch.randn(32, 8, 24))
    with torch.no_grad():  # half of the codes fall onto one point, where nothing is
        quantizer.codebook[:16] = quantizer.codebook[0]
        quantizer.sums[:16] = quantizer.sums[0]
        quantizer.counts[:16] = 0
    for _ in range(30):
        quantizer(torch.randn(32, 8, 24))
    quantizer.eval()
    assert len(quantizer(torch.randn(400, 8, 24)).ids.unique()) >= 30


def test_revived_codes_are_the_worst_quantized_vectors(quantizer):
    quantizer.train()
    quantizer(torch.randn(32, 8, 24))
    quantizer.counts[5] = -1e3
    vectors = torch.randn(32, 8, 24)
    z = quantizer.to_code_space(vectors).flatten(0, 1)
    similarity = (z @ quantizer.codebook.T).amax(-1)
    quantizer(vectors)
    assert torch.allclose(quantizer.codebook[5], z[similarity.argmin()], atol=1e-6)


def test_training_starts_from_kmeans_that_fits_better_than_random_codes(quantizer):
    clusters = torch.randn(32, 24)
    vectors = clusters[torch.randint(32, (16, 32))] + 0.01 * torch.randn(16, 32, 24)
    quantizer.eval()
    random = quantizer(vectors).loss
    quantizer.train()
    assert quantizer(vectors).loss < random / 5


def test_evaluation_changes_nothing(quantizer):
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.eval()(torch.randn(8, 8, 24))
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())


def test_autocast_does_not_change_the_ids(quantizer):
    quantizer.eval()
    vectors = torch.randn(64, 8, 24)
    with torch.autocast("cpu", torch.bfloat16):
        low = quantizer(vectors)
    assert torch.equal(low.ids, quantizer(vectors).ids) and low.tokens.dtype == torch.float32


def test_a_revived_code_is_given_time(quantizer):
    quantizer.train()
    cluster = torch.randn(1, 1, 24)
    quantizer(torch.randn(32, 8, 24))
    quantizer.counts[5] = -1e3
    quantizer(torch.randn(32, 8, 24))
    revived = quantizer.codebook[5].clone()
    for _ in range(10):  # nothing falls to it
        quantizer(cluster.expand(32, 8, -1) + 0.001 * torch.randn(32, 8, 24))
    assert torch.allclose(quantizer.codebook[5], revived, atol=1e-4)
