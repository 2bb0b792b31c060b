"""What watches a run: text retention and throughput."""

import csv
import json
import math

import pytest
import torch

from ddt_llm import OptimizerConfig, collate, collate_packed
from ddt_llm.retention import RetentionGuard
from ddt_llm.throughput import Throughput, matrix_flops, training_flops
from ddt_llm.training import LanguageModelTraining

TEXT = ["a red fox left of a bell", "two blue kites on a green ground", "what colour is the fox?"]


@pytest.fixture
def lm_that_knows_text(make_lm):
    lm = make_lm()
    examples = [lm.sequences.text_only(text) for text in TEXT]
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=3e-3)
    for _ in range(40):
        lm.model.zero_grad()
        loss = lm.model(**{k: v for k, v in collate(examples, 0).items()}).loss
        loss.backward()
        optimizer.step()
    return lm, examples


def test_a_destructive_rate_trips_the_guard_and_a_gentle_one_does_not(lm_that_knows_text, ids, train_steps, tmp_path):
    lm, texts = lm_that_knows_text
    batches = [collate([lm.sequences.image_only(ids[0])], lm.sequences.pad)] * 12
    start = math.exp(lm.score(texts).text_nats / lm.score(texts).text_count)

    def train(lr):
        guard = RetentionGuard(lm, texts, limit=1.5, every=4, file=tmp_path / f"{lr}.json")
        module = LanguageModelTraining(lm.model, OptimizerConfig(steps=12, lr=lr, warmup_steps=0))
        return guard, train_steps(module, batches, callbacks=[guard])

    guard, trainer = train(1e-5)
    assert list(guard.measured) == [0, 4, 8, 12] and guard.measured[0] == pytest.approx(start)
    assert float(trainer.callback_metrics["text_perplexity"]) == pytest.approx(guard.measured[12])
    with pytest.raises(ValueError, match="beyond the limit"):
        train(0.1)
    told = json.loads((tmp_path / "0.1.json").read_text())
    assert [row["step"] for row in told["measured"]] == [0, 4] and told["limit"] == 1.5
    assert lm.model.training  # measuring leaves the mode as it was
    with pytest.raises(ValueError, match="limit"):
        RetentionGuard(lm, texts, limit=1.0, every=4)


def test_a_resumed_run_is_compared_with_its_own_beginning(lm_that_knows_text, ids, train_steps, tmp_path):
    lm, texts = lm_that_knows_text
    batches = [collate([lm.sequences.image_only(ids[0])], lm.sequences.pad)] * 6
    measured = []
    for stop in (3, 6):
        guard = RetentionGuard(lm, texts, limit=9.0, every=2)
        module = LanguageModelTraining(lm.model, OptimizerConfig(steps=6))
        trainer = train_steps(
            module, batches[:stop], callbacks=[guard], ckpt_path=tmp_path / "a" if stop == 6 else None
        )
        trainer.save_checkpoint(tmp_path / "a")
        measured.append(dict(guard.measured))
    assert list(measured[0]) == [0, 2, 3] and list(measured[1])[:3] == [0, 2, 3] and list(measured[1])[-1] == 6
    assert measured[1][0] == measured[0][0]


def test_throughput_counts_tokens_and_operations(make_lm, ids, train_steps, tmp_path):
    lm = make_lm()
    example = lm.sequences.instruction([ids[0], "what is it?"], ["a bell"])
    batch = collate([example, example], lm.sequences.pad)
    file = tmp_path / "throughput.csv"
    module = LanguageModelTraining(lm.model, OptimizerConfig(steps=6))
    trainer = train_steps(module, [batch] * 6, callbacks=[Throughput(file, every=2)])
    assert trainer.global_step == 6
    rows = list(csv.DictReader(file.open()))
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    for row in rows:
        share = float(row["useful_tokens_per_second"]) / float(row["tokens_per_second"])
        trained = int((example.labels != -100).sum())
        assert share == pytest.approx(trained / len(example.labels), rel=1e-2)  # whole tokens a second
        assert 0 < float(row["mfu"]) < 1.2


def test_operations_are_those_that_torch_counts(make_lm, ids):
    """Forward and backward products as counted by torch; attention written out counts what is masked, hence a range."""
    from torch.utils.flop_counter import FlopCounterMode

    from ddt_llm import token_loss

    lm = make_lm(width=64)
    lm.model.set_attn_implementation("eager")
    examples = [lm.sequences.text_to_image("a red fox", image) for image in ids]
    for batch in (collate(examples, 0), collate_packed(examples, 0, row_length=48)):
        with FlopCounterMode(display=False) as counter:
            token_loss(lm.model, lm.vocabulary, **batch).mean.backward()
        assert 0.8 < training_flops(lm.model, **batch) / counter.get_total_flops() < 1.2
    assert matrix_flops(torch.device("cpu"), torch.float32, size=256) > 1e8
