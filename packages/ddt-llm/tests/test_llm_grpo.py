"""GRPO: what is compared, the gradient, the distribution that is learned, and runs that learn, stop and go on."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from ddt_llm import OptimizerConfig, generation
from ddt_llm.grpo import GRPOTraining, advantages, divergence, surrogate, visual_distribution
from ddt_llm.grpo_config import GRPOConfig

PROMPTS = ["a red fox", "a bell", "two blue kites", "a yellow bell"]


def low(images, ids, prompts):
    """The share of ids in the first half of the codebook."""
    assert images is None and len(ids) == len(prompts)
    return (ids < 8).float().mean(1)


def module(lm, steps, reward=low, lr=3e-3, **grpo):
    config = OptimizerConfig(steps=steps, warmup_steps=1, lr=lr, optimizer="adamw", schedule="wsd")
    return GRPOTraining(lm, config, grpo=GRPOConfig(**{"group": 4, **grpo}), reward=reward)


def fit(folder, training, steps, stop=None, path=None):
    trainer = Trainer(
        accelerator="cpu",
        max_steps=stop or steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    seen = trainer.fit_loop.epoch_loop.batch_progress
    batches = [PROMPTS[i % 2 :][:2] for i in range(steps)]

    class Loader(DataLoader):
        def __iter__(self):
            yield from batches[seen.current.ready :]

    trainer.fit(training, Loader(batches, batch_size=None), ckpt_path=path, weights_only=True)
    return trainer


def test_answers_are_compared_with_their_group_alone():
    rewards = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    found = advantages(rewards)
    torch.testing.assert_close(found.mean(1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.std(1, correction=0), torch.ones(5))
    torch.testing.assert_close(advantages(3 * rewards + torch.rand(5, 1)), found)
    assert (advantages(torch.full((2, 4), 0.3)) == 0).all()
    torch.testing.assert_close(advantages(rewards, "none"), rewards - rewards.mean(1, keepdim=True))


@pytest.mark.parametrize("gain", [1.5, -0.7])
def test_the_gradient_is_that_of_finite_differences(gain):
    """Two tokens of three codes each, drawn by another model than is trained."""
    config, generator = GRPOConfig(), torch.Generator().manual_seed(1)
    weights = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    old = (weights + 0.25 * torch.randn(2, 3, generator=generator, dtype=torch.float64)).log_softmax(-1)
    reference = torch.randn(2, 3, generator=generator, dtype=torch.float64).log_softmax(-1)
    drawn = torch.tensor([[0], [2]])

    def objective(weights):
        new, before, first = (logs.gather(-1, drawn).T for logs in (weights.log_softmax(-1), old, reference))
        value = surrogate(new, before, torch.tensor([gain], dtype=torch.float64), config)
        return (config.kl * divergence(new, first) - value).mean()

    variable = weights.clone().requires_grad_()
    objective(variable).backward()
    for index in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[index] = 1e-6
        slope = (objective(weights + step.view(2, 3)) - objective(weights - step.view(2, 3))) / 2e-6
        assert float(variable.grad.flatten()[index]) == pytest.approx(float(slope), abs=1e-7)


def test_a_ratio_beyond_its_bounds_earns_no_more():
    config = GRPOConfig(clip_low=0.2, clip_high=0.3)
    old, new = torch.zeros(2, 1), torch.log(torch.tensor([[2.0], [0.5]]))
    assert surrogate(new, old, torch.ones(2), config).flatten().tolist() == pytest.approx([1.3, 0.5])
    assert surrogate(new, old, -torch.ones(2), config).flatten().tolist() == pytest.approx([-2.0, -0.8])


def test_the_divergence_is_estimated_without_bias_and_never_below_zero():
    generator = torch.Generator().manual_seed(0)
    new, reference = (torch.randn(6, generator=generator).log_softmax(-1) for _ in range(2))
    drawn = new.exp().multinomial(200_000, replacement=True, generator=generator)
    found = divergence(new[drawn], reference[drawn])
    assert found.min() >= 0
    torch.testing.assert_close(found.mean(), (new.exp() * (new - reference)).sum(), rtol=0.02, atol=0)


@pytest.mark.parametrize("guidance", [1.0, 1.5, 0.0])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("template", ["caption", "instruction"])
def test_probabilities_are_those_by_which_answers_were_drawn(make_lm, monkeypatch, guidance, temperature, template):
    lm, used = make_lm(template), []
    draw = generation.sample

    def spying(logits, uniform, choice):
        used.append((logits / choice.temperature).log_softmax(-1))
        return draw(logits, uniform, choice)

    monkeypatch.setattr(generation, "sample", spying)
    settings = {"guidance_scale": guidance, "temperature": temperature}
    answers = lm.generate_batch(PROMPTS[:3], output="image", seed=4, **settings)  # of different lengths
    ids = torch.cat([answer.ids for answer in answers])
    with torch.no_grad():
        found = visual_distribution(lm, PROMPTS[:3], ids, guidance, temperature)
    torch.testing.assert_close(found, torch.stack(used, dim=1), rtol=1e-4, atol=1e-5)


def test_on_the_policy_itself_every_ratio_is_one(make_lm, tmp_path):
    training = module(make_lm(), 3, guidance=1.5, temperature=0.8)
    ratios, original = [], training.log_probabilities

    def watching(lm, drawn, grad=True):
        found = original(lm, drawn, grad)
        if grad:
            ratios.append((found[0].detach() - drawn.get("old", found[0].detach())).exp())
        return found

    training.log_probabilities = watching
    fit(tmp_path, training, 3)
    assert len(ratios) == 3 and all((ratio == 1).all() for ratio in ratios)


def test_rewards_rise_and_with_shuffled_ones_nothing_does(make_lm, tmp_path):
    generator, found = torch.Generator().manual_seed(0), {}

    def shuffled(images, ids, prompts):
        return low(images, ids, prompts)[torch.randperm(len(ids), generator=generator)]

    for name, reward in {"true": low, "shuffled": shuffled}.items():
        lm = make_lm()
        fit(tmp_path, module(lm, 40, reward, group=8), 40)
        ids = torch.cat([each.ids for each in lm.generate_batch(PROMPTS * 8, output="image", seed=999)])
        found[name] = float(low(None, ids, PROMPTS * 8).mean())
    before = torch.cat([each.ids for each in make_lm().generate_batch(PROMPTS * 8, output="image", seed=999)])
    before = float(low(None, before, PROMPTS * 8).mean())
    assert found["true"] > before + 0.2 and abs(found["shuffled"] - before) < 0.12


@pytest.mark.parametrize("updates", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(make_lm, tmp_path, updates):
    weights = []
    for stops in ([6], [3, 6]):
        path = None
        for stop in stops:
            lm = make_lm()
            trainer = fit(tmp_path, module(lm, 6, updates=updates), 6, stop, path)
            path = tmp_path / "last.ckpt"
            trainer.save_checkpoint(path)
        weights.append(lm.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any("reference" in name for name in torch.load(path, weights_only=True)["state_dict"])


def test_a_run_that_can_learn_nothing_stops_and_says_so(make_lm, tmp_path):
    with pytest.raises(ValueError, match=r"all rewards of the first 5 steps are 0\.5: nothing can be learned"):
        fit(tmp_path, module(make_lm(), 8, lambda images, ids, prompts: torch.full((len(ids),), 0.5)), 8)
    with pytest.raises(ValueError, match="the reward of 'a red fox' is not finite"):
        fit(tmp_path, module(make_lm(), 8, lambda images, ids, prompts: torch.full((len(ids),), torch.nan)), 8)
    with pytest.raises(ValueError, match=r"group \(1\) must be at least 2"):
        GRPOConfig(group=1)
