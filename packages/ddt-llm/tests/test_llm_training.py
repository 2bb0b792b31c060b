import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from ddt_llm import OptimizerConfig, collate, token_loss
from ddt_llm.optimizer import build_optimizer
from ddt_llm.training import LanguageModelTraining


def trainer(folder, steps, **settings):
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **settings,
    )


class Loader:
    """Batches in a fixed order, continued in the middle of an epoch."""

    def __init__(self, batches):
        self.batches, self.next = batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        while self.next < len(self.batches):
            self.next += 1
            yield self.batches[self.next - 1]
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def batches(lm, ids):
    captions = ["a red fox", "a bell", "two blue kites", "a yellow bell"]
    examples = [lm.sequences.text_to_image(*pair) for pair in zip(captions, ids, strict=True)]
    return Loader([collate([example], lm.sequences.pad) for example in examples])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, make_lm, ids, optimizer):
    config = OptimizerConfig(steps=6, warmup_steps=2, optimizer=optimizer, schedule="wsd")
    weights = {}
    for name, stops in {"whole": [6], "resumed": [3, 6]}.items():
        checkpoint = None
        for stop in stops:
            lm = make_lm(seed=0)
            lm.model.config.attention_dropout = 0.2
            for layer in lm.model.model.layers:  # dropout makes the step's randomness matter
                layer.self_attn.attention_dropout = 0.2
            run = trainer(tmp_path, stop)
            run.fit(
                LanguageModelTraining(lm.model, config, seed=1),
                batches(lm, ids),
                ckpt_path=checkpoint,
                weights_only=True,
            )
            checkpoint = tmp_path / f"{name}-{stop}.ckpt"
            run.save_checkpoint(checkpoint)
        weights[name] = copy.deepcopy(lm.model.state_dict())
    assert all(torch.equal(weights["resumed"][name], tensor) for name, tensor in weights["whole"].items())


def test_dropout_is_a_function_of_seed_step_and_rank(make_lm):
    module = LanguageModelTraining(make_lm().model, OptimizerConfig(steps=9), seed=5)

    def dropped(step, rank, seed=5):
        module.seed = seed
        module.trainer = SimpleNamespace(accumulate_grad_batches=1, global_step=step, global_rank=rank)
        module.on_train_batch_start({}, batch_idx=step)
        return torch.nn.functional.dropout(torch.ones(256), 0.5).bool()

    first = dropped(3, rank=0)
    assert torch.equal(first, dropped(3, rank=0)) and torch.equal(dropped(3, rank=1), dropped(3, rank=1))
    for other in (dropped(3, rank=1), dropped(4, rank=0), dropped(3, rank=0, seed=6)):
        assert not torch.equal(first, other)
    torch.manual_seed(5 * 1_000_003 + 3)  # a single process has the numbers it always had
    assert torch.equal(first, torch.nn.functional.dropout(torch.ones(256), 0.5).bool())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_gradients_are_clipped_in_bf16(tmp_path, make_lm, ids, optimizer):
    lm = make_lm(seed=0)
    before = lm.model.model.layers[0].mlp.up_proj.weight.detach().clone()
    config = OptimizerConfig(steps=2, warmup_steps=1, optimizer=optimizer)
    run = trainer(tmp_path, 2, precision="bf16-mixed", gradient_clip_val=1.0)
    run.fit(LanguageModelTraining(lm.model, config), batches(lm, ids))
    assert not torch.equal(lm.model.model.layers[0].mlp.up_proj.weight, before)


def test_validation_weights_every_token_alike(tmp_path, make_lm, ids):
    lm = make_lm()
    examples = [lm.sequences.text_to_image("a bell", ids[0]), lm.sequences.text_only("a red fox left of a bell")]
    loader = DataLoader([collate([example], lm.sequences.pad) for example in examples], batch_size=None)
    (metrics,) = trainer(tmp_path, 1).validate(
        LanguageModelTraining(lm.model, OptimizerConfig(steps=1)), loader, verbose=False
    )
    score = lm.score(examples)
    assert metrics["validation_loss"] == pytest.approx(score.mean.item(), rel=1e-5)
    assert metrics["validation_bits_per_text_token"] == pytest.approx(score.bits_per_text_token.item(), rel=1e-5)
    assert metrics["validation_bits_per_visual_token"] == pytest.approx(score.bits_per_visual_token.item(), rel=1e-5)


def test_training_logs_loss_bits_and_rate(tmp_path, make_lm, ids):
    lm, run = make_lm(), trainer(tmp_path, 1)
    run.fit(LanguageModelTraining(lm.model, OptimizerConfig(steps=1, warmup_steps=0, lr=0.25)), batches(lm, ids))
    assert {"loss", "bits_per_text_token", "bits_per_visual_token", "lr"} <= set(run.logged_metrics)
    assert run.logged_metrics["lr"] == 0.25


