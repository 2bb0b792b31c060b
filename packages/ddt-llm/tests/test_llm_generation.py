import pytest
import torch

from ddt_llm import MultimodalLM, collate, expand_vocabulary, token_loss
from ddt_llm.generation import Choice, Request, Sampling, Writer, sample, stream_tokens

PROMPTS = ["a red fox", "two blue kites on a green ground", "a bell", "what colour is the fox?"]


def write(lm, requests, **settings):
    *_, writers = stream_tokens(
        lm.model,
        lm.vocabulary,
        requests,
        Sampling(**settings),
        eos=lm.sequences.eos,
        unconditional=lm.sequences.prompt([], lm.template),
        never=[lm.sequences.bos, lm.sequences.pad],
    )
    return [writer.tokens for writer in writers]


def images_of(lm, tokens):
    """Check the grammar of an answer and return its number of images."""
    vocabulary, images, position = lm.vocabulary, 0, 0
    while position < len(tokens):
        if tokens[position] == vocabulary.boi:
            inside = tokens[position + 1 : position + 1 + vocabulary.num_tokens]
            assert len(inside) == vocabulary.num_tokens
            assert all(vocabulary.visual.start <= token < vocabulary.visual.stop for token in inside)
            position += 1 + vocabulary.num_tokens
            assert tokens[position] == vocabulary.eoi
            images += 1
        else:
            assert tokens[position] < vocabulary.text_size
            assert tokens[position] not in (lm.sequences.bos, lm.sequences.pad)
            assert tokens[position] != lm.sequences.eos or position == len(tokens) - 1
        position += 1
    return images


def test_a_thousand_random_answers_are_well_formed(make_lm):
    """Choices without any model, every text token and <boi> equally likely among a few."""
    lm = make_lm()
    generator, vocabulary = torch.Generator().manual_seed(0), lm.vocabulary
    seen = set()
    for index in range(1000):
        request = Request([0] * (index % 40), output=("auto", "image", "text")[index % 3])
        writer = Writer(vocabulary, request, Sampling(max_text_tokens=12), lm.sequences.eos, positions=60)
        while not writer.done:
            draw = int(torch.randint(6, (), generator=generator))
            if writer.forced is not None:
                token = writer.forced
            elif writer.visual_left:
                token = vocabulary.text_size + draw
            elif writer.may_open_image and draw == 0:
                token = vocabulary.boi
            else:
                token = lm.sequences.eos if draw == 1 else 10 + draw
            writer.write(token)
        assert len(request.prompt) + len(writer.tokens) <= 60
        images = images_of(lm, writer.tokens)
        assert request.output == "auto" or images == (request.output == "image")
        seen.add(images)
    assert {0, 1, 2, 3, 4} <= seen


def test_answers_of_a_random_model_in_mixed_states_are_well_formed(make_lm):
    lm = make_lm("instruction")
    with torch.no_grad():  # make images likely, so that states mix
        lm.model.get_input_embeddings().weight[lm.vocabulary.boi] *= 3
    requests = [
        Request(lm.sequences.prompt([prompt], lm.template), seed, output)
        for seed, (prompt, output) in enumerate(zip(PROMPTS * 24, ("auto", "auto", "image", "text") * 24, strict=True))
    ]
    answers = write(lm, requests, max_text_tokens=20, guidance_scale=2.0)
    images = [images_of(lm, answer) for answer in answers]
    assert all(count == 1 for count, request in zip(images, requests, strict=True) if request.output == "image")
    assert not any(count for count, request in zip(images, requests, strict=True) if request.output == "text")
    assert len({count for count, request in zip(images, requests, strict=True) if request.output == "auto"}) > 1


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 3.0}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}])
@pytest.mark.parametrize("output", ["auto", "image", "text"])
def test_a_batch_equals_the_same_prompts_one_by_one(make_lm, settings, output):
    lm = make_lm("instruction")
    requests = [Request(lm.sequences.prompt([prompt], lm.template), i, output) for i, prompt in enumerate(PROMPTS)]
    together = write(lm, requests, max_text_tokens=20, **settings)
    assert together == [write(lm, [request], max_text_tokens=20, **settings)[0] for request in requests]


