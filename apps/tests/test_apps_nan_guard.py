"""The guard against numbers that are not finite: a run stops before they reach its weights and its codebook."""

import lightning
import pytest
import torch
from torch import nn

from ddt_apps.run.nan_guard import NaNGuard
from ddt_tokenizer import DDTTokenizer, EncoderConfig, QuantizerConfig, TokenizerConfig
from ddt_tokenizer.optimizer import OptimizerConfig
from ddt_tokenizer.training import TokenizerTraining, TrainingConfig


class LinearDecoder(nn.Module):
    """The smallest decoder."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5 * 6, 3 * 8 * 8)

    def loss(self, latents, tokens):
        return (self.out(tokens.flatten(1)).view(-1, 3, 8, 8) - latents).square().mean()


def build(steps=12):
    torch.manual_seed(0)
    encoder = EncoderConfig(patch_size=4, width=32, depth=2, num_heads=2, num_tokens=5)
    quantizer = QuantizerConfig(codebook_size=16, code_width=6)
    tokenizer = DDTTokenizer(TokenizerConfig(image_size=8, encoder=encoder, quantizer=quantizer))
    optimizer = OptimizerConfig(steps=steps, lr=5e-3, warmup_steps=2)
    config = TrainingConfig(continuous_steps=4, optimizer=optimizer)
    return TokenizerTraining(tokenizer, LinearDecoder(), config, seed=3)


def guard(file):
    return NaNGuard(file, lambda trainer: trainer.save_checkpoint(file))


def fit(module, callbacks, steps=12, broken=None, accumulate=1):
    torch.manual_seed(1)
    batches = [torch.rand(4, 3, 8, 8) * 2 - 1 for _ in range(steps * accumulate)]
    if broken is not None:
        batches[broken][0, 0, 0, 0] = torch.nan
    trainer = lightning.Trainer(
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))


@pytest.mark.parametrize("broken", [2, 4, 9])  # before the codebook starts, at its start, and later
def test_a_bad_batch_stops_training_with_the_state_before_it(tmp_path, broken):
    module = build()
    with pytest.raises(ValueError, match=rf"not finite at step {broken}; the state before it is in .*last\.ckpt"):
        fit(module, [guard(tmp_path / "last.ckpt")], broken=broken)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    until = build()
    fit(until, [], steps=broken)
    assert saved["global_step"] == broken
    for name, tensor in until.state_dict().items():
        assert torch.equal(saved["state_dict"][name], tensor), name


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_codebook_is_that_before_the_step_too(tmp_path, accumulate):
    """The batch is fine, the decoder's loss is not: the codebook has moved by then, and must go back."""
    module, until = build(), build()
    calls, loss = [], module.decoder.loss

    def broken(*arguments):
        calls.append(0)
        return loss(*arguments) * (torch.nan if len(calls) == 8 * accumulate else 1.0)

    module.decoder.loss = broken
    with pytest.raises(ValueError, match="not finite at step 7"):
        fit(module, [guard(tmp_path / "last.ckpt")], steps=12, accumulate=accumulate)
    fit(until, [], steps=7, accumulate=accumulate)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert until.tokenizer.quantizer.counts.any()  # quantization has begun
    for name, tensor in until.state_dict().items():
        assert torch.equal(saved[name], tensor), name


def test_the_guard_changes_nothing_where_all_is_finite(tmp_path):
    plain, guarded = build(), build()
    fit(plain, [])
    fit(guarded, [guard(tmp_path / "last.ckpt")])
    assert not (tmp_path / "last.ckpt").exists()
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), guarded.state_dict().values(), strict=True)
    )


def test_the_weight_is_named(tmp_path):
    module = build()
    module.decoder.out.bias.register_hook(lambda grad: grad * torch.nan)
    with pytest.raises(ValueError, match=r"the gradient of decoder\.out\.bias is not finite at step 0"):
        fit(module, [guard(tmp_path / "last.ckpt")])
