"""Rates by name, frozen parts and the moving average."""

import lightning
import pytest
import torch
from torch import nn

from ddt_tokenizer import DDTTokenizer, EncoderConfig, TokenizerConfig, VectorConfig
from ddt_tokenizer.callbacks import ImageGrid
from ddt_tokenizer.muon import MuonAdamW
from ddt_tokenizer.optimizer import OptimizerConfig, build_optimizer
from ddt_tokenizer.training import TokenizerTraining, TrainingConfig


class Decoder(nn.Module):
    """Two blocks, so that names look like a decoder's."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"x": nn.Linear(30, 30), "c": nn.Linear(30, 30)}) for _ in range(2))
        self.out = nn.Linear(30, 192)

    def loss(self, latents, tokens):
        x = tokens.flatten(1)
        for block in self.blocks:
            x = block["x"](x) + block["c"](x)
        return (self.out(x).view_as(latents) - latents).square().mean()


def build(steps=8, kind="muon", rates=None, rate=0.0, **settings):
    torch.manual_seed(0)
    encoder = EncoderConfig(patch_size=4, width=32, depth=2, num_heads=2, num_tokens=5)
    tokenizer = DDTTokenizer(
        TokenizerConfig(
            image_size=8, encoder=encoder, quantizer=VectorConfig(codebook_size=16, code_width=6, rate=rate)
        )
    )
    tokenizer.train()(torch.rand(8, 3, 8, 8))  # starts the codebook
    optimizer = OptimizerConfig(
        steps=steps, lr=5e-3, optimizer=kind, warmup_steps=1, cooldown_share=0.0, rates=rates or {}
    )
    return TokenizerTraining(
        tokenizer, Decoder(), TrainingConfig(continuous_steps=0, optimizer=optimizer, **settings), seed=3
    )


def fit(module, steps=8, **settings):
    torch.manual_seed(1)
    batches = [torch.rand(4, 3, 8, 8) * 2 - 1 for _ in range(steps)]
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", **quiet | settings)
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return trainer


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_each_weight_gets_the_rate_of_the_first_pattern_that_fits(kind):
    rates = {"decoder.blocks.*.x.*": 1e-5, "decoder.*": 5e-5, "tokenizer.quantizer.*": 1e-3}
    module = build(kind=kind, rates=rates)
    optimizer = build_optimizer(module.named_parameters(), module.config.optimizer)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: found.pop(id(p)) for name, p in module.named_parameters()}
    assert not found
    assert names["decoder.blocks.1.x.weight"] == 1e-5 and names["decoder.blocks.0.x.bias"] == 1e-5
    assert names["decoder.blocks.1.c.weight"] == 5e-5 and names["decoder.out.bias"] == 5e-5
    assert names["tokenizer.quantizer.project.weight"] == 1e-3 and names["tokenizer.encoder.queries"] == 5e-3
    assert isinstance(optimizer, MuonAdamW) == (kind == "muon")


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_rate_of_zero_holds_weights_still(kind):
    module = build(kind=kind, rates={"decoder.blocks.0.*": 0.0})
    before = {name: p.clone() for name, p in module.named_parameters()}
    fit(module)
    still = {name for name, p in module.named_parameters() if torch.equal(before[name], p)}
    unread = "tokenizer.encoder.blocks.1.q_norm.0.weight"  # the image asks nothing in the last block
    assert still - {unread} == {name for name in before if name.startswith("decoder.blocks.0.")}


@pytest.mark.parametrize("rate", [0.0, 0.01])
@pytest.mark.parametrize("freeze", ["encoder", "codebook", "tokenizer"])
def test_what_is_frozen_stays_and_the_rest_learns(freeze, rate):
    module = build(freeze=freeze, rate=rate)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    images, ids = torch.rand(5, 3, 8, 8) * 2 - 1, torch.arange(16)
    written, vectors = module.tokenizer.encode(images), module.tokenizer.embed(ids)
    fit(module)
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(before[name], tensor)}
    assert all(f"decoder.{name}" in changed for name in ("out.weight", "blocks.0.x.weight"))
    encoder = {"tokenizer.encoder.queries", "tokenizer.quantizer.project.weight"}
    codebook = {f"tokenizer.quantizer.{name}" for name in ("codebook", "counts", "sums")}
    assert (encoder <= changed) == (freeze == "codebook") and (codebook <= changed) == (freeze == "encoder")
    assert not (encoder & changed and freeze != "codebook") and not (codebook & changed and freeze != "encoder")
    assert torch.equal(module.tokenizer.embed(ids), vectors) == (freeze != "encoder")
    if freeze == "tokenizer":
        assert torch.equal(module.tokenizer.encode(images), written)


def test_the_average_follows_the_decoder_and_is_kept_in_checkpoints(tmp_path):
    module = build(ema_decay=0.5, kind="adamw")
    states = []

    class Keep(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            states.append(module.decoder.out.weight.detach().clone())

    trainer = fit(module, callbacks=[Keep()])
    expected = states[0]
    for state in states[1:]:
        expected = 0.5 * expected + 0.5 * state
    assert torch.allclose(module.average.module.out.weight, expected, atol=1e-6)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(saved["average.module.out.weight"], module.average.module.out.weight)
    assert not any(p.requires_grad for p in module.average.parameters())


def test_bf16_trains(tmp_path):
    module, exact = build(ema_decay=0.9), build(ema_decay=0.9)
    fit(module, steps=3, precision="bf16-mixed")
    fit(exact, steps=3)
    for name, tensor in module.named_parameters():
        assert torch.allclose(tensor, exact.state_dict()[name], atol=0.03), name
    assert not torch.equal(module.decoder.out.weight, exact.decoder.out.weight)
    assert module.tokenizer.quantizer.codebook.dtype == torch.float32


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_gradients_are_clipped_in_bf16(kind):
    module = build(kind=kind)
    before = module.decoder.out.weight.detach().clone()
    fit(module, steps=2, precision="bf16-mixed", gradient_clip_val=1e-3)
    assert not torch.equal(module.decoder.out.weight, before)


def test_a_frozen_codebook_stays_while_pictures_are_drawn(tmp_path):
    module = build(freeze="codebook")
    before = module.tokenizer.quantizer.codebook.clone()
    grid = ImageGrid(torch.zeros(2, 3, 8, 8), tmp_path, 2, lambda decoder, tokens: torch.zeros(2, 3, 8, 8))
    fit(module, callbacks=[grid])
    assert torch.equal(module.tokenizer.quantizer.codebook, before) and module.tokenizer.encoder.training
    assert len(list(tmp_path.iterdir())) == 4


def test_the_batches_of_one_step_draw_different_noise():
    module, drawn = build(), []
    loss = module.decoder.loss
    module.decoder.loss = lambda *inputs: (drawn.append(float(torch.rand(()))), loss(*inputs))[1]
    fit(module, accumulate_grad_batches=4)
    assert len(drawn) == len(set(drawn)) == 32


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (EncoderConfig, "attention", "oneway"),
        (EncoderConfig, "query_position", "adaLN"),
        (EncoderConfig, "mode", "query"),
        (VectorConfig, "replacement", "positions"),
        (TrainingConfig, "freeze", "encoders"),
        (OptimizerConfig, "optimizer", "sgd"),
    ],
)
def test_a_word_that_is_no_choice_is_named(kind, setting, value):
    with pytest.raises(ValueError, match=rf"{setting} \('{value}'\) must be \w+ or "):
        kind(**{setting: value})


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"continuous_steps \(100\) must be 0 with freeze=encoder"):
        TrainingConfig(freeze="encoder")
    with pytest.raises(ValueError, match=r"ema_decay \(1\.0\)"):
        TrainingConfig(ema_decay=1.0)
    with pytest.raises(ValueError, match="fits no weight"):
        build_optimizer(Decoder().named_parameters(), OptimizerConfig(rates={"encoder.*": 1e-4}))
    with pytest.raises(ValueError, match="set optimizer=adamw"):
        build_optimizer(nn.Linear(2, 2).named_parameters(), OptimizerConfig())