def uncached(lm, request, scale):
    """Greedy generation of one image by whole forward passes of the transformers model."""
    vocabulary, tokens = lm.vocabulary, [lm.vocabulary.boi]
    for _ in range(vocabulary.num_tokens):
        logits = lm.model(torch.tensor([request.prompt + tokens])).logits[0, -1, vocabulary.visual]
        free = lm.model(torch.tensor([lm.sequences.prompt([], lm.template) + tokens])).logits[0, -1, vocabulary.visual]
        tokens.append(vocabulary.text_size + int((free + scale * (logits - free)).argmax()))
    return [*tokens, vocabulary.eoi]


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_cached_equals_uncached(make_lm, scale):
    lm = make_lm()
    requests = [Request(lm.sequences.prompt([prompt], "caption"), output="image") for prompt in PROMPTS]
    with torch.inference_mode():
        expected = [uncached(lm, request, scale) for request in requests]
    assert write(lm, requests, temperature=0, guidance_scale=scale) == expected
    assert len({tuple(answer) for answer in expected}) > 1


def test_any_backbone_writes_what_it_would_without_a_cache(any_backbone, text_tokenizer):
    """Prompts of different lengths in one batch: padding, positions and the cache must not matter."""
    model, tokenizer = expand_vocabulary(
        any_backbone(len(text_tokenizer)), text_tokenizer, codebook_size=16, num_tokens=6
    )
    with torch.no_grad():  # larger weights than at initialisation, so that predictions differ clearly
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    lm = MultimodalLM(model.eval(), tokenizer)
    requests = [Request(lm.sequences.prompt([prompt], "caption"), output="image") for prompt in PROMPTS]
    with torch.inference_mode():
        expected = [uncached(lm, request, 2.0) for request in requests]
    assert write(lm, requests, temperature=0, guidance_scale=2.0) == expected
    assert len({tuple(answer) for answer in expected}) > 1


def test_guidance_of_one_equals_none(make_lm):
    lm = make_lm()
    requests = [Request(lm.sequences.prompt([prompt], "caption"), i, "image") for i, prompt in enumerate(PROMPTS)]
    plain = write(lm, requests)
    assert write(lm, requests, guidance_scale=1 + 1e-7) == plain  # the branch is computed and changes nothing
    assert write(lm, requests, guidance_scale=4.0) != plain


def test_seeds_decide_and_neighbours_do_not(make_lm):
    lm = make_lm()
    prompt = lm.sequences.prompt(["a bell"], "caption")
    answers = write(lm, [Request(prompt, seed, "image") for seed in (3, 4, 3)])
    assert answers[0] == answers[2] != answers[1]


def test_no_image_starts_that_cannot_finish(make_lm):
    lm = make_lm("instruction", max_positions=40)
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[lm.vocabulary.boi] *= 50
    prompt = lm.sequences.prompt(["a bell"], lm.template)
    for length in range(28, 40):
        request = Request((prompt * 10)[:length], length)
        (answer,) = write(lm, [request])
        assert images_of(lm, answer) <= (40 - length) // 8
    with pytest.raises(ValueError, match="no room"):
        write(lm, [Request((prompt * 10)[:33], output="image")])
    with pytest.raises(ValueError, match="no room"):
        write(lm, [Request((prompt * 10)[:40])])


def test_sampling_follows_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf]).expand(20000, 4)
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    shares = sample(logits, uniform, Choice()).bincount(minlength=4) / 20000
    torch.testing.assert_close(shares, logits[0].softmax(-1), atol=0.01, rtol=0)
    assert set(sample(logits, uniform, Choice(top_k=2)).tolist()) == {1, 2}
    assert set(sample(logits, uniform, Choice(top_p=0.6)).tolist()) == {2}
    assert set(sample(logits, uniform, Choice(top_p=0.7)).tolist()) == {1, 2}
    assert set(sample(logits, uniform, Choice(temperature=0)).tolist()) == {2}


def test_sampling_at_the_ends_of_the_unit_interval_stays_possible():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    for uniform in (0.0, 1 - 2**-24):
        assert sample(logits, torch.tensor([uniform]), Choice()).item() == 1


