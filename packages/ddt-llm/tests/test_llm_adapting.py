"""Adapting a model to denoise: who sees whom, what is noised, and how it is learned."""

import copy

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from ddt_llm import (
    DenoiseConfig,
    Denoising,
    OptimizerConfig,
    collate,
    collate_packed,
    token_loss,
)
from ddt_llm.corruption import MetricPath, known_at, shifted
from ddt_llm.denoise_config import AdaptConfig
from ddt_llm.denoise_training import DenoiseTraining, blocks_of
from ddt_llm.masks import Layout, attention_mask
from ddt_llm.network import UncachedNetwork
from ddt_llm.self_test import check_masks


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
    with pytest.raises(ValueError, match=r"'flash_attention_2' takes no mask.*sdpa"):
        check_masks(model)


def test_a_backbone_that_sees_by_no_mask_is_refused(backbone):
    check_masks(backbone("qwen3", 20))
    with pytest.raises(ValueError, match="MambaForCausalLM cannot denoise"):
        check_masks(MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1)).eval())


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
    assert abs(known.float().mean() - 0.4 * 7 / 8) < 0.01 and not known.all(1).any()
    at_any_time = known_at(torch.rand(4000, 1, generator=torch.Generator().manual_seed(1)), uniform)
    counts = (~at_any_time).sum(1).bincount(minlength=9) / 4000
    assert counts[0] == 0 and ((counts[1:] - 1 / 8).abs() < 0.02).all()  # four standard errors
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


@pytest.mark.parametrize("complementary", [False, True])
def test_by_likelihood_blocks_count_alike_whatever_is_masked(adapted, ids, complementary):
    lm = adapted(blocks=(6,))
    module = training(lm, adapt=AdaptConfig(likelihood=True, complementary=complementary))
    batch = collate([lm.sequences.image_only(ids[0])], lm.sequences.pad)
    sums = [float(module.losses(**batch)[2].sum()) for _ in range(10)]
    assert sums == pytest.approx([6.0] * 10)


@pytest.mark.parametrize("complementary", [False, True])
def test_by_likelihood_each_count_of_unknown_tokens_weighs_the_same(adapted, ids, complementary):
    """As where tokens are written in any order: the one with n unknown, itself among them, comes once for each n."""
    lm = adapted(blocks=(6,))
    module = training(lm, adapt=AdaptConfig(likelihood=True, complementary=complementary))
    tokens = lm.sequences.image_only(ids[0]).input_ids
    torch.manual_seed(0)
    sums, draws = torch.zeros(7), 3000
    for _ in range(draws):
        _, targets, weights, _, _, group, _ = module.copies(tokens, tokens, torch.arange(len(tokens)))
        for each in group.unique():
            unknown = (group == each) & (targets >= 0)
            sums[unknown.sum()] += weights[unknown].sum()
    assert sums[0] == 0 and ((sums[1:] / draws - 1).abs() < 0.15).all()


def test_a_batch_in_which_nothing_is_learned_has_a_loss_of_zero(adapted, train_steps):
    lm = adapted()
    before = copy.deepcopy(lm.model.state_dict())
    batch = collate([lm.sequences.text_only("two kites")], lm.sequences.pad)
    train_steps(training(lm, 1, AdaptConfig(in_order=0.0), weight_decay=0.0), [batch])
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


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


def test_words_that_are_sure_come_at_once_and_are_as_right(adapted, train_steps):
    """Confident decoding (Dimple, arXiv:2505.16990), at equal exact match; in order first, then both."""
    lm = adapted(text_block=14)
    module = training(lm, 220, AdaptConfig(in_order_steps=20), optimizer="muon", lr=1e-2)
    train_steps(module, list(caption_batches(lm, 220)))
    logged = module.trainer.callback_metrics
    assert logged["bits_per_denoised_token"] < 2 and logged["bits_per_text_token"] < 2

    ids, captions = captioned(24, 20_000)
    found = [
        lm.generate_batch(list(ids), output="text", temperature=0.0, denoising=how)
        for how in (Denoising(text_steps=14, threshold=1.0), Denoising(text_steps=14, threshold=0.8))
    ]
    right = [sum(answer.text == c for answer, c in zip(answers, captions, strict=True)) for answers in found]
    passes = [sum(answer.passes for answer in answers) for answers in found]
    assert right[1] >= right[0] > 12 and passes[1] < 0.5 * passes[0]
