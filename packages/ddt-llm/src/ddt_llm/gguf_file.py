"""A language model as a GGUF file, for llama.cpp and all that is built on it (extra `[gguf]`)."""

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from ddt_llm.chat import for_plain_jinja, tokenizer_for_chat
from ddt_llm.limits import check_setting
from ddt_llm.model import MultimodalLM
from ddt_llm.positions import most_positions
from ddt_llm.vocabulary import VisualVocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

Kind = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]  # of matrices; vectors stay f32

# How llama.cpp names the ways in which byte-level tokenizers cut text into words, by their regular expression.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {LLAMA3: "llama-bpe", LLAMA3.replace("{1,3}", ""): "qwen2"}


def write_gguf(lm: MultimodalLM, file: str | Path, kind: Kind = "f16") -> None:
    """Write a model of LLaMA's architecture with its tokenizer and chat template; the file appears whole.

    Args:
        kind: Of matrices: floats, or blocks of 32 weights in 8 or 4 bits (`q8_0`, `q4_0`; the embedding then in 8).

    Raises:
        ValueError: If the extra `gguf` is missing, the backbone is no LLaMA or has scaled positions, blocks of 32 do
            not fit its rows, or the tokenizer is none that llama.cpp knows by name.
    """
    check_setting("kind", Kind, kind)
    try:
        from gguf import GGUFWriter
    except ModuleNotFoundError as error:
        raise ValueError("GGUF files are written with: pip install gguf, or the extra [gguf]") from error
    config = lm.model.config
    if config.model_type != "llama" or config.attention_bias or config.mlp_bias:
        raise ValueError(
            f"the backbone ({config.model_type}) must be a LLaMA without biases; use llama.cpp's converter"
        )
    if (scaling := config.rope_parameters.get("rope_type", "default")) != "default":
        raise ValueError(f"rope_type ({scaling}) must be default; use llama.cpp's converter on the model's folder")
    if kind in ("q8_0", "q4_0") and (odd := [s for s in (config.hidden_size, config.intermediate_size) if s % 32]):
        raise ValueError(f"kind ({kind}) has blocks of 32 weights, which a width of {odd[0]} does not fit; use f16")
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=file.parent) as scratch:
        writer = GGUFWriter(Path(scratch) / file.name, "llama")
        _describe(writer, config, kind)
        _add_tokenizer(writer, lm)
        _add_weights(writer, lm, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        (Path(scratch) / file.name).replace(file)


def image_grammar(vocabulary: VisualVocabulary) -> str:
    """Return a grammar of llama.cpp (GBNF) for one image and nothing else: `<boi>`, K visual tokens, `<eoi>`.

    Tokens stand there by their ids, so that no text that looks like one is written in its place.

    Example:
        >>> print(image_grammar(VisualVocabulary(text_size=5, codebook_size=2, num_tokens=3)))
        root ::= <[7]> visual{3} <[8]>
        visual ::= <[5]> | <[6]>
    """
    codes = range(vocabulary.visual.start, vocabulary.visual.stop)
    visual = " | ".join(f"<[{token}]>" for token in codes)
    return f"root ::= <[{vocabulary.boi}]> visual{{{vocabulary.num_tokens}}} <[{vocabulary.eoi}]>\nvisual ::= {visual}"


def _describe(writer: "GGUFWriter", config: "PreTrainedConfig", kind: Kind) -> None:
    from gguf import LlamaFileType

    width = config.head_dim
    writer.add_name("ddt")
    writer.add_file_type(getattr(LlamaFileType, {"f32": "ALL_F32"}.get(kind, f"MOSTLY_{kind.upper()}")))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(most_positions(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: "GGUFWriter", lm: MultimodalLM) -> None:
    from gguf import TokenType

    tokenizer = tokenizer_for_chat(lm.sequences, lm.template, most_positions(lm.model.config))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    rows = lm.model.get_input_embeddings().weight.shape[0]
    names = [f"<padding_{row}>" for row in range(rows)]
    types = [TokenType.UNUSED] * rows
    special = {token["id"] for token in state["added_tokens"] if token["special"]}
    for name, token in tokenizer.get_vocab().items():
        names[token] = name
        types[token] = TokenType.CONTROL if token in special else TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut(state, tokenizer))
    writer.add_token_list(names)
    writer.add_token_types(types)
    writer.add_token_merges(
        [" ".join(merge) if isinstance(merge, list) else merge for merge in state["model"]["merges"]]
    )
    writer.add_bos_token_id(lm.sequences.bos)
    writer.add_eos_token_id(lm.sequences.eos)
    writer.add_pad_token_id(lm.sequences.pad)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(for_plain_jinja(tokenizer.chat_template))


def _cut(state: dict, tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return llama.cpp's name of how a byte-level tokenizer cuts text into words."""
    steps = state["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if state["model"]["type"] == "BPE" and kinds[-1] == "ByteLevel" and not state.get("normalizer"):
        if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and (name := CUTS.get(steps[0]["pattern"].get("Regex"))):
            return name
    raise ValueError("llama.cpp has no name for this text tokenizer; use its converter on the model's folder")


def _add_weights(writer: "GGUFWriter", lm: MultimodalLM, kind: Kind) -> None:
    from gguf import MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map, quants

    config, state = lm.model.config, lm.model.state_dict()
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for name, weight in state.items():
        weight = weight.detach().float().cpu()
        if part := re.search(r"\.([qk])_proj\.", name):
            heads = config.num_attention_heads if part[1] == "q" else config.num_key_value_heads
            weight = _interleaved(weight, heads)
        here = "f32" if weight.ndim < 2 else "q8_0" if kind == "q4_0" and "embed" in name else kind
        values = quants.quantize(weight.numpy(), quantized := GGMLQuantizationType[here.upper()])
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values, raw_dtype=quantized)


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Reorder rows [H * E, D] from RoPE's layout of halves (transformers) to that of pairs (llama.cpp)."""
    halves = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2).contiguous()
