"""Answers written by blocks, in a few passes of the network."""

import copy
from itertools import pairwise

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ddt_llm import (
    DenoiseConfig,
    Denoising,
    MultimodalLM,
    OptimizerConfig,
    TinyLlamaConfig,
    VisualVocabulary,
    add_mask,
    collate,
    expand_vocabulary,
    remove_vocabulary,
    tiny_llama,
)
from ddt_llm import network as networks
from ddt_llm.denoise_config import AdaptConfig
from ddt_llm.denoise_training import DenoiseTraining
from ddt_llm.denoising import Denoiser, stream_denoised
from ddt_llm.generation import Chooser, Request, Sampling
from ddt_llm.network import GrowingNetwork, LlamaNetwork, UncachedNetwork, looking_network_for

# Reading with a cache


def test_looking_over_a_cache_is_looking_without_one(any_backbone):
    model = any_backbone(40)
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(40, (length,), generator=draw).tolist() for length in (5, 2, 7)]
    network, slow = looking_network_for(model, rows, 20), UncachedNetwork(model, rows, 20)
    assert type(network) is (LlamaNetwork if model.config.model_type == "llama" else GrowingNetwork)
    with torch.inference_mode():
        torch.testing.assert_close(network.start(), slow.start(), rtol=1e-4, atol=1e-5)
        for kept, looked in ((0, 3), (3, 4), (0, 4), (4, 0), (1, 2)):
            tokens = [torch.randint(40, (3, count), generator=draw) for count in (kept, looked)]
            torch.testing.assert_close(network.look(*tokens), slow.look(*tokens), rtol=1e-4, atol=1e-5)


def test_a_cache_writes_the_same_answers_as_none(adapted, monkeypatch):
    lm, how = adapted(), Denoising(steps=5)
    settings = {"denoising": how, "guidance_scale": 2.0, "seed": 3}
    prompts = ["a red fox", "two blue kites on a green ground"]
    quick = lm.generate_batch(prompts, **settings)
    monkeypatch.setitem(networks._quickest_looking, lm.model, UncachedNetwork)
    slow = lm.generate_batch(prompts, **settings)
    assert all((a.ids == b.ids).all() for a, b in zip(quick, slow, strict=True))


# How answers are written


def test_an_image_takes_as_many_passes_as_there_are_steps(adapted, monkeypatch):
    lm, looks = adapted(), []
    lm.generate("a bell", denoising=Denoising())  # which tries networks first
    look = LlamaNetwork.look
    monkeypatch.setattr(LlamaNetwork, "look", lambda self, *each: looks.append(each) or look(self, *each))
    starts, start = [], LlamaNetwork.start
    monkeypatch.setattr(LlamaNetwork, "start", lambda self: starts.append(1) or start(self))
    for steps in (3, 4, 6):
        looks.clear(), starts.clear()
        answer = lm.generate("a red fox", denoising=Denoising(steps=steps))
        assert answer.ids.shape == (1, 6) and 0 <= int(answer.ids.min()) <= int(answer.ids.max()) < 16
        assert answer.passes == len(looks) == steps and len(starts) == 1  # the prompt is read once
        kept = torch.cat([kept for kept, _ in looks], dim=1)[0]
        assert kept.tolist() == lm.vocabulary.to_tokens(answer.ids[0])[:3].tolist()  # and each block before the last


def test_threshold_one_is_one_by_one(adapted):
    lm = adapted(blocks=(6,))
    for seed in range(3):
        sure = lm.generate("a bell", seed=seed, denoising=Denoising(steps=6, threshold=1.0))
        scheduled = lm.generate("a bell", seed=seed, denoising=Denoising(steps=6))
        assert sure.passes == scheduled.passes == 6 and (sure.ids == scheduled.ids).all()
    sure = lm.generate("a bell", denoising=Denoising(steps=6, threshold=0.0))
    assert sure.passes == 1