@pytest.mark.parametrize(
    "settings", [{"top_p": 0.0}, {"top_k": -1}, {"temperature": -1}, {"guidance_scale": -1}, {"max_text_tokens": 0}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Sampling(**settings)


def overfit(lm, examples, steps=60):
    batch = collate(examples, lm.sequences.pad)
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=4e-3)
    for _ in range(steps):
        loss = token_loss(lm.model, lm.vocabulary, **batch).mean
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def test_an_overfitted_batch_is_reproduced_both_ways(make_lm, ids):
    lm = make_lm(width=64)
    make = lm.sequences
    pairs = list(zip(PROMPTS, ids, strict=True))
    overfit(
        lm, [make.text_to_image(*pair) for pair in pairs] + [make.image_to_text(image, text) for text, image in pairs]
    )
    drawn = lm.generate_batch(PROMPTS, temperature=0)
    assert all(
        torch.equal(answer.ids, image[None]) and answer.text == "" for answer, image in zip(drawn, ids, strict=True)
    )
    assert [answer.text for answer in lm.generate_batch(list(ids), temperature=0)] == PROMPTS


def test_an_overfitted_instruction_batch_is_reproduced(make_lm, ids):
    lm = make_lm("instruction", width=64)
    make = lm.sequences
    examples = [
        make.instruction([ids[0], "what colour is the fox?"], ["red"]),
        make.instruction([ids[1], "what colour is the fox?"], ["blue"]),
        make.instruction([ids[0], "make the bell yellow"], [ids[2]]),
        make.instruction(["two blue kites"], [ids[3], "two blue kites"]),
    ]
    overfit(lm, examples)
    red, blue, edit, both = lm.generate_batch(
        [
            [ids[0], "what colour is the fox?"],
            [ids[1], "what colour is the fox?"],
            [ids[0], "make the bell yellow"],
            "two blue kites",
        ],
        temperature=0,
    )
    assert (red.text, blue.text) == ("red", "blue") and len(red.ids) == len(blue.ids) == 0
    assert torch.equal(edit.ids, ids[2][None])
    assert torch.equal(both.ids, ids[3][None]) and both.text == "two blue kites"


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("output", ["auto", "image", "text"])
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *[("temperature", value) for value in (NAN, INFINITE, -INFINITE, -0.1, 1e-40, 1e-45, 1e38)],
        *[("text_temperature", value) for value in (NAN, 1e-40, -1)],
        *[("guidance_scale", value) for value in (NAN, INFINITE, -INFINITE, -1e-9, 1e38)],
        *[(name, value) for name in ("top_p", "text_top_p") for value in (NAN, INFINITE, -0.5, 1.5)],
        *[(name, value) for name in ("top_k", "text_top_k") for value in (NAN, INFINITE, 1.5, -1)],
        *[(name, value) for name in ("max_text_tokens", "max_images") for value in (NAN, INFINITE, 0, 2.5)],
    ],
)
def test_settings_beyond_all_sense_are_refused_by_name(make_lm, output, setting, value):
    with pytest.raises(ValueError, match=setting.removeprefix("text_")):
        make_lm().generate("a fox", output=output, **{setting: value})


@pytest.mark.parametrize("value", [NAN, INFINITE])
@pytest.mark.parametrize("layer", ["embed_tokens", "up_proj"])
def test_a_model_that_is_not_finite_writes_nothing(make_lm, value, layer):
    """Whether it is so at first, or has become so since it last wrote."""
    for before in (False, True):
        lm = make_lm("instruction")
        if before:
            lm.generate("a fox")
        with torch.no_grad():
            for name, weight in lm.model.named_parameters():
                if layer in name:
                    weight.fill_(value)
        for output in ("auto", "image", "text"):
            for settings in ({}, {"temperature": 0}, {"guidance_scale": 3.0}, {"top_k": 5, "top_p": 0.5}):
                with pytest.raises(ValueError, match="not finite"):
                    lm.generate("a fox", output=output, **settings)


@pytest.mark.parametrize("temperature", [0, 1e-6, 1e-3, 1e6])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extremes_that_are_allowed_keep_the_grammar(make_lm, temperature, scale):
    lm = make_lm("instruction")
    requests = [Request(lm.sequences.prompt([prompt], lm.template), i) for i, prompt in enumerate(PROMPTS)]
    for answer in write(lm, requests, temperature=temperature, guidance_scale=scale):
        assert images_of(lm, answer) <= 4
