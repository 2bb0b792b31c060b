"""Denoising: who sees whom, what is noised, how it is learned, and how answers are written in a few passes."""

from itertools import pairwise

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from ddt_llm import (
    DenoiseConfig,
    Denoising,
    MultimodalLM,
    OptimizerConfig,
    TinyLlamaConfig,
    VisualVocabulary,
    add_mask,
    collate,
    collate_packed,
    expand_vocabulary,
    tiny_llama,
    token_loss,
)
from ddt_llm import network as networks
from ddt_llm.corruption import MetricPath, known_at, shifted
from ddt_llm.denoise_config import AdaptConfig
from ddt_llm.denoise_training import DenoiseTraining, blocks_of
from ddt_llm.denoising import Denoiser, stream_denoised
from ddt_llm.generation import Chooser, Request, Sampling
from ddt_llm.masks import Layout, attention_mask
from ddt_llm.network import GrowingNetwork, LlamaNetwork, UncachedNetwork, looking_network_for
from ddt_llm.self_test import check_masks


@pytest.fixture
def adapted(make_lm):
    """A function that builds a random model that may denoise."""

    def make(template="caption", **settings):
        lm = make_lm(template)
        model, text_tokenizer = add_mask(lm.model, lm.text_tokenizer)
        DenoiseConfig(**{"blocks": (1, 2, 3), **settings}).record(model.config)
        return MultimodalLM(model.eval(), text_tokenizer, template)

    return make


def training(lm, steps=10, adapt=None, **optimizer):
    config = OptimizerConfig(steps=steps, warmup_steps=1, **optimizer)
    denoise = DenoiseConfig.from_config(lm.model.config)
    return DenoiseTraining(lm.model, config, denoise=denoise, adapt=adapt or AdaptConfig(), eos=lm.sequences.eos)


# Who sees whom


def layouts():
    causal = Layout.causal(torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]]))
    alone = Layout.causal(torch.arange(8)[None])
    ends = torch.tensor([[0, 3]]), torch.tensor([[3, 6]])
    places, start, group = (
        torch.tensor([each]) for each in ([1, 2, 3, 4, 1, 2], [1, 1, 3, 3, 1, 1], [1, 1, 2, 2, 3, 3])
    )
    document = torch.tensor([[1, 1, 1, 1, 2, 2]])
    return {
        "causal": (causal, lambda i, j: (i < 5) == (j < 5) and j <= i),
        "prefix": (alone.spans(ends[0][:, :1], ends[1][:, :1]), lambda i, j: j <= i or (i < 3 and j < 3)),
        "blocks": (alone.spans(*ends), lambda i, j: j <= i or i // 3 == j // 3 < 2),
        "span": (alone.spans(ends[0][:, 1:], ends[1][:, 1:]), lambda i, j: j <= i or i // 3 == j // 3 == 1),
        "noised": (
            causal.beside(places, start, group, document),
            lambda i, j: (
                (i < 5) == (j < 5) and j <= i
                if i < 8
                else j in {8: (0, 8, 9), 9: (0, 8, 9), 10: (0, 1, 2, 10, 11), 11: (0, 1, 2, 10, 11)}.get(i, (5, 12, 13))
            ),
        ),
    }


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma", "phi"])
@pytest.mark.parametrize("name", layouts())
def test_gradients_flow_between_positions_that_see_each_other_and_no_others(backbone, kind, name):
    layout, sees = layouts()[name]
    model, count = backbone(kind, 20), layout.place.shape[1]
    expected = torch.tensor([[sees(i, j) for j in range(count)] for i in range(count)])
    assert (layout.visible()[0] == expected).all()
    width = model.get_input_embeddings().weight.shape[1]
    inputs = torch.randn(1, count, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = attention_mask(layout.visible(), model)
    hidden = model.base_model(inputs_embeds=inputs, position_ids=layout.place, attention_mask=mask, use_cache=False)[0]
    for i in range(count):
        (gradient,) = torch.autograd.grad(hidden[0, i, 0], inputs, retain_graph=True)
        assert ((gradient[0].abs().amax(-1) > 0) == expected[i]).all()  # through both layers


def test_masks_of_bool_and_of_numbers_are_the_same_and_other_attentions_are_refused(backbone):
    layout, _ = layouts()["noised"]
    model, tokens = backbone("llama", 20), torch.arange(14)[None]
    found = []
    for kind in ("sdpa", "eager"):
        model.set_attn_implementation(kind)
        mask = attention_mask(layout.visible(), model)
        found.append(model.base_model(tokens, position_ids=layout.place, attention_mask=mask, use_cache=False)[0])
    torch.testing.assert_close(*found)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"'flash_attention_2' takes no mask.*sdpa"):
        attention_mask(layout.visible(), model)


def test_a_backbone_that_sees_by_no_mask_is_refused(backbone):
    check_masks(backbone("qwen3", 20))
    with pytest.raises(ValueError, match="MambaForCausalLM cannot denoise"):
        check_masks(MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1)).eval())


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