@pytest.mark.parametrize("how", [{}, {"remask": True}, {"threshold": 0.3}, {"shift": 4.0}, {"blocks": (3, 3)}])
@pytest.mark.parametrize("path", ["mask", "metric"])
def test_an_answer_depends_on_its_own_request_alone(adapted, path, how):
    lm = adapted(path=path)
    settings = {"denoising": Denoising(steps=5, **how), "guidance_scale": 1.5, "temperature": 0.8}
    together = lm.generate_batch(["a red fox", "a bell", "two blue kites"], seed=7, **settings)
    for i, prompt in enumerate(["a red fox", "a bell", "two blue kites"]):
        alone = lm.generate(prompt, seed=7 + i, **settings)
        assert (alone.ids == together[i].ids).all() and alone.passes == together[i].passes
    assert len({tuple(answer.ids[0].tolist()) for answer in together}) == 3
    again = lm.generate("a bell", seed=8, **{**settings, "guidance_scale": 1.0})
    plain = {name: value for name, value in settings.items() if name != "guidance_scale"}
    assert (again.ids == lm.generate("a bell", seed=8, **plain).ids).all()


@pytest.mark.parametrize("path", ["mask", "metric"])
def test_ids_that_are_kept_stand_where_they_stood(adapted, ids, path):
    lm = adapted(path=path)
    for how in (Denoising(steps=6, remask=True), Denoising(steps=3)):
        answer = lm.generate("a bell", sketch=ids[0], keep_tokens=[0, 2, 3], denoising=how)
        assert answer.ids[0, [0, 2, 3]].tolist() == ids[0, [0, 2, 3]].tolist()
        assert (answer.ids[0, [1, 4, 5]] != ids[0, [1, 4, 5]]).any()
    begun = lm.generate("a bell", sketch=ids[0], keep_tokens=2, denoising=Denoising(steps=6))
    assert begun.ids[0, 4:].tolist() == ids[0, 4:].tolist()
    with pytest.raises(ValueError, match="denoising="):
        lm.generate("a bell", sketch=ids[0], keep_tokens=[0, 2, 3])
    with pytest.raises(ValueError, match=r"keep_tokens \(\[6\]\) must lie in 0 to 5"):
        lm.generate("a bell", sketch=ids[0], keep_tokens=[6], denoising=Denoising(steps=6))


def test_words_of_a_template_never_change(adapted):
    lm = adapted("instruction", text_block=6)
    fixed = lm.sequences.encode_text(" a fox")
    given = (None, *fixed, None)
    prompt = lm.sequences.prompt(["what is it?"], "instruction")
    for seed in range(4):
        request = Request(prompt, seed, "text", given=given)
        how = {"eos": lm.sequences.eos, "never": [*lm.never, lm.sequences.eos]}
        settings = Sampling(max_text_tokens=12)
        *_, (writer,) = stream_denoised(lm.model, lm.vocabulary, [request], settings, Denoising(), **how)
        assert writer.tokens[1 : 1 + len(fixed)] == fixed
    bad = Request(prompt, 0, "text", given=(lm.vocabulary.visual.start,))
    with pytest.raises(ValueError, match="at place 0 of an answer, where none may stand"):
        list(stream_denoised(lm.model, lm.vocabulary, [bad], settings, Denoising(), eos=lm.sequences.eos))


@pytest.mark.parametrize("text_block", [0, 5])
def test_answers_with_text_and_images_are_well_formed(adapted, monkeypatch, text_block):
    lm, of_text = adapted("instruction", text_block=text_block), Chooser._text_logits
    more = torch.zeros(lm.vocabulary.text_size + 1)
    more[-1] = 15.0  # so that images come
    monkeypatch.setattr(Chooser, "_text_logits", lambda self, *each: of_text(self, *each) + more)
    requests = [lm.request("draw", seed=seed) for seed in range(6)]
    settings = Sampling(max_text_tokens=20, max_images=2)
    how = {"eos": lm.sequences.eos, "never": lm.never}
    images = 0
    *_, writers = stream_denoised(lm.model, lm.vocabulary, requests, settings, Denoising(steps=3), **how)
    for writer in writers:
        assert writer.done
        visual, tokens = lm.vocabulary.visual, writer.tokens
        while lm.vocabulary.boi in tokens:
            at = tokens.index(lm.vocabulary.boi)
            image, tokens = tokens[at + 1 : at + 8], tokens[at + 8 :]
            assert all(visual.start <= token < visual.stop for token in image[:6])
            assert image[6:] in ([lm.vocabulary.eoi], [])
            images += 1
        assert all(token < lm.vocabulary.text_size for token in tokens)
        assert sum(token < lm.vocabulary.text_size for token in writer.tokens) <= 20
    assert images


