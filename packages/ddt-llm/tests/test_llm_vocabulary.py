import pytest
import torch

from ddt_llm import VisualVocabulary


@pytest.mark.parametrize("order", ["coarse_to_fine", "tokenizer"])
def test_orders_round_trip(order):
    vocabulary = VisualVocabulary(text_size=100, codebook_size=16, num_tokens=6, visual_order=order)
    ids = torch.randint(16, (5, 6))
    tokens = vocabulary.to_tokens(ids)
    assert torch.equal(vocabulary.to_ids(tokens), ids)
    assert torch.equal(tokens[:, 0] - 100, ids[:, -1 if order == "coarse_to_fine" else 0])


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
