"""Search at inference: best of n, beams over prefixes, verifiers, and what they cost."""

import itertools

import pytest
import torch

from ddt_llm import Sequences
from ddt_llm.search import CaptionLikelihood, Search, search


class Counting:
    """A verifier that counts what it sees, and wants certain ids."""

    def __init__(self, wanted):
        self.wanted, self.seen = wanted, []

    def __call__(self, images, ids, prompts):
        self.seen += ids.tolist()
        return (ids == self.wanted).float().mean(1)


def even(lm):
    """The same model, to which all tokens are alike."""
    with torch.no_grad():
        for weight in lm.model.parameters():
            weight.zero_()
    return lm


def test_the_best_of_one_is_what_generate_draws(make_lm):
    lm = make_lm()
    for seed in range(3):
        found = search(lm, "a red fox", None, Counting(torch.zeros(6)), Search(branch=1), seed)
        assert (found.best.ids == lm.generate("a red fox", seed=seed).ids).all() and found.calls == 1


def test_the_best_of_many_is_the_best_of_them(make_lm, ids):
    lm, verifier = make_lm(), Counting(ids[0])
    found = search(lm, "a bell", None, verifier, Search(branch=12), 5)
    drawn = lm.generate_batch(["a bell"] * 12, seed=5, output="image")
    rewards = [float((each.ids[0] == ids[0]).float().mean()) for each in drawn]
    assert found.reward == max(rewards) and len(verifier.seen) == found.calls == 12
    assert found.best.ids[0].tolist() == drawn[rewards.index(max(rewards))].ids[0].tolist()


@pytest.mark.parametrize("lookahead", [True, False])
def test_a_beam_keeps_prefixes_and_sees_as_many_images_as_it_says(make_lm, ids, lookahead):
    lm, how = make_lm(), Search(branch=3, width=2, prefixes=(1, 2, 4), lookahead=lookahead)
    verifier = Counting(ids[0])
    found = search(lm, "a bell", None, verifier, how, 2)
    assert len(verifier.seen) == found.calls == how.calls == 21
    assert found.best.ids[0].tolist() in verifier.seen
    again = search(lm, "a bell", None, Counting(ids[0]), how, 2)
    assert (again.best.ids == found.best.ids).all() and again.reward == found.reward
    turns = [verifier.seen[:3], *(verifier.seen[3 + 6 * i : 9 + 6 * i] for i in range(3))]
    for before, after, kept in zip(turns[:-1], turns[1:], how.prefixes, strict=True):
        starts = {tuple(each[6 - kept :]) for each in before}  # the coarsest ids stand last
        assert {tuple(each[6 - kept :]) for each in after} <= starts and len({tuple(e[6 - kept :]) for e in after}) <= 2
    if lookahead:
        assert found.reward == max(float((torch.tensor(each) == ids[0]).float().mean()) for each in verifier.seen)


def test_a_beam_that_draws_every_code_finds_the_best_image_of_all(make_lm):
    """Sixteen million images, drawn evenly, of which exhaustive search would find the one that is wanted."""
    lm = even(make_lm())
    wanted = torch.tensor([7, 1, 2, 3, 4, 5])

    def verifier(images, ids, prompts):
        return (ids == wanted).float() @ torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])

    how = Search(branch=80, prefixes=(1, 2, 3, 4, 5))  # 80 draws of 16 codes hardly miss one
    assert search(lm, "a bell", None, verifier, how, 1).best.ids[0].tolist() == wanted.tolist()


def test_with_a_verifier_that_knows_a_beam_needs_fewer_calls(make_lm):
    lm, wins = even(make_lm()), []
    for trial in range(6):
        wanted = torch.randint(16, (6,), generator=torch.Generator().manual_seed(trial))

        def from_coarse(images, ids, prompts, wanted=wanted):
            return (ids == wanted).flip(1).float().cumprod(1).sum(1)

        beam = Search(branch=24, prefixes=(1, 2, 3, 4, 5))
        plain = Search(branch=2 * beam.calls)
        wins.append([search(lm, "a bell", None, from_coarse, how, 1000 * trial).reward for how in (beam, plain)])
    rewards = torch.tensor(wins).mean(0)
    assert rewards[0] > rewards[1] + 0.3


@pytest.mark.parametrize("template", ["caption", "instruction"])
def test_the_model_itself_verifies_by_how_likely_the_caption_is(make_lm, ids, template):
    lm = make_lm(template)
    prompts = ["a red fox", "a bell", "two blue kites", "a bell"]
    found = CaptionLikelihood(lm)(None, ids, prompts)
    layout = Sequences(lm.vocabulary, lm.text_tokenizer)
    for each, prompt, reward in zip(ids, prompts, found, strict=True):
        if template == "caption":
            row, first = layout.image_to_text(each, prompt).input_ids, 9
        else:
            start = layout.prompt([each, "describe the picture"], template)
            row = torch.tensor([*start, *layout.encode_text(" " + prompt), layout.eos])
            first = len(start)
        with torch.no_grad():
            logs = lm.model(row[None]).logits[0].log_softmax(-1)
        slow = torch.stack([logs[i - 1, row[i]] for i in range(first, len(row))]).mean()
        torch.testing.assert_close(reward, slow, rtol=1e-4, atol=1e-4)


def test_prefixes_that_do_not_fit_are_told(make_lm):
    with pytest.raises(ValueError, match=r"prefixes \[2, 2\] must grow"):
        Search(prefixes=(2, 2))
    verifier = Counting(torch.zeros(6))
    with pytest.raises(ValueError, match=r"prefixes \[2, 6\] must be shorter than an image \(6 ids\)"):
        search(make_lm(), "a bell", None, verifier, Search(prefixes=(2, 6)))
    with pytest.raises(ValueError, match="coarse ids first, not tokenizer"):
        search(make_lm(visual_order="tokenizer"), "a bell", None, verifier, Search(prefixes=(2,)))


def test_seeds_of_rounds_do_not_overlap():
    for branch, width, rounds in itertools.product((1, 3), (1, 2), (1, 3)):
        how = Search(branch=branch, width=width, prefixes=tuple(range(1, rounds + 1)))
        used = list(range(branch))
        for turn in range(1, rounds + 1):
            first = branch * (1 + width * (turn - 1))
            used += range(first, first + branch * width)
        assert used == list(range(how.calls))