def test_a_stream_shows_each_block_and_ends_as_generate_does(adapted):
    lm = adapted()
    events = list(lm.stream("a red fox", seed=1, denoising=Denoising(steps=4)))
    whole = lm.generate("a red fox", seed=1, denoising=Denoising(steps=4))
    assert [len(event.ids) for event in events] == [1, 2, 3, 4, 5, 6]
    assert (events[-1].ids == whole.ids[0]).all()


class Planted:
    """Logits of an oracle that knows the codes, and is sure of wrong ones in its first look."""

    def __init__(self, codes):
        self.codes, self.looks = codes, 0

    def __call__(self, hidden):
        self.looks += 1
        wrong = (self.codes + 5) % 16 if self.looks == 1 else self.codes
        return 12 * torch.nn.functional.one_hot(wrong, 16).float()[None].expand(len(hidden), -1, -1)


@pytest.mark.parametrize(("how", "mends"), [({}, False), ({"remask": True}, True), ({"path": "metric"}, True)])
def test_early_errors_are_mended_where_tokens_may_change(adapted, monkeypatch, how, mends):
    path = how.get("path", "mask")
    lm = adapted(blocks=(6,), path=path)
    oracle = Planted(torch.arange(6))
    monkeypatch.setattr(Denoiser, "visual_logits", oracle)
    seen = []
    moved, known = Denoiser.moved, Denoiser.known
    monkeypatch.setattr(Denoiser, "moved", lambda self, *each: seen.append(moved(self, *each)) or seen[-1])
    monkeypatch.setattr(Denoiser, "known", lambda self, *each: seen.append(known(self, *each)) or seen[-1])
    denoising = Denoising(steps=4, remask=how.get("remask", False))
    answer = lm.generate("a bell", denoising=denoising, temperature=0.0)
    right = (lm.vocabulary.to_tokens(answer.ids[0]) - lm.vocabulary.text_size == oracle.codes).sum()
    assert (right == 6) == mends
    changed = any(((before >= 0) & (before != after)).any() for before, after in pairwise(seen))
    assert changed == mends  # revisions happen, or never


def test_steps_blocks_and_models_that_do_not_fit_are_told(adapted, make_lm):
    lm = adapted()
    with pytest.raises(ValueError, match=r"steps \(2\) must be at least the number of blocks, 3"):
        lm.generate("a bell", denoising=Denoising(steps=2))
    with pytest.raises(ValueError, match=r"blocks \[4, 4\] are 8 tokens in all, an image has 6"):
        lm.generate("a bell", denoising=Denoising(blocks=(4, 4)))
    with pytest.raises(ValueError, match="adapt it with ddt adapt"):
        make_lm().generate("a bell", denoising=Denoising())
    with pytest.raises(ValueError, match="adapt it with ddt adapt"):
        DenoiseTraining(make_lm().model, OptimizerConfig(steps=1), denoise=DenoiseConfig(), adapt=AdaptConfig(), eos=0)
    with pytest.raises(ValueError, match="text_block"):
        DenoiseConfig(path="metric", text_block=4)
    for damaged in ({}, "x", {"blocks": 3}, {"blocks": [6], "metric": {}, "later": 1}):
        lm.model.config.ddt["denoise"] = damaged
        with pytest.raises(ValueError, match=r"'denoise' in the model's config is damaged .*: adapt the model again"):
            lm.generate("a bell", denoising=Denoising())


