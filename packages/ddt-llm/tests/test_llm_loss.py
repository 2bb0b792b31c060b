import math

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from ddt_llm import collate, head, token_loss
from ddt_llm.head import head_logits, head_nats

SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


BUILDS = {
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.05)
    ),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.3, bos_token_id=1, eos_token_id=2)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)),
    "phi, with a bias": lambda: PhiForCausalLM(PhiConfig(**SMALL)),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_rows_of_the_head_equal_the_logits_of_transformers(build):
    torch.manual_seed(0)
    model, tokens = build().eval(), torch.randint(50, (2, 7))
    hidden = model.base_model(tokens).last_hidden_state
    torch.testing.assert_close(head_logits(model, hidden, slice(10, 30)), model(tokens).logits[..., 10:30])


def test_sums_equal_the_plain_cross_entropy(make_lm, ids):
    lm = make_lm()
    examples = [
        lm.sequences.text_to_image("a red fox", ids[0]),
        lm.sequences.instruction([ids[1], "what?"], ["a bell"]),
    ]
    batch = collate(examples, lm.sequences.pad)
    loss = token_loss(lm.model, lm.vocabulary, **batch)
    logits = lm.model(batch["input_ids"]).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none").view_as(
        targets
    )
    visual = (targets >= lm.vocabulary.text_size) & (targets < lm.vocabulary.boi)
    text = ~visual & (targets != -100)
    torch.testing.assert_close(loss.visual_nats, nats[visual].sum())
    torch.testing.assert_close(loss.text_nats, nats[text].sum())
    assert loss.visual_count == 6 and loss.text_count == text.sum()
    torch.testing.assert_close(loss.mean, nats[targets != -100].mean())
    torch.testing.assert_close(loss.bits_per_visual_token, nats[visual].mean() / math.log(2))


def test_score_does_not_depend_on_the_batch(make_lm, ids):
    lm = make_lm()
    examples = [lm.sequences.text_to_image("a red fox" * (i + 1), image) for i, image in enumerate(ids)]
    together, apart = lm.score(examples), lm.score(examples, batch_size=1)
    torch.testing.assert_close(together.mean, apart.mean)
    assert together.visual_count == apart.visual_count == 24


def test_a_batch_without_images_has_no_bits_per_visual_token(make_lm):
    lm = make_lm()
    assert lm.score([lm.sequences.text_only("a red fox")]).bits_per_visual_token.isnan()


def nats_and_gradients(nats, model, count, outer, dtype=torch.float32):
    """Loss, and gradients of hidden states and of all weights of the head; the positions are the same at every call."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, 16, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(50, (count,), generator=generator)
    model.zero_grad()
    value = nats(model, hidden, targets)
    (value * outer).sum().backward()
    of_head = list(model.get_output_embeddings().parameters())
    return value.detach(), hidden.grad, *(weight.grad.clone() for weight in of_head if weight.requires_grad)


def plain_nats(model, hidden, targets):
    """In double, all at once."""
    layer = model.get_output_embeddings()
    bias = None if getattr(layer, "bias", None) is None else layer.bias.double()
    logits = F.linear(hidden.double(), layer.weight.double(), bias)
    logits = head._rescaled(logits, model.config.get_text_config())
    return F.cross_entropy(logits, targets, reduction="none")


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
@pytest.mark.parametrize("count", [0, 1, 14, 50])
def test_loss_and_gradients_are_those_of_all_logits_at_once(build, weighted, count, monkeypatch):
    monkeypatch.setattr(head, "POSITIONS", 7)
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_()
    outer = torch.linspace(0, 1, count) if weighted else torch.full((count,), 1 / 3)
    found = nats_and_gradients(head_nats, model, count, outer)
    for left, right in zip(found, nats_and_gradients(plain_nats, model, count, outer), strict=True):
        assert left.dtype == torch.float32
        largest = right.abs().max().item() if right.numel() else 1
        torch.testing.assert_close(left.double(), right.double(), rtol=0, atol=1e-6 * max(largest, 1))


def test_no_gradient_is_made_of_what_is_not_trained(monkeypatch):
    monkeypatch.setattr(head, "POSITIONS", 7)
    model = BUILDS["phi, with a bias"]()
    outer = torch.ones(20)
    whole = nats_and_gradients(head_nats, model, 20, outer)
    model.get_output_embeddings().weight.requires_grad_(False)
    value, by_hidden, by_bias = nats_and_gradients(head_nats, model, 20, outer)
    for left, right in ((value, whole[0]), (by_hidden, whole[1]), (by_bias, whole[3])):
        assert torch.equal(left, right)
    hidden, targets = torch.randn(9, 16), torch.randint(50, (9,))
    with torch.no_grad():
        without = head_nats(model, hidden, targets)
    with torch.inference_mode():
        assert torch.equal(head_nats(model, hidden, targets), without)
    assert torch.equal(head_nats(model, hidden, targets).detach(), without)


def test_in_bf16_the_loss_is_that_of_bf16_logits_and_its_gradient_no_worse(monkeypatch):
    """Under autocast, as in bf16-mixed, and with weights of bf16: against the exact ones, and what autograd makes."""
    monkeypatch.setattr(head, "POSITIONS", 7)
    torch.manual_seed(0)
    model = BUILDS["granite"]()
    outer = torch.full((50,), 1 / 50)

    def plain(model, hidden, targets):
        return F.cross_entropy(head_logits(model, hidden), targets, reduction="none")

    exact = nats_and_gradients(plain_nats, model, 50, outer)
    with torch.autocast("cpu", torch.bfloat16):
        ours, usual = (nats_and_gradients(nats, model, 50, outer) for nats in (head_nats, plain))
    torch.testing.assert_close(ours[0], usual[0], rtol=1e-5, atol=1e-5)
    assert [value.dtype for value in ours] == [value.dtype for value in usual]
    for one, other, right in zip(ours, usual, exact, strict=True):
        assert (one - right).norm() <= 1.5 * (other - right).norm() + 1e-6
    model.bfloat16()
    ours = nats_and_gradients(head_nats, model, 50, outer, torch.bfloat16)
    assert [value.dtype for value in ours] == [torch.float32, torch.bfloat16, torch.bfloat16]
    for one, right in zip(ours, exact, strict=True):
        assert (one - right).norm() <= 0.02 * right.norm()
