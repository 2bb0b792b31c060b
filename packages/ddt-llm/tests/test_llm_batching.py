"""Continuous batching: whatever comes and goes beside it, an answer is the one that it would be alone."""

import random

import pytest
import torch

from ddt_llm import MultimodalLM, expand_vocabulary
from ddt_llm.generation import Sampling
from ddt_llm.network import LlamaNetwork, quickest_network

PROMPTS = ["a red fox", "two blue kites on a green ground", "a bell", "what colour is the fox?", ""]


def alone(lm, request, settings):
    """The tokens that `generate` writes for this request alone."""
    *_, (writer,) = lm._write([request], Sampling(**settings))
    return writer.tokens


def random_request(lm, rng, ids):
    parts = [rng.choice(PROMPTS), *([rng.choice(ids)] if rng.random() < 0.4 else [])]
    rng.shuffle(parts)
    output = rng.choice(["auto", "image", "text"])
    settings = {"max_text_tokens": rng.randrange(1, 9), "max_images": rng.randrange(1, 3)}
    settings |= rng.choice([{}, {"temperature": 0}, {"temperature": 0.7, "top_k": 5}, {"text_temperature": 0.5}])
    settings |= rng.choice([{}, {"guidance_scale": 3.0}, {"guidance_scale": 1.5}])
    return lm.request(parts, output=output, seed=rng.randrange(2**40)), settings


def likes_images(lm):
    """Make the opening of an image likely, so that states mix."""
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[lm.vocabulary.boi] *= 6
    return lm


def check(lm, ids, count, rng):
    """Submit requests at random moments, cancel some, and compare every answer with the one written alone."""
    batch, asked, cancelled, most = lm.continuous_batch(slots=3), {}, {}, 0
    while len(asked) + len(cancelled) < count or batch.rows or batch.waiting:
        if len(asked) + len(cancelled) < count and rng.random() < 0.4:
            for _ in range(rng.randrange(1, 4)):
                request, settings = random_request(lm, rng, ids)
                asked[batch.submit(request, **settings)] = request, settings
        running = [writer for writer in asked if not writer.done]
        if running and rng.random() < 0.06:
            writer = rng.choice(running)
            cancelled[writer] = asked.pop(writer)
            batch.cancel(writer)
        most = max(most, len(batch.step()))
    assert most == 3 and cancelled
    for writer, (request, settings) in asked.items():
        assert writer.done and writer.tokens == alone(lm, request, settings)
    for writer, (request, settings) in cancelled.items():
        assert writer.tokens == alone(lm, request, settings)[: len(writer.tokens)]
    return [writer.tokens for writer in asked]


def test_every_answer_is_the_one_it_would_be_alone(make_lm, ids):
    lm = likes_images(make_lm("instruction"))
    assert quickest_network(lm.model) is LlamaNetwork
    answers = check(lm, ids, 60, random.Random(0))
    assert {sum(token == lm.vocabulary.boi for token in answer) for answer in answers} >= {0, 1, 2}


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_other_backbones_take_turns_and_write_the_same(backbone, text_tokenizer, ids, kind):
    model, tokenizer = expand_vocabulary(
        backbone(kind, len(text_tokenizer)), text_tokenizer, codebook_size=16, num_tokens=6
    )
    check(likes_images(MultimodalLM(model, tokenizer, "instruction")), ids, 12, random.Random(1))


def test_who_waits_begins_in_the_step_after_a_slot_is_free(make_lm):
    lm = make_lm()
    batch = lm.continuous_batch(slots=2)
    first, second, third = (
        batch.submit(lm.request("a fox", output=output), max_text_tokens=most)
        for output, most in (("image", 1), ("text", 2), ("image", 1))
    )
    steps = []
    while batch.rows or batch.waiting:
        steps.append(batch.step())
    assert steps[:2] == [[first, second]] * 2 and second.done and steps[2] == [first, third]
    assert len(steps) == 2 + lm.vocabulary.num_tokens and batch.step() == []


def test_a_cancelled_answer_frees_its_slot_and_one_that_waits_never_begins(make_lm):
    lm = make_lm()
    batch = lm.continuous_batch(slots=1)
    first, second, third = (batch.submit(lm.request("a fox", output="image", seed=seed)) for seed in range(3))
    batch.step()
    batch.cancel(first)
    batch.cancel(second)
    batch.step()
    assert not batch.rows and batch.step() == [third]
    assert len(second.tokens) == 1  # the <boi> that it would have begun with
    while batch.rows:
        batch.step()
    assert len(first.tokens) == 2 and third.tokens == alone(lm, lm.request("a fox", output="image", seed=2), {})


def test_a_request_that_may_outgrow_its_slot_is_refused(make_lm):
    lm = make_lm("instruction")
    batch = lm.continuous_batch(slots=1, longest=40)
    with pytest.raises(ValueError, match=r"may take \d+ tokens, 40 are the most"):
        batch.submit(lm.request("a fox"), max_text_tokens=30)
    with pytest.raises(ValueError, match="temperature"):
        batch.submit(lm.request("a fox"), temperature=-1)
    batch.submit(lm.request("a fox", output="image"))
    assert len(batch.step()) == 1
