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
)

from ddt_llm import collate, token_loss
from ddt_llm.head import head_logits

SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "build",
    [
        lambda: Gemma2ForCausalLM(
            Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.05)
        ),
        lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.3, bos_token_id=1, eos_token_id=2)),
        lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0)),
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)),
    ],
    ids=["gemma2", "cohere", "granite", "gpt2"],
)
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