def test_an_adapted_model_is_a_plain_folder_that_writes_in_order_as_before(adapted, make_lm, tmp_path):
    before, lm = make_lm(), adapted()
    lm.save_pretrained(tmp_path)
    again = MultimodalLM.from_pretrained(tmp_path)
    assert again.vocabulary.masked and DenoiseConfig.from_config(again.model.config).blocks == (1, 2, 3)
    plain = before.generate("a red fox", seed=3)
    assert (again.generate("a red fox", seed=3).ids == plain.ids).all()
    how = Denoising(steps=4)
    assert (again.generate("a red fox", denoising=how).ids == lm.generate("a red fox", denoising=how).ids).all()
    twice, _ = add_mask(again.model, again.text_tokenizer)
    assert twice.get_input_embeddings().weight.shape[0] == lm.vocabulary.size


def test_a_tokenizer_may_have_a_mask_of_its_own_but_no_later_token(text_tokenizer, tmp_path):
    own = copy.deepcopy(text_tokenizer)
    own.add_tokens(["<mask>"], special_tokens=True)  # as Gemma's has
    base = tiny_llama(TinyLlamaConfig(width=16, depth=1, num_heads=2), own)
    model, tokenizer = expand_vocabulary(base, own, codebook_size=16, num_tokens=6)
    late = copy.deepcopy(tokenizer)
    late.add_tokens(["<late>"], special_tokens=True)
    with pytest.raises(ValueError, match="does not fit this model"):
        add_mask(copy.deepcopy(model), late)
    MultimodalLM(*add_mask(model, tokenizer), "caption").save_pretrained(tmp_path)
    again = MultimodalLM.from_pretrained(tmp_path)
    assert again.text_tokenizer.convert_ids_to_tokens(again.vocabulary.mask) == "<v_mask>"
    assert remove_vocabulary(again.model, again.text_tokenizer)[1].get_vocab() == own.get_vocab()


def test_blocks_of_text_end_where_the_positions_do(text_tokenizer):
    config = GPT2Config(vocab_size=len(text_tokenizer), n_positions=24, n_embd=16, n_layer=1, n_head=2)
    config.bos_token_id = config.eos_token_id = None
    model = expand_vocabulary(GPT2LMHeadModel(config), text_tokenizer, codebook_size=16, num_tokens=6)
    model, tokenizer = add_mask(*model)
    DenoiseConfig(blocks=(1, 2, 3), text_block=8).record(model.config)
    lm = MultimodalLM(model.eval(), tokenizer, "caption")
    full = next(e for n in range(1, 24) if len((e := lm.sequences.text_only("kites " * n)).input_ids) > 20)
    assert len(full.input_ids) <= 24
    settings = {
        "denoise": DenoiseConfig(blocks=(1, 2, 3), text_block=8),
        "adapt": AdaptConfig(),
        "eos": lm.sequences.eos,
    }
    module = DenoiseTraining(lm.model, OptimizerConfig(steps=1, warmup_steps=0), **settings)
    _, denoised, _ = module.losses(**collate([full], lm.sequences.pad))
    assert denoised.isfinite().all()
    request = Request(full.input_ids[:19].tolist(), 0, "text")
    how = {"eos": lm.sequences.eos, "never": [*lm.never, lm.sequences.eos]}
    *_, (writer,) = stream_denoised(lm.model, lm.vocabulary, [request], Sampling(), Denoising(), **how)
    assert len(writer.tokens) == 5


def test_a_row_of_padding_becomes_the_mask(make_lm, text_tokenizer):
    model = tiny_llama(TinyLlamaConfig(width=16, depth=1, num_heads=2), text_tokenizer)
    model, tokenizer = expand_vocabulary(model, text_tokenizer, codebook_size=16, num_tokens=6, multiple=64)
    rows = model.get_input_embeddings().weight.shape[0]
    kept = model.get_input_embeddings().weight[: VisualVocabulary.from_config(model.config).size].clone()
    model, tokenizer = add_mask(model, tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == rows
    assert (model.get_input_embeddings().weight[: len(kept)] == kept).all()
