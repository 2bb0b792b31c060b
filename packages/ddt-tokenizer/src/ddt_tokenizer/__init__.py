"""Encoder and vector quantizer of discrete diffusion timestep tokens: images -> ids."""

from importlib.metadata import version

from ddt_tokenizer.codec import Codec
from ddt_tokenizer.config import TokenizerConfig
from ddt_tokenizer.encoder import Encoder, EncoderConfig
from ddt_tokenizer.latents import LatentConfig
from ddt_tokenizer.quantizers.binary import BinaryConfig
from ddt_tokenizer.quantizers.quantizer import Quantized, Quantizer
from ddt_tokenizer.quantizers.scalar import ScalarConfig
from ddt_tokenizer.quantizers.vector import VectorConfig, VectorQuantizer
from ddt_tokenizer.tokenizer import DDTTokenizer

__version__ = version("ddt-tokenizer")
QuantizerConfig = VectorConfig  # its name in 0.1.0

__all__ = [
    "BinaryConfig",
    "Codec",
    "DDTTokenizer",
    "Encoder",
    "EncoderConfig",
    "LatentConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "ScalarConfig",
    "TokenizerConfig",
    "VectorConfig",
    "VectorQuantizer",
]
