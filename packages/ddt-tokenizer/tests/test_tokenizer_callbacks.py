"""What watches training: pictures, codebook health, and what "after step n" means."""

import json
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch import nn

from ddt_tokenizer import DDTTokenizer, EncoderConfig, TokenizerConfig, VectorConfig
from ddt_tokenizer.callbacks import HealthMonitor, ImageGrid
from ddt_tokenizer.every_steps import EverySteps
from ddt_tokenizer.health import codebook_health
from ddt_tokenizer.optimizer import OptimizerConfig
from ddt_tokenizer.training import TokenizerTraining, TrainingConfig


class LinearDecoder(nn.Module):
    """The smallest decoder that can also draw."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5 * 6, 3 * 8 * 8)

    def decode(self, tokens):
        return self.out(tokens.flatten(1)).view(-1, 3, 8, 8)

    def loss(self, latents, tokens):
        return (self.decode(tokens) - latents).square().mean()


def build(steps=12, **settings):
    torch.manual_seed(0)
    encoder = EncoderConfig(patch_size=4, width=32, depth=2, num_heads=2, num_tokens=5)
    tokenizer = DDTTokenizer(
        TokenizerConfig(image_size=8, encoder=encoder, quantizer=VectorConfig(codebook_size=16, code_width=6))
    )
    optimizer = OptimizerConfig(steps=steps, lr=5e-3, warmup_steps=2)
    return TokenizerTraining(
        tokenizer, LinearDecoder(), TrainingConfig(continuous_steps=4, optimizer=optimizer, **settings), seed=3
    )


def fit(module, callbacks, steps=12, logger=False, accumulate=1):
    torch.manual_seed(1)
    batches = [torch.rand(4, 3, 8, 8) * 2 - 1 for _ in range(steps * accumulate)]
    trainer = lightning.Trainer(
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=logger,
        callbacks=callbacks,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_pictures_are_drawn_and_training_is_not_disturbed(tmp_path, ema):
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    module, plain = build(ema_decay=ema), build(ema_decay=ema)
    logger = TensorBoardLogger(tmp_path / "board")
    fit(module, [ImageGrid(images, tmp_path / "samples", every=4)], logger=logger)
    fit(plain, [])
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == [f"{n:08d}.png" for n in (4, 8, 12)]
    picture = np.asarray(Image.open(tmp_path / "samples" / "00000012.png"))
    assert picture.shape == (16, 24, 3)
    assert np.abs(picture[:8, 8:16] / 127.5 - 1 - images[1].permute(1, 2, 0).numpy()).max() < 0.01
    tokenizer, decoder = module.tokenizer.eval(), module.average.module if ema else module.decoder
    drawn = decoder.decode(tokenizer.embed(tokenizer.encode(images))).clamp(-1, 1)
    assert np.abs(picture[8:, :8] / 127.5 - 1 - drawn[0].detach().permute(1, 2, 0).numpy()).max() < 0.01
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    assert list((tmp_path / "board").rglob("events*"))


def test_drawing_leaves_each_part_in_the_mode_it_has(tmp_path):
    class Evaluated(ImageGrid):
        def on_train_start(self, trainer, module):
            super().on_train_start(trainer, module)
            module.decoder.out.eval()

        def on_train_batch_end(self, trainer, module, *rest):
            before = {name: part.training for name, part in module.named_modules()}
            super().on_train_batch_end(trainer, module, *rest)
            assert before == {name: part.training for name, part in module.named_modules()}
            assert module.decoder.training and not module.decoder.out.training

    fit(build(), [Evaluated(torch.zeros(2, 3, 8, 8), tmp_path, every=2)], steps=4)
    assert len(list(tmp_path.iterdir())) == 2


def test_health_is_logged_and_saved(tmp_path):
    fit(build(), [HealthMonitor(tmp_path / "health.json", every=3)], logger=CSVLogger(tmp_path))
    saved = json.loads((tmp_path / "health.json").read_text())
    assert saved["images"] == 8 * 4 and len(saved["position_bits"]) == 5
    header = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0]
    assert "codes/usage" in header and "commitment" in header


def test_positions_that_tell_nothing_are_an_alarm(tmp_path, caplog):
    class Silent(HealthMonitor):
        def on_train_batch_end(self, trainer, module, outputs, *others):
            if "ids" in outputs:
                varied = torch.randint(16, outputs["ids"].shape)
                varied[:, [0, 3]] = 7 if trainer.global_step < 10 else varied[:, [0, 3]]
                outputs = {"ids": varied}
            super().on_train_batch_end(trainer, module, outputs, *others)

    fit(build(), [Silent(tmp_path / "health.json", every=3, recent=2)], logger=CSVLogger(tmp_path))
    told = [record.getMessage() for record in caplog.records if record.name == "ddt_tokenizer.callbacks"]
    assert len(told) == 2 and "step 6: 2 of 5 positions" in told[0] and ": 0, 3. " in told[0]
    assert told[1].startswith("step 12: all 5 positions")
    monitor, again = HealthMonitor(None, 3), HealthMonitor(None, 3)
    monitor.dead = [0, 3]
    again.load_state_dict(monitor.state_dict())
    assert again.dead == [0, 3]  # a run that goes on does not say it twice
    rows = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    column = rows[0].split(",").index("codes/dead_positions")
    said = [row.split(",")[column] for row in rows[1:]]  # each until the next is measured
    assert list(dict.fromkeys(filter(None, said))) == ["2.0", "0.0"]


def test_health_says_what_is_dead_and_how_positions_differ(tmp_path):
    ids = torch.stack([torch.zeros(64, dtype=torch.long), torch.arange(64) % 8], dim=1)
    health = codebook_health(ids, torch.eye(16), revived=3)
    assert health.dead_codes == 8 and health.revived == 3 and health.images == 64
    assert health.position_bits == pytest.approx((0, 3)) and health.position_perplexity == pytest.approx((1, 8))
    assert health.perplexity_per_position == pytest.approx(4.5)
    assert "8 dead, 3 revived" in str(health)
    health.save(tmp_path / "health.json")
    assert json.loads((tmp_path / "health.json").read_text())["dead_codes"] == 8
    with pytest.raises(ValueError, match="no ids"):
        codebook_health(torch.zeros(0, 4, dtype=torch.long), torch.eye(16))


def test_a_step_of_several_batches_is_watched_once(tmp_path):
    drawn = []
    grid = ImageGrid(
        torch.zeros(2, 3, 8, 8), tmp_path, 3, lambda decoder, tokens: drawn.append(1) or torch.zeros(2, 3, 8, 8)
    )
    monitor = HealthMonitor(tmp_path / "health.json", 3, recent=8)
    fit(build(), [grid, monitor], steps=6, accumulate=4)
    assert len(drawn) == 2 and sorted(path.name for path in tmp_path.glob("*.png")) == ["00000003.png", "00000006.png"]
    assert len(monitor.ids) == 8


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    ("every", "or_last", "expected"), [(3, False, [3, 6]), (3, True, [3, 6, 7]), (1, False, range(1, 8))]
)
def test_after_step_n_is_once_and_when_it_has_ended(accumulate, every, or_last, expected):
    class Watch(EverySteps):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if self.due(trainer, or_last):
                seen.append((trainer.global_step, batch_idx + 1))

    seen, watch = [], Watch()
    watch.every = every
    fit(build(steps=7), [watch], steps=7, accumulate=accumulate)
    assert seen == [(step, step * accumulate) for step in expected]


def test_a_run_that_goes_on_after_step_n_does_not_act_for_it_again():
    watch, trainer = EverySteps(), SimpleNamespace(global_step=6, max_steps=6)
    watch.every = 3
    watch.on_train_start(trainer, None)
    assert not watch.due(trainer) and not watch.due(trainer, or_last=True)
