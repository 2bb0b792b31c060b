"""Joint training: it learns, it resumes exactly, and its optimizer agrees with torch's."""

from dataclasses import replace

import lightning
import pytest
import torch
from torch import nn

from ddt_tokenizer import DDTTokenizer, EncoderConfig, TokenizerConfig, VectorConfig
from ddt_tokenizer.optimizer import OptimizerConfig, build_optimizer
from ddt_tokenizer.training import TokenizerTraining, TrainingConfig


class LinearDecoder(nn.Module):
    """The smallest decoder: one matrix from all tokens to all pixels."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5 * 6, 3 * 8 * 8)

    def loss(self, latents, tokens):
        return (self.out(tokens.flatten(1)).view_as(latents) - latents).square().mean()


def build(steps, kind="muon"):
    torch.manual_seed(0)
    encoder = EncoderConfig(patch_size=4, width=32, depth=2, num_heads=2, num_tokens=5)
    tokenizer = DDTTokenizer(
        TokenizerConfig(image_size=8, encoder=encoder, quantizer=VectorConfig(codebook_size=16, code_width=6))
    )
    config = TrainingConfig(
        continuous_steps=4, optimizer=OptimizerConfig(steps=steps, lr=5e-3, optimizer=kind, warmup_steps=2)
    )
    return TokenizerTraining(tokenizer, LinearDecoder(), config, seed=3)


def fit(module, batches, steps, **settings):
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, batches, **settings)
    return trainer


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_reconstruction_improves(kind):
    torch.manual_seed(1)
    images = [torch.rand(4, 3, 1, 1).expand(-1, -1, 8, 8) * 2 - 1 for _ in range(3)]
    module = build(90, kind)
    first = module.decoder.loss(images[0], module.tokenizer(images[0]).tokens).item()
    fit(module, Batches([images[i % 3] for i in range(90)]), 90)
    module.eval()
    assert module.decoder.loss(images[0], module.tokenizer(images[0]).tokens).item() < first / 4


class Batches:
    """A loader that can start in the middle, as Lightning asks of one: sized, with a state."""

    def __init__(self, batches):
        self.batches, self.start = batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        while self.start < len(self.batches):
            self.start += 1
            yield self.batches[self.start - 1]

    def state_dict(self):
        return {"start": self.start}

    def load_state_dict(self, state):
        self.start = state["start"]


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, kind):
    torch.manual_seed(2)
    data = [torch.rand(4, 3, 8, 8) * 2 - 1 for _ in range(12)]
    whole = build(12, kind)
    fit(whole, Batches(data), 12)

    first = build(12, kind)
    fit(first, Batches(data), 7).save_checkpoint(tmp_path / "half.ckpt")
    second = build(12, kind)
    torch.rand(99)  # the global random state is another
    fit(second, Batches(data), 12, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for (name, a), b in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_every_weight_is_optimised_once():
    module = build(2)
    optimizer = build_optimizer(module.named_parameters(), module.config.optimizer)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in module.parameters())


def test_learning_rate_warms_up_and_cools_down():
    config = OptimizerConfig(steps=100, warmup_steps=10, cooldown_share=0.5)
    factors = [config.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == 1 and factors[40] == 1
    assert factors[99] == pytest.approx(0.02)


def test_nesting_begins_after_the_whole_steps_also_when_resumed(tmp_path):
    class Told(LinearDecoder):
        def loss(self, latents, tokens, nested=True):
            told.append(nested)
            return super().loss(latents, tokens)

    def module():
        built = build(6)
        built.decoder, built.config = Told(), replace(built.config, whole_steps=4)
        return built

    data, told = [torch.rand(4, 3, 8, 8) * 2 - 1 for _ in range(6)], []
    fit(module(), Batches(data), 3).save_checkpoint(tmp_path / "half.ckpt")
    fit(module(), Batches(data), 6, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert told == [False] * 4 + [True] * 2
