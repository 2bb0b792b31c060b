"""Encoder and vector quantizer of discrete diffusion timestep tokens: images -> ids."""

from ddt_tokenizer.codec import Codec
from ddt_tokenizer.config import TokenizerConfig
from ddt_tokenizer.encoder import Encoder, EncoderConfig
from ddt_tokenizer.latents import LatentConfig
from ddt_tokenizer.quantizer import Quantized, QuantizerConfig, VectorQuantizer
from ddt_tokenizer.tokenizer import DDTTokenizer

__all__ = [
    "Codec",
    "DDTTokenizer",
    "Encoder",
    "EncoderConfig",
    "LatentConfig",
    "Quantized",
    "QuantizerConfig",
    "TokenizerConfig",
    "VectorQuantizer",
]