# What is noised


def test_a_shift_keeps_the_ends_and_lets_less_be_known_early():
    times = torch.linspace(0, 1, 11)
    assert (shifted(times, 1.0) == times).all() and shifted(times, 3.0)[[0, -1]].tolist() == [0, 1]
    assert (shifted(times, 3.0)[1:-1] < times[1:-1]).all()
    unknown = 1 - times  # LaViDa's formula, of what is not known
    torch.testing.assert_close(1 - shifted(times, 3.0), 3 * unknown / (1 + 2 * unknown))
    assert sum(Denoising(shift=3.0).schedule(16, 8)[:4]) < sum(Denoising().schedule(16, 8)[:4])


def test_as_much_is_known_as_the_time_says_and_never_all():
    uniform = torch.rand(4000, 8, generator=torch.Generator().manual_seed(0))
    known = known_at(torch.full((4000, 1), 0.4), uniform)
    assert abs(known.float().mean() - 0.4) < 0.01 and not known.all(1).any()
    assert not known_at(torch.ones(4000, 1), uniform).all(1).any()


def test_the_metric_path_begins_anywhere_and_ends_at_its_target():
    path, vectors = MetricPath(), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(5)
    torch.testing.assert_close(path.probabilities(torch.zeros(5), targets, vectors), torch.full((5, 5), 0.2))
    assert (path.probabilities(torch.full((5,), 1 - 1e-5), targets, vectors).diagonal() > 0.999).all()
    t = torch.tensor([0.1, 0.3, 0.5, 0.8], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(path.beta(t).sum(), t)
    torch.testing.assert_close(path.beta_rate(t.detach()), slope)


def test_jumps_have_the_marginals_of_the_path():
    path, generator = MetricPath(), torch.Generator().manual_seed(0)
    vectors = torch.tensor([[0.0], [0.4], [1.1], [1.5], [3.0]])
    count, steps = 20_000, 200
    tokens, targets = torch.randint(5, (1, count), generator=generator), torch.full((1, count), 1)
    for step in range(steps):
        time = torch.full((1, count), step / steps)
        if step in (40, 100, 160):
            found = tokens[0].bincount(minlength=5)
            expected = path.probabilities(time[0, :1], targets[0, :1], vectors)[0]
            error = 4 * (expected * (1 - expected) / count).sqrt() + 0.01  # and what steps of finite size leave
            assert ((found / count - expected).abs() < error).all()
        tokens = path.jump(time, 1 / steps, tokens, targets, vectors, torch.rand(1, count, 2, generator=generator))


# What is learned


def row(lm, ids):
    examples = [lm.sequences.text_to_image("a red fox", ids[0]), lm.sequences.image_to_text(ids[1], "a bell")]
    return collate_packed([*examples, lm.sequences.text_only("two kites")], lm.sequences.pad, 80)


def test_what_is_written_in_order_is_learned_as_before(adapted, ids):
    lm = adapted(text_block=4)
    batch = row(lm, ids)
    in_order, denoised, weights = training(lm).losses(**batch)
    plain = token_loss(lm.model, lm.vocabulary, **batch)
    for name, value in vars(plain).items():
        torch.testing.assert_close(getattr(in_order, name), value, rtol=1e-5, atol=1e-5)
    assert denoised.isfinite().all() and (weights == 1).all()
    (denoised.sum() + in_order.mean).backward()
    assert all(weight.grad.isfinite().all() for weight in lm.model.parameters())


def test_denoised_tokens_are_foretold_as_in_a_row_of_their_own(adapted, ids):
    lm = adapted()
    module = training(lm, adapt=AdaptConfig(complementary=False))
    example = lm.sequences.text_to_image("a red fox", ids[0])
    torch.manual_seed(0)
    _, denoised, _ = module.losses(**collate([example], lm.sequences.pad))
    torch.manual_seed(0)
    tokens, targets, *_, start, _, _ = module.copies(
        example.input_ids, example.labels, torch.arange(len(example.input_ids))
    )
    slow = []
    for first in start.unique().tolist():
        block = start == first
        network = UncachedNetwork(lm.model, [example.input_ids[:first].tolist()], 6)
        logits = lm.model.get_output_embeddings()(network.look(tokens[None, :0], tokens[block][None]))[0]
        unknown = targets[block] >= 0
        slow.append(torch.nn.functional.cross_entropy(logits[unknown], targets[block][unknown], reduction="none"))
    torch.testing.assert_close(denoised, torch.cat(slow))


def test_images_and_answers_are_cut_into_blocks(adapted, ids):
    lm = adapted("instruction", text_block=4)
    talk = lm.sequences.conversation([([ids[0], "what is it?"], ["a red fox in the snow"]), (["draw"], ["so", ids[1]])])
    config = DenoiseConfig.from_config(lm.model.config)
    places = torch.arange(len(talk.input_ids))
    found = list(blocks_of(talk.input_ids, talk.labels, places, lm.vocabulary, config, lm.sequences.eos))
    image = [block for block in found if block.targets[0] >= lm.vocabulary.text_size]
    assert [len(block.targets) for block in image] == [1, 2, 3]
    assert torch.cat([block.targets for block in image]).tolist() == lm.vocabulary.to_tokens(ids[1]).tolist()
    text = [block for block in found if block not in image]
    assert all(len(block.targets) == 4 for block in text)
    answer = [*lm.sequences.encode_text(" a red fox in the snow"), lm.sequences.eos]
    first = text[: -(-len(answer) // 4)]
    told = torch.cat([block.targets for block in first]).tolist()
    assert told[: len(answer)] == answer and set(told[len(answer) :]) <= {lm.sequences.eos}
    assert torch.cat([block.targets for block in text[len(first) :]]).tolist().count(lm.vocabulary.boi) == 1
    starts = [block.start for block in first]
    assert starts == list(range(starts[0], starts[0] + 4 * len(first), 4))
    assert talk.input_ids[starts[0] :][: len(answer)].tolist() == answer


def test_complementary_masks_supervise_each_token_once_and_vary_less(adapted, ids):
    lm = adapted(blocks=(6,))
    twice, once = (training(lm, adapt=AdaptConfig(complementary=both)) for both in (True, False))
    targets = lm.vocabulary.to_tokens(ids[0])
    for seed in range(20):
        torch.manual_seed(seed)
        parts = list(twice.noised(targets))
        assert (sum(unknown.int() for _, unknown in parts) == 1).all() if len(parts) == 2 else parts[0][1].all()
        for tokens, unknown in parts:
            assert (tokens[~unknown] == targets[~unknown]).all() and (tokens[unknown] == lm.vocabulary.mask).all()
    batch = collate([lm.sequences.text_to_image("a red fox", ids[0])], lm.sequences.pad)
    double = {name: rows.repeat(2, 1) for name, rows in batch.items()}
    weight = lm.model.base_model.layers[0].mlp.down_proj.weight

    def spread(module, batch):
        torch.manual_seed(0)
        gradients = []
        for _ in range(100):
            _, denoised, _ = module.losses(**batch)
            gradients.append(torch.autograd.grad(denoised.sum() / len(denoised), weight)[0])
        return torch.stack(gradients).var(0).sum()

    assert spread(twice, batch) < 0.8 * spread(once, double)  # of two copies each, drawn apart in the second


def test_by_likelihood_blocks_count_alike_whatever_is_masked(adapted, ids):
    lm = adapted(blocks=(6,))
    module = training(lm, adapt=AdaptConfig(likelihood=True, complementary=False))
    batch = collate([lm.sequences.image_only(ids[0])], lm.sequences.pad)
    sums = [float(module.losses(**batch)[2].sum()) for _ in range(10)]
    assert sums == pytest.approx([6.0] * 10)


TEMPLATES = [f"{colour} {thing}" for colour in ("red", "blue", "yellow", "green") for thing in ("fox", "bell", "kite")]


def captioned(count, seed):
    """Images whose coarsest ids tell their captions, all of one template."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(TEMPLATES), (count,), generator=generator)
    ids = torch.randint(16, (count, 6), generator=generator)
    ids[:, 5], ids[:, 4] = which // 3, which % 3 + 8
    return ids, [f"a {TEMPLATES[i]} on a green ground" for i in which]


def caption_batches(lm, steps, seed=0):
    for step in range(steps):
        pairs = zip(*captioned(16, seed + step), strict=True)
        yield collate([lm.sequences.image_to_text(*pair) for pair in pairs], lm.sequences.pad)


def test_first_in_order_then_denoising_learns_better_and_sure_words_come_at_once(adapted, train_steps):
    losses, models, steps = {}, {}, 150
    for name, adapt in {"staged": AdaptConfig(in_order_steps=70), "alone": AdaptConfig(in_order=0.0)}.items():
        lm = adapted(text_block=14)
        train_steps(training(lm, steps, adapt, optimizer="muon", lr=1e-2), list(caption_batches(lm, steps)))
        torch.manual_seed(0)
        lm.model.eval()
        with torch.no_grad():
            found = [training(lm).losses(**batch)[1] for batch in caption_batches(lm, 8, seed=10_000)]
        losses[name], models[name] = float(torch.cat(found).mean()), lm
    assert losses["staged"] < losses["alone"]

    # Dimple's confident decoding (arXiv:2505.16990), at equal exact match.
    ids, captions = captioned(24, 20_000)
    found = [
        models["staged"].generate_batch(list(ids), output="text", temperature=0.0, denoising=how)
        for how in (Denoising(text_steps=14, threshold=1.0), Denoising(text_steps=14, threshold=0.8))
    ]
    right = [sum(answer.text == c for answer, c in zip(answers, captions, strict=True)) for answers in found]
    passes = [sum(answer.passes for answer in answers) for answers in found]
    print(losses, right, passes)
    assert right[1] >= right[0] > 12 and passes[1] < 0.5 * passes[0]


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


def test_a_row_of_padding_becomes_the_mask(make_lm, text_tokenizer):

    model = tiny_llama(TinyLlamaConfig(width=16, depth=1, num_heads=2), text_tokenizer)
    model, tokenizer = expand_vocabulary(model, text_tokenizer, codebook_size=16, num_tokens=6, multiple=64)
    rows = model.get_input_embeddings().weight.shape[0]
    kept = model.get_input_embeddings().weight[: VisualVocabulary.from_config(model.config).size].clone()
    model, tokenizer = add_mask(model, tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == rows
    assert (model.get_input_embeddings().weight[: len(kept)] == kept).all()
