"""Finite scalar and lookup-free quantization against vector-quantize-pytorch and slow obvious versions."""

import pytest
import torch
from vector_quantize_pytorch import FSQ, LFQ

from ddt_tokenizer import BinaryConfig, DDTTokenizer, EncoderConfig, ScalarConfig, TokenizerConfig
from ddt_tokenizer.quantizers.binary import BinaryQuantizer
from ddt_tokenizer.quantizers.scalar import ScalarQuantizer


def identity(quantizer):
    torch.nn.init.eye_(quantizer.project.weight)
    torch.nn.init.zeros_(quantizer.project.bias)
    return quantizer


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (4, 4, 4), (7, 3)])
def test_fsq_equals_vector_quantize_pytorch(levels):
    size = torch.tensor(levels).prod().item()
    ours = identity(ScalarQuantizer(len(levels), ScalarConfig(levels=levels)))
    theirs = FSQ(list(levels))
    vectors = (3 * torch.randn(64, 40, len(levels))).requires_grad_()
    tokens, ids, loss = ours(vectors)
    their_tokens, their_ids = theirs(vectors)
    assert torch.equal(ids, their_ids.long()) and len(ids.unique()) > size / 2 and loss == 0
    assert torch.allclose(tokens, their_tokens, atol=1e-6)
    weights = torch.randn_like(tokens)
    (mine,) = torch.autograd.grad((tokens * weights).sum(), vectors, retain_graph=True)
    (other,) = torch.autograd.grad((their_tokens * weights).sum(), vectors)
    assert torch.allclose(mine, other, atol=1e-5)
    assert torch.allclose(ours.codebook, theirs.implicit_codebook, atol=1e-6)


def test_lfq_equals_vector_quantize_pytorch():
    ours = identity(BinaryQuantizer(6, BinaryConfig(code_width=6, commitment=0.25)))
    theirs = LFQ(codebook_size=64, dim=6, commitment_loss_weight=0.25, entropy_loss_weight=0.0).train()
    vectors = torch.randn(16, 10, 6)
    tokens, ids, loss = ours(vectors)
    their_tokens, their_ids, their_loss = theirs(vectors)
    assert torch.equal(ids, their_ids.long()) and torch.allclose(tokens, their_tokens, atol=1e-6)
    assert torch.allclose(loss, their_loss, atol=1e-6) and torch.equal(ours.codebook, theirs.codebook)


def test_entropies_of_lfq_are_those_over_all_codes():
    torch.manual_seed(0)
    quantizer = BinaryQuantizer(6, BinaryConfig(code_width=6, diversity=0.1))
    z = torch.randn(16, 10, 6)
    over_codes = (2 * z @ quantizer.codebook.T).softmax(-1).flatten(0, 1)
    assert torch.allclose(quantizer.entropy_of_each(z), torch.special.entr(over_codes).sum(-1).mean(), atol=1e-5)
    exact = torch.special.entr(over_codes.mean(0)).sum()
    assert exact - 1e-5 <= quantizer.entropy_of_all(z) < 6 * 0.6932  # an upper bound, below the highest


@pytest.mark.parametrize(
    "config",
    [ScalarConfig(levels=(5, 4, 3)), BinaryConfig(code_width=6, diversity=0.1)],
    ids=["fsq", "lfq"],
)
def test_any_kind_makes_a_tokenizer(config, tmp_path):
    torch.manual_seed(0)
    encoder = EncoderConfig(patch_size=4, width=32, depth=2, num_heads=2, num_tokens=5)
    tokenizer = DDTTokenizer(TokenizerConfig(image_size=16, encoder=encoder, quantizer=config)).eval()
    images = torch.rand(7, 3, 16, 16) * 2 - 1
    ids = tokenizer.encode(images)
    assert ids.shape == (7, 5) and ids.dtype == torch.int64 and 0 <= ids.min() <= ids.max() < config.codebook_size
    assert torch.allclose(tokenizer.embed(ids), tokenizer(images).tokens, atol=1e-6)
    assert torch.equal(tokenizer.quantizer.codebook[ids], tokenizer.embed(ids))
    every = torch.arange(config.codebook_size)
    z = tokenizer.embed(every)
    z = z * (torch.tensor(config.levels) // 2) if config.kind == "fsq" else z
    assert torch.equal(tokenizer.quantizer.lookup(z), every)
    tokenizer.save_pretrained(tmp_path)
    loaded = DDTTokenizer.from_pretrained(tmp_path)
    assert loaded.config == tokenizer.config and torch.equal(loaded.encode(images), ids)
    assert tokenizer.quantizer.continuous(tokenizer.encoder(images)).shape == (7, 5, config.code_width)
