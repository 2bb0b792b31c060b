"""A small LLaMA with random weights and a byte-level BPE: everything a laptop needs to start from nothing."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from ddt_llm.sequences import ASSISTANT, USER

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>")


@dataclass(frozen=True)
class TinyLlamaConfig:
    """Size of a LLaMA trained from scratch; the defaults give 1.8 M weights beside the embedding.

    Raises:
        ValueError: if `width` cannot be split into heads of even width.
    """

    width: int = 192
    depth: int = 4
    num_heads: int = 6
    mlp_ratio: float = 8 / 3
    max_positions: int = 1024
    attention: Literal["sdpa", "eager"] = "sdpa"

    def __post_init__(self):
        if self.width % (2 * self.num_heads):
            raise ValueError(f"width ({self.width}) must be divisible by 2 * num_heads ({2 * self.num_heads})")


def tiny_llama(config: TinyLlamaConfig, text_tokenizer: "PreTrainedTokenizerFast", seed: int = 0) -> "LlamaForCausalLM":
    """Build a transformers LLaMA with random weights and tied embeddings for a text tokenizer.

    >>> tokenizer = train_text_tokenizer(["a red fox", "a blue bell"], vocab_size=300)
    >>> tiny_llama(TinyLlamaConfig(width=32, depth=1, num_heads=2), tokenizer).config.vocab_size == len(tokenizer)
    True
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(text_tokenizer),
                hidden_size=config.width,
                intermediate_size=32 * round(config.width * config.mlp_ratio / 32),
                num_hidden_layers=config.depth,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_heads,
                max_position_embeddings=config.max_positions,
                tie_word_embeddings=True,
                bos_token_id=text_tokenizer.bos_token_id,
                eos_token_id=text_tokenizer.eos_token_id,
                pad_token_id=text_tokenizer.pad_token_id,
                attn_implementation=config.attention,
            )
        )


def train_text_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE: it encodes any text without loss, and frequent words with their space as one token.

    The words `USER` and `ASSISTANT` of the instruction template are counted as if one text in twenty held them.

    Args:
        texts: What the model will read, captions for example.
        vocab_size: Most entries it may have, with `<bos>`, `<eos>` and `<pad>`; fewer if the texts have no more pairs.

    >>> tokenizer = train_text_tokenizer(["a red fox", "a red bell"], vocab_size=300)
    >>> tokenizer.decode(tokenizer("a crème fox", add_special_tokens=False).input_ids)
    'a crème fox'

    Raises:
        ValueError: if there is no text or `vocab_size` has no room for 256 bytes and three special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = list(texts)
    if not texts:
        raise ValueError("texts is empty: a text tokenizer needs some text to train on")
    if vocab_size < 256 + len(SPECIAL_TOKENS):
        raise ValueError(
            f"vocab_size ({vocab_size}) must be at least {256 + len(SPECIAL_TOKENS)}: bytes, special tokens"
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts + [USER + ASSISTANT] * (1 + len(texts) // 20), trainer)
    bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos, eos_token=eos, pad_token=pad)
