"""ddt-llm: any transformers causal LM plus a visual vocabulary."""

from importlib.metadata import version

from ddt_llm.backbone import TinyLlamaConfig, load_backbone, tiny_llama, train_text_tokenizer
from ddt_llm.batching import ContinuousBatch
from ddt_llm.denoise_config import DenoiseConfig
from ddt_llm.denoising import Denoising
from ddt_llm.expansion import add_mask, expand_vocabulary, remove_vocabulary
from ddt_llm.loss import TokenLoss, token_loss
from ddt_llm.model import Generation, MultimodalLM
from ddt_llm.optimizer import OptimizerConfig
from ddt_llm.packing import collate_packed, pack
from ddt_llm.sequences import Example, Sequences, collate
from ddt_llm.streaming import Event
from ddt_llm.visual_tokenizer import VisualTokenizer
from ddt_llm.vocabulary import VisualVocabulary

__version__ = version("ddt-llm")
__all__ = [
    "ContinuousBatch",
    "DenoiseConfig",
    "Denoising",
    "Event",
    "Example",
    "Generation",
    "MultimodalLM",
    "OptimizerConfig",
    "Sequences",
    "TinyLlamaConfig",
    "TokenLoss",
    "VisualTokenizer",
    "VisualVocabulary",
    "add_mask",
    "collate",
    "collate_packed",
    "expand_vocabulary",
    "load_backbone",
    "pack",
    "remove_vocabulary",
    "tiny_llama",
    "token_loss",
    "train_text_tokenizer",
]
