import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ddt_llm.generation
from ddt_llm import MultimodalLM, VisualTokenizer, expand_vocabulary
from ddt_llm.expansion import unused_rows
from ddt_llm.generation import Request, Sampling, stream_tokens
from ddt_llm.streaming import Reader


class Blocks:
    """A visual tokenizer of 2 x 3 grey blocks in 16 shades."""

    codebook_size, num_tokens, fingerprint = 16, 6, "blocks"

    def encode(self, images):
        return torch.stack([((image.mean(0).flatten() + 1) * 7.5).round().long() for image in images])

    def decode(self, ids, keep_tokens=6):
        known = torch.arange(6) >= 6 - keep_tokens  # the coarsest come last
        return (torch.where(known, ids, 0) / 7.5 - 1).view(-1, 1, 2, 3).expand(-1, 3, -1, -1)


def test_a_saved_model_loads_equal_with_and_without_this_package(tmp_path, make_lm):
    lm = make_lm("instruction")
    lm.visual_fingerprint = "blocks"
    lm.save_pretrained(tmp_path / "lm")
    again = MultimodalLM.from_pretrained(tmp_path / "lm")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    for model in (again.model, plain):
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in lm.model.state_dict().items())
    assert (again.template, again.visual_fingerprint, again.vocabulary) == ("instruction", "blocks", lm.vocabulary)
    assert AutoTokenizer.from_pretrained(tmp_path / "lm").convert_tokens_to_ids("<v_3>") == lm.vocabulary.text_size + 3
    assert again.generate("a fox", seed=1).text == lm.generate("a fox", seed=1).text
    settings = json.loads((tmp_path / "lm" / "ddt.json").read_text())
    assert settings["format"] == 1 and settings["visual_order"] == "coarse_to_fine"


def test_in_bf16_weights_are_rounded_and_logits_are_float32(tmp_path, make_lm, ids, monkeypatch):
    lm = make_lm("instruction")
    lm.save_pretrained(tmp_path)
    rounded, seen = MultimodalLM.from_pretrained(tmp_path, precision="bf16"), set()
    buffers = dict(lm.model.named_buffers())  # the angles of positions, which bf16 would turn by radians far off
    assert buffers and all(torch.equal(buffer, buffers[name]) for name, buffer in rounded.model.named_buffers())
    for name, weight in rounded.model.named_parameters():
        assert torch.equal(weight, lm.model.get_parameter(name).bfloat16())

    # The same predictions, but for rounding.
    examples = [lm.sequences.text_to_image("a fox", some) for some in ids]
    exact, near = lm.score(examples), rounded.score(examples)
    assert near.visual_nats.dtype == torch.float32
    assert near.bits_per_visual_token.item() == pytest.approx(exact.bits_per_visual_token.item(), rel=0.02)
    assert near.visual_nats != exact.visual_nats

    # The grammar: text, whole images between their marks, nothing that is not to be written.
    choose = ddt_llm.generation.sample
    monkeypatch.setattr(
        ddt_llm.generation, "sample", lambda logits, *rest: seen.add(logits.dtype) or choose(logits, *rest)
    )
    for seed in range(5):
        request = [Request(rounded.sequences.prompt(["a fox"], "instruction"), seed)]
        settings = Sampling(temperature=2.0, guidance_scale=1.5, max_text_tokens=6)
        (writer,) = list(rounded._write(request, settings))[-1]
        left = 0
        for token in writer.tokens:
            visual = rounded.vocabulary.visual.start <= token < rounded.vocabulary.visual.stop
            assert visual == bool(left)
            left = 6 if token == rounded.vocabulary.boi else max(0, left - 1)
        assert not left and writer.done
    assert seen == {torch.float32}
    with pytest.raises(ValueError, match=r"precision \('fp8'\) must be 32 or bf16"):
        MultimodalLM.from_pretrained(tmp_path, precision="fp8")


def test_saving_again_replaces_the_model_and_leaves_other_files(tmp_path, make_lm):
    (tmp_path / "notes.txt").write_text("mine")
    make_lm().save_pretrained(tmp_path)
    other = make_lm(seed=1)
    other.save_pretrained(tmp_path)
    assert torch.equal(
        MultimodalLM.from_pretrained(tmp_path).model.get_input_embeddings().weight,
        other.model.get_input_embeddings().weight,
    )
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".saving-*"))


