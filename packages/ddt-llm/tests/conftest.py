import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ddt_llm import (
    DenoiseConfig,
    MultimodalLM,
    TinyLlamaConfig,
    add_mask,
    expand_vocabulary,
    tiny_llama,
    train_text_tokenizer,
)

TEXTS = [
    "a red fox left of a bell",
    "two blue kites on a green ground",
    "what colour is the fox?",
    "make the bell yellow",
]


SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
HEADS = {"head_dim": 8}
BUILD = {
    "llama": lambda v: LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=v)),
    "smollm2": lambda v: LlamaForCausalLM(
        LlamaConfig(**SMALL, vocab_size=v, tie_word_embeddings=True, rope_theta=1e5, rms_norm_eps=1e-5)
    ),
    "qwen2": lambda v: Qwen2ForCausalLM(Qwen2Config(**SMALL, vocab_size=v, tie_word_embeddings=True)),
    "qwen3": lambda v: Qwen3ForCausalLM(Qwen3Config(**SMALL, **HEADS, vocab_size=v)),
    "gemma": lambda v: GemmaForCausalLM(GemmaConfig(**SMALL, **HEADS, vocab_size=v)),
    "gemma2": lambda v: Gemma2ForCausalLM(Gemma2Config(**SMALL, **HEADS, vocab_size=v)),
    "mistral": lambda v: MistralForCausalLM(MistralConfig(**SMALL, vocab_size=v)),
    "phi3": lambda v: Phi3ForCausalLM(Phi3Config(**SMALL, vocab_size=v)),
    "phi": lambda v: PhiForCausalLM(
        PhiConfig(**{**SMALL, "num_key_value_heads": 2}, vocab_size=v)
    ),  # its head has a bias
    "gpt2": lambda v: GPT2LMHeadModel(GPT2Config(vocab_size=v, n_embd=16, n_layer=2, n_head=2, n_positions=128)),
}


@pytest.fixture
def backbone():
    """A function that builds a tiny random text model of a kind of BUILD with a number of rows."""

    def build(kind, rows):
        torch.manual_seed(0)
        return BUILD[kind](rows).eval()

    return build


@pytest.fixture(params=BUILD)
def any_backbone(request, backbone):
    """The same for every kind in turn: takes the number of rows."""
    return lambda rows: backbone(request.param, rows)


@pytest.fixture(scope="session")
def text_tokenizer():
    return train_text_tokenizer(TEXTS, vocab_size=400)


@pytest.fixture
def make_lm(text_tokenizer):
    """A function that builds a random language model of 16 codes and K = 6 with the given template."""

    def make(template="caption", seed=0, visual_order="coarse_to_fine", **config):
        small = TinyLlamaConfig(**{"width": 32, "depth": 2, "num_heads": 2, "max_positions": 128, **config})
        model, tokenizer = expand_vocabulary(
            tiny_llama(small, text_tokenizer, seed),
            text_tokenizer,
            codebook_size=16,
            num_tokens=6,
            visual_order=visual_order,
        )
        with torch.no_grad():  # larger weights than at initialisation, so that predictions differ clearly
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(4)
        return MultimodalLM(model, tokenizer, template)

    return make


@pytest.fixture
def adapted(make_lm):
    """A function that builds a random model that may denoise."""

    def make(template="caption", **settings):
        lm = make_lm(template)
        model, text_tokenizer = add_mask(lm.model, lm.text_tokenizer)
        DenoiseConfig(**{"blocks": (1, 2, 3), **settings}).record(model.config)
        return MultimodalLM(model.eval(), text_tokenizer, template)

    return make


@pytest.fixture
def ids():
    """Visual ids of four images, int64 [4, 6]."""
    return torch.randint(16, (4, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def train_steps(tmp_path):
    """A function that trains a module on a list of batches, one step each, and returns the trainer."""

    def train(module, batches, callbacks=(), ckpt_path=None):
        trainer = Trainer(
            accelerator="cpu",
            max_steps=len(batches),
            logger=False,
            callbacks=list(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return train
