import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from ddt_llm import MultimodalLM, TinyLlamaConfig, expand_vocabulary, tiny_llama, train_text_tokenizer

TEXTS = [
    "a red fox left of a bell",
    "two blue kites on a green ground",
    "what colour is the fox?",
    "make the bell yellow",
]


@pytest.fixture(scope="session")
def text_tokenizer():
    return train_text_tokenizer(TEXTS, vocab_size=400)


@pytest.fixture
def make_lm(text_tokenizer):
    """A function that builds a random language model of 16 codes and K = 6 with the given template."""

    def make(template="caption", seed=0, **config):
        small = TinyLlamaConfig(**{"width": 32, "depth": 2, "num_heads": 2, "max_positions": 128, **config})
        model, tokenizer = expand_vocabulary(
            tiny_llama(small, text_tokenizer, seed), text_tokenizer, codebook_size=16, num_tokens=6
        )
        with torch.no_grad():  # larger weights than at initialisation, so that predictions differ clearly
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(4)
        return MultimodalLM(model, tokenizer, template)

    return make


@pytest.fixture
def ids():
    """Visual ids of four images, int64 [4, 6]."""
    return torch.randint(16, (4, 6), generator=torch.Generator().manual_seed(0))