def test_missing_unfinished_and_unknown_folders_are_named(tmp_path, make_lm):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        MultimodalLM.from_pretrained(tmp_path / "nowhere")
    make_lm().save_pretrained(tmp_path)
    settings = tmp_path / "ddt.json"
    settings.write_text(settings.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(ValueError, match="format 9"):
        MultimodalLM.from_pretrained(tmp_path)
    settings.write_text(settings.read_text().replace('"format": 9', '"format": 1').replace('tokens": 6', 'tokens": 7'))
    with pytest.raises(ValueError, match="does not belong"):
        MultimodalLM.from_pretrained(tmp_path)
    settings.unlink()
    with pytest.raises(FileNotFoundError, match=r"ddt\.json"):
        MultimodalLM.from_pretrained(tmp_path)


def test_pictures_go_in_and_come_out(make_lm, ids):
    lm, visual = make_lm("instruction"), Blocks()
    assert isinstance(visual, VisualTokenizer)
    picture = visual.decode(ids[:1])[0]
    drawn = lm.generate([picture, "make the fox blue"], visual, output="image", seed=3)
    assert drawn.images.shape == (1, 3, 2, 3) and drawn.ids.shape == (1, 6)
    assert torch.equal(visual.encode(drawn.images), drawn.ids)
    same = lm.generate([ids[0], "make the fox blue"], output="image", seed=3)  # ids in place of the picture
    assert torch.equal(same.ids, drawn.ids) and same.images is None
    assert lm.generate([picture, "what is it?"], visual, output="text").images is None


@pytest.mark.parametrize("order", ["coarse_to_fine", "tokenizer", "shuffled-1"])
def test_a_sketch_is_kept_and_finished(make_lm, ids, order):
    lm, visual = make_lm(visual_order=order), Blocks()
    written = lm.generate("a bell", temperature=0).ids[0]
    for keep in range(6):  # its own beginning leads to the same end
        assert torch.equal(lm.generate("a bell", temperature=0, sketch=written, keep_tokens=keep).ids[0], written)
    kept = lm.vocabulary.order[:4]
    finished = lm.generate_batch(["a bell"] * 40, visual, sketches=[visual.decode(ids[:1])[0]] * 40, keep_tokens=4)
    assert all(torch.equal(answer.ids[0, kept], ids[0, kept]) for answer in finished)
    assert len({tuple(answer.ids[0].tolist()) for answer in finished}) > 20  # and the rest is drawn anew
    alone = lm.generate("a bell", visual, sketch=ids[0], keep_tokens=4, seed=7)
    assert torch.equal(alone.ids, finished[7].ids) and alone.images.shape == (1, 3, 2, 3)
    with pytest.raises(ValueError, match="keep_tokens"):
        lm.generate("a bell", sketch=ids[0], keep_tokens=6)


def test_a_stream_tells_what_generate_returns(make_lm):
    lm, visual, kinds = make_lm("instruction"), Blocks(), set()
    with torch.no_grad():  # make images likely
        lm.model.get_input_embeddings().weight[lm.vocabulary.boi] *= 3
    for seed in range(8):
        events = list(lm.stream("a fox", visual, seed=seed, preview_every=2, max_text_tokens=20))
        whole = [event for event in events if event.ids is not None and len(event.ids) == 6]
        expected = lm.generate("a fox", visual, seed=seed, max_text_tokens=20)
        assert len(whole) == len(expected.ids)
        for event, ids, image in zip(whole, expected.ids, [] if not whole else expected.images, strict=True):
            assert torch.equal(event.ids, ids) and torch.equal(event.image, image)
        if not whole:
            assert "".join(event.text for event in events).strip() == expected.text
        for event in events:
            if event.ids is not None and len(event.ids) < 6:
                n = len(event.ids)
                assert any(torch.equal(event.ids, finished.ids[6 - n :]) for finished in whole)
                assert (event.image is not None) == (n % 2 == 0)
        kinds |= {bool(whole)}
    assert kinds == {True, False}


def test_text_of_several_bytes_a_character_is_streamed_whole(make_lm):
    lm = make_lm()
    tokens = lm.sequences.encode_text("a cr\u00e8me \U0001f98a fox")
    reader = Reader(lm.vocabulary, lm.text_tokenizer, None, 0)
    pieces = [event.text for n in range(1, len(tokens) + 1) for event in reader.read(tokens[:n])]
    assert (
        "".join(pieces) == "a cr\u00e8me \U0001f98a fox" and len(pieces) > 5 and not any("\ufffd" in p for p in pieces)
    )


def test_a_conversation_goes_on(make_lm, ids):
    lm = make_lm("instruction")
    history = [(["a red fox"], [ids[0]]), ([ids[1], "what is it?"], ["a bell"])]
    answer = lm.generate("make it blue", history=history, output="image", seed=1)
    prompt = lm.sequences.prompt(["make it blue"], "instruction", history)
    request = Request(prompt, 1, "image")
    *_, (writer,) = stream_tokens(lm.model, lm.vocabulary, [request], Sampling(), eos=lm.sequences.eos)
    assert torch.equal(lm.vocabulary.to_ids(torch.tensor(writer.tokens[1:-1])), answer.ids[0])
    assert prompt[: len(prompt) - 1] != lm.sequences.prompt(["make it blue"], "instruction")
    with pytest.raises(ValueError, match="tune it on instructions"):
        make_lm().generate("make it blue", history=history)


def test_rows_that_stand_for_no_token_are_never_written(backbone, text_tokenizer):
    model, tokenizer = expand_vocabulary(
        backbone("smollm2", len(text_tokenizer) + 3), text_tokenizer, codebook_size=16, num_tokens=6
    )
    lm = MultimodalLM(model, tokenizer)
    unused = list(unused_rows(tokenizer).values())
    with torch.no_grad():  # they would be the likeliest
        model.get_input_embeddings().weight[unused] = 50 * model.get_input_embeddings().weight[5]
    requests = [Request([1, 5, 6], seed, "text") for seed in range(8)]
    *_, writers = stream_tokens(model, lm.vocabulary, requests, Sampling(), eos=1, never=lm.never)
    assert len(unused) == 3 and not set(unused) & {token for writer in writers for token in writer.tokens}
    assert lm.sequences.eos not in lm.never and lm.sequences.pad in lm.never


def test_batches_keep_order_and_seeds(make_lm, ids):
    lm, visual = make_lm(), Blocks()
    prompts = ["a red fox", visual.decode(ids[:1])[0], "a bell", ids[1]]
    answers = lm.generate_batch(prompts, visual, seed=5, batch_size=3, max_text_tokens=9)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        alone = lm.generate(prompt, visual, seed=5 + i, max_text_tokens=9)
        assert alone.text == answer.text and torch.equal(alone.ids, answer.ids)
        assert (len(answer.ids) == 1) == isinstance(prompt, str)  # a caption is drawn, an image described
    assert lm.generate_batch([]) == []


def test_generation_leaves_the_training_mode_as_it_was(make_lm):
    lm = make_lm()
    lm.model.train()
    lm.generate("a fox")
    assert lm.model.training


@pytest.mark.parametrize("change", [{"codebook_size": 8}, {"num_tokens": 7}, {"fingerprint": "other"}])
def test_a_visual_tokenizer_of_another_model_is_refused(make_lm, change):
    lm, visual = make_lm(), Blocks()
    lm.visual_fingerprint = "blocks"
    for name, value in change.items():
        setattr(visual, name, value)
    with pytest.raises(ValueError, match=next(iter(change))):
        lm.generate("a fox", visual)


def test_mistakes_are_named(make_lm):
    lm = make_lm()
    with pytest.raises(ValueError, match="pass visual="):
        lm.generate(Path("fox.png"))
    with pytest.raises(ValueError, match=r"output \('picture'\) must be auto or image or text"):
        lm.generate("a fox", output="picture")
    with pytest.raises(ValueError, match=r"template \('chat'\) must be caption or instruction"):
        MultimodalLM(lm.model, lm.text_tokenizer, "chat")
    del lm.model.config.ddt
    with pytest.raises(ValueError, match="expand_vocabulary"):
        MultimodalLM(lm.model, lm.text_tokenizer)
