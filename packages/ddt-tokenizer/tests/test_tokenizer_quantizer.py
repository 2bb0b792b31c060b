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


def in_ball(**settings):
    torch.manual_seed(0)
    return VectorQuantizer(24, VectorConfig(codebook_size=32, code_width=6, space="ball", **settings))


@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_in_a_ball_ids_are_those_of_the_cheapest_entry(rate):
    quantizer = in_ball(rate=rate).train()
    quantizer(torch.randn(64, 8, 24))
    quantizer.eval()
    vectors = torch.randn(4, 8, 24) * torch.rand(4, 8, 1)
    z = quantizer.to_code_space(vectors)
    assert (z.norm(dim=-1) < 1).all() and z.norm(dim=-1).std() > 0.05
    shares = (quantizer.counts + 0.2 * quantizer.counts.mean()).log()
    cost = (z[:, :, None] - quantizer.codebook).square().sum(-1) / 2 - rate * shares
    assert torch.equal(quantizer(vectors).ids, cost.argmin(-1))


def test_in_a_ball_entries_are_means_and_short_tokens_stay_short():
    quantizer = in_ball(decay=0.0, dead_share=0.0).train()
    vectors = torch.randn(64, 8, 24) * torch.rand(64, 8, 1)
    quantizer(vectors)
    z = quantizer.to_code_space(vectors)
    before = quantizer.lookup(z)
    quantizer(vectors)
    for entry in before.unique():
        torch.testing.assert_close(quantizer.codebook[entry], z[before == entry].mean(0))
    lengths = quantizer.codebook.norm(dim=-1)
    assert torch.allclose(quantizer.embed(torch.arange(32)).norm(dim=-1), 6**0.5 * lengths)


def test_sparsity_keeps_short_what_is_of_no_use_and_a_rate_writes_it_in_one_word():
    """Of four tokens the first two are drawn from."""
    found = []
    for sparsity in (0.0, 0.2):
        torch.manual_seed(0)
        config = VectorConfig(codebook_size=32, code_width=4, space="ball", sparsity=sparsity, rate=0.01)
        quantizer, mix = VectorQuantizer(8, config), torch.nn.Parameter(torch.randn(4, 8, 8) / 3)
        optimizer = torch.optim.Adam([*quantizer.parameters(), mix], lr=1e-2)
        for _ in range(400):
            x = torch.randn(64, 4, 8)
            tokens, _, loss = quantizer.train()(torch.einsum("bki,kij->bkj", x, mix))
            loss = loss + (tokens[:, :2] - x[:, :2, :4]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ids = quantizer.eval()(torch.einsum("bki,kij->bkj", torch.randn(256, 4, 8), mix)).ids
        found.append([column.unique().numel() for column in ids.unbind(1)])
    assert min(found[0][:2]) > 20 and min(found[0][2:]) > 1
    assert min(found[1][:2]) > 20 and found[1][2:] == [1, 1]


def test_while_not_quantized_noise_is_added_in_training_alone():
    quantizer, vectors = in_ball(noise=0.1), torch.randn(500, 8, 24)
    with torch.no_grad():
        plain = quantizer.eval().continuous(vectors)
        noisy = quantizer.train().continuous(vectors)
    assert torch.equal(plain, quantizer.normalise(quantizer.to_code_space(vectors)))
    assert abs(float((noisy - plain).std()) / 6**0.5 - 0.1) < 0.005


def test_sparsity_needs_a_ball():
    with pytest.raises(ValueError, match=r"sparsity \(0.1\) needs .*space=ball"):
        VectorConfig(sparsity=0.1)
