"""Two processes keep one codebook: equal to the bit on both, and that of one process on the whole batch."""

import subprocess
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F

from ddt_tokenizer import VectorConfig, VectorQuantizer
from ddt_tokenizer.quantizers.diversity import diversity_loss
from ddt_tokenizer.ranks import averaged, from_first, gathered, num_ranks, rows, summed

STEPS = 20


def train(config, rank, ranks):
    """Train on this rank's share of the same batches; part of the codebook dies on the way."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(12, config, num_tokens=4).train()
    data = torch.Generator().manual_seed(1)
    losses = []
    for step in range(STEPS):
        batch = torch.randn(32, 4, 12, generator=data)
        if step == 10:
            quantizer.counts[:20] = 0
        torch.manual_seed(step)  # what is drawn is the first rank's, on whatever state the others are
        torch.rand(rank)
        losses.append(quantizer(batch.chunk(ranks)[rank]).loss)
    return {**quantizer.state_dict(), "loss": torch.stack(losses), "revived": torch.tensor(quantizer.revived)}


CONFIGS = {
    kind: VectorConfig(codebook_size=64, code_width=12, replacement=kind) for kind in ("worst", "random", "position")
}
CONFIGS["rate"] = VectorConfig(codebook_size=64, code_width=12, rate=0.01)


def diversity_gradient(rank, ranks):
    """Of the term with respect to a weight before it."""
    torch.manual_seed(0)
    weight, vectors = torch.randn(6, 6, requires_grad=True), torch.randn(32, 5, 6)
    codebook = F.normalize(torch.randn(16, 6), dim=-1)
    z = F.normalize(vectors.chunk(ranks)[rank] @ weight, dim=-1)
    histogram = torch.zeros(5, 16)
    histogram[:, 0] = 1.0  # one code is used, so the term is on
    diversity_loss(z, codebook, histogram).backward()
    return weight.grad


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    own = torch.arange(6.0).view(3, 2) + 10 * rank
    assert num_ranks() == 2 and torch.equal(summed(torch.tensor([rank + 1.0])), torch.tensor([3.0]))
    everyone = gathered(own)
    picks = torch.tensor([5, 0, 3, 3])
    assert everyone.shape == (6, 2) and torch.equal(rows(own, picks), everyone[picks])
    assert from_first(torch.tensor([rank])) == 0
    assert torch.equal(averaged(own), torch.arange(6.0).view(3, 2) + 5)
    for kind, config in CONFIGS.items():
        torch.save(train(config, rank, 2), f"{folder}/{kind}{rank}.pt")
    torch.save(diversity_gradient(rank, 2), f"{folder}/gradient{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_keep_one_codebook(tmp_path):
    # This file run as a program: pytest's name for this module means nothing to a process of its own.
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [process.wait() for process in processes] == [0, 0]
    for kind, config in CONFIGS.items():
        first, second = (torch.load(tmp_path / f"{kind}{rank}.pt", weights_only=True) for rank in (0, 1))
        alone = train(config, 0, 1)
        assert alone["revived"] >= 20
        for name, tensor in alone.items():
            if name == "loss":
                assert torch.allclose((first[name] + second[name]) / 2, tensor, atol=1e-5)
            else:
                assert torch.equal(first[name], second[name]), (kind, name)
                assert torch.allclose(first[name].double(), tensor.double(), atol=1e-5), (kind, name)
    gradients = [torch.load(tmp_path / f"gradient{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone = diversity_gradient(0, 1)
    assert alone.abs().max() > 1e-4 and torch.allclose(sum(gradients) / 2, alone, atol=1e-6)


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
