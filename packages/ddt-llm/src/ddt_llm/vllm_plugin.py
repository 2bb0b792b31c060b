"""The grammar of images as a logits processor of vLLM, found by its entry point `vllm.logits_processors`.

vLLM loads it for every model it serves; models without a visual vocabulary are left alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from ddt_llm.image_blocks import ImageBlocks
from ddt_llm.vocabulary import VisualVocabulary

OUTPUT = "ddt_output"  # in `SamplingParams.extra_args`, or `vllm_xargs` of a request: auto, image or text


class VLLMImageBlocks(AdapterLogitsProcessor):
    """Whole images, and no visual token outside of one, in every answer of a model of ours."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        super().__init__(vllm_config, device, is_pin_memory)
        config = vllm_config.model_config
        self.vocabulary = None
        if getattr(config.hf_config, "ddt", None) is not None:
            self.vocabulary = VisualVocabulary.from_config(config.hf_config)
            defaults = config.try_get_generation_config()
            self.eos, self.never = defaults["eos_token_id"], defaults.get("suppress_tokens") or ()

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse an unknown output.

        Raises:
            ValueError: If `ddt_output` is none of auto, image and text.
        """
        ImageBlocks(_ANY, 0, output=_output(sampling_params))

    def is_argmax_invariant(self) -> bool:
        """Return whether the likeliest token stays the same: no."""
        return False

    def new_req_logits_processor(self, params: Any) -> Callable[[list[int], list[int], Tensor], Tensor] | None:
        """Return what masks the logits [V] of a request, given prompt and answer; None for models of others."""
        if self.vocabulary is None:
            return None
        blocks = ImageBlocks(self.vocabulary, self.eos, self.never, _output(params))

        def mask(prompt_ids: list[int], output_ids: list[int], logits: Tensor) -> Tensor:
            hidden = blocks.hidden(prompt_ids, output_ids, len(logits))
            return logits.masked_fill_(hidden.to(logits.device), -torch.inf)

        return mask


_ANY = VisualVocabulary(text_size=1, codebook_size=1, num_tokens=1)


def _output(params: Any) -> Any:
    return (params.extra_args or {}).get(OUTPUT, "auto")
