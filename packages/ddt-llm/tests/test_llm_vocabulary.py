from typing import get_args

import pytest
import torch

from ddt_llm import VisualVocabulary
from ddt_llm.vocabulary import VisualOrder


@pytest.mark.parametrize("order", get_args(VisualOrder))
def test_orders_round_trip(order):
    vocabulary = VisualVocabulary(text_size=100, codebook_size=16, num_tokens=6, visual_order=order)
    ids = torch.randint(16, (5, 6))
    tokens = vocabulary.to_tokens(ids)
    assert torch.equal(vocabulary.to_ids(tokens), ids)
    assert torch.equal(tokens[:, 0] - 100, ids[:, vocabulary.order[0]])
    assert sorted(vocabulary.order) == list(range(6))


def test_orders_are_two_that_run_through_and_three_that_are_fixed():
    def order(name):
        return VisualVocabulary(text_size=9, codebook_size=8, num_tokens=64, visual_order=name).order

    assert order("tokenizer") == order("coarse_to_fine")[::-1] == list(range(64))
    shuffled = [order(f"shuffled-{n}") for n in range(3)]
    assert shuffled[0][:8] == [44, 38, 42, 54, 24, 28, 56, 17]  # runs rely on it
    assert all(a != b for a in shuffled for b in (order("tokenizer"), order("coarse_to_fine")))
    assert shuffled[0] != shuffled[1] != shuffled[2] != shuffled[0]


def test_ids_that_do_not_belong_here_are_refused():
    vocabulary = VisualVocabulary(text_size=100, codebook_size=16, num_tokens=6)
    with pytest.raises(ValueError, match="num_tokens 6"):
        vocabulary.to_tokens(torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="outside the codebook of 16"):
        vocabulary.to_tokens(torch.full((2, 6), 16))


@pytest.mark.parametrize("settings", [{"num_tokens": 0}, {"visual_order": "random"}])
def test_impossible_vocabularies_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        VisualVocabulary(**{"text_size": 10, "codebook_size": 8, "num_tokens": 4, **settings})