def test_matrices_decay_and_vectors_do_not(make_lm):
    model = make_lm().model
    optimizer = build_optimizer(model, OptimizerConfig(steps=1, weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    assert all(decay[id(p)] == (0.1 if p.ndim >= 2 else 0.0) for p in model.parameters())


def test_muon_takes_the_matrices_inside_the_layers(make_lm):
    model = make_lm().model
    optimizer = build_optimizer(model, OptimizerConfig(steps=1, optimizer="muon"))
    muon = {id(p) for group in optimizer.muon.param_groups for p in group["params"]}
    adamw = {id(p) for group in optimizer.adamw.param_groups for p in group["params"]}
    layers = {id(p) for p in model.model.layers.parameters() if p.ndim == 2}
    assert muon == layers and adamw == {id(p) for p in model.parameters()} - layers


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_rate_warms_up_stays_positive_and_ends_near_zero(schedule):
    config = OptimizerConfig(steps=100, warmup_steps=10, schedule=schedule, cooldown_share=0.3)
    factors = [config.factor(step) for step in range(100)]
    assert factors[:10] == sorted(factors[:10]) and all(0 < factor <= 1 for factor in factors)
    assert factors[10:] == sorted(factors[10:], reverse=True) and factors[-1] < 0.05
    assert schedule == "cosine" or factors[10:70] == [1.0] * 60
    assert config.factor(100) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "sgd"}, r"optimizer \('sgd'\) must be adamw or muon"),
        ({"schedule": "linear"}, r"schedule \('linear'\) must be cosine or wsd"),
        ({"steps": 0}, "steps"),
        ({"cooldown_share": 2.0}, "cooldown_share"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        OptimizerConfig(**{"steps": 10, **settings})


def test_where_warm_up_and_cool_down_overlap_the_smaller_counts():
    config = OptimizerConfig(steps=10, warmup_steps=10, schedule="wsd", cooldown_share=1.0)
    assert [config.factor(step) for step in (0, 4, 5, 9)] == [0.1, 0.5, 0.5, 0.1]


def test_at_first_only_the_rows_of_visual_tokens_learn(make_lm, ids, train_steps):
    for kept, steps in ((True, 4), (False, 6)):
        lm = make_lm()
        before, text = copy.deepcopy(lm.model.state_dict()), lm.vocabulary.text_size
        config = OptimizerConfig(steps=6, warmup_steps=0, new_rows_steps=4, weight_decay=0.5)
        train_steps(LanguageModelTraining(lm.model, config), list(batches(lm, ids))[:1] * steps)
        table = "model.embed_tokens.weight"
        now = lm.model.state_dict()
        assert not torch.equal(now[table][text:], before[table][text:])
        assert torch.equal(now[table][:text], before[table][:text]) == kept
        rest = [name for name in before if name not in (table, "lm_head.weight")]
        assert all(torch.equal(now[name], before[name]) == kept for name in rest)


def test_text_rows_are_kept_to_the_bit(make_lm, ids, train_steps):
    lm = make_lm()
    before, text = lm.model.get_input_embeddings().weight.detach().clone(), lm.vocabulary.text_size
    config = OptimizerConfig(steps=3, optimizer="muon", weight_decay=0.5)
    train_steps(LanguageModelTraining(lm.model, config, keep_text=True), list(batches(lm, ids))[:3])
    after = lm.model.get_input_embeddings().weight
    assert torch.equal(after[:text], before[:text]) and not torch.equal(after[text:], before[text:])


def test_activation_checkpointing_changes_no_gradient(make_lm, ids):
    found = []
    for checkpointing in (False, True):
        lm = make_lm()
        if checkpointing:
            lm.model.gradient_checkpointing_enable()
        module = LanguageModelTraining(lm.model.train(), OptimizerConfig(steps=1))
        batch = next(iter(batches(lm, ids)))
        token_loss(module.model, module.vocabulary, **batch).mean.backward()
        found.append([parameter.grad for parameter in lm.model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_gathered_gradients_equal_one_large_batch(make_lm, ids, tmp_path):
    weights = []
    for gather in (1, 4):
        lm = make_lm()
        examples = [lm.sequences.text_to_image("a bell", image) for image in ids]
        groups = [examples] if gather == 1 else [[example] for example in examples]
        run = trainer(tmp_path, 1, accumulate_grad_batches=gather)
        loader = DataLoader([collate(group, lm.sequences.pad) for group in groups], batch_size=None)
        run.fit(LanguageModelTraining(lm.model, OptimizerConfig(steps=1, warmup_steps=0)), loader)
        weights.append(lm.model.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-4)
