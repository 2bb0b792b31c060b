"""What a folder tells tools that know nothing of this package: chat template, `<bos>`, lengths, end of an answer."""

import copy
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ddt_llm.sequences import ASSISTANT, USER, Part, Sequences, Template
from ddt_llm.vocabulary import VisualVocabulary

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

CHAT_TEMPLATE = "chat_template.jinja"  # the file that transformers writes it to

# Texts take a space before them and images none, as in `Sequences`. A text that begins with an image is spelled out
# already, and so is an answer that begins with a space: it was cut out of what a model wrote.
CONTENT = """\
{%- macro text(text, role) -%}
{{ text if not text or text.startswith('<boi>') or (role == 'assistant' and text[0] == ' ') else SPACE ~ text }}
{%- endmacro -%}
{%- macro content(message) -%}
{%- if message.content is string -%}
{{ text(message.content, message.role) }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
<boi>{% for id in ORDER %}<v_{{ id }}>{% endfor %}<eoi>
{%- else -%}
{{ text(part.text, message.role) }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
# Neighbouring messages of one side are one turn, and a system speaks for the user: a model knows two sides.
INSTRUCTION = """\
{{ bos_token }}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{%- generation -%}
{{ content(message) }}
{%- if loop.last or loop.nextitem.role != 'assistant' -%}{{ eos_token }}{%- endif -%}
{%- endgeneration -%}
{%- else -%}
{%- if loop.first or loop.previtem.role == 'assistant' -%}USER:{%- endif -%}
{{ content(message) }}
{%- if (add_generation_prompt if loop.last else loop.nextitem.role == 'assistant') -%}{{ ' ASSISTANT:' }}{%- endif -%}
{%- endif -%}
{%- endfor -%}
"""
CAPTION = """\
{%- if messages | length > 2 or messages[0].role == 'assistant' -%}
{{ raise_exception('this model takes one caption or one image, and no conversation: tune it on instructions first') }}
{%- endif -%}
{{ bos_token }}{{ content(messages[0]) }}
{%- if messages | length == 2 -%}
{%- generation -%}{{ content(messages[1]) }}{{ eos_token }}{%- endgeneration -%}
{%- endif -%}
"""


def chat_template(template: Template, vocabulary: VisualVocabulary) -> str:
    """Return a Jinja template that spells messages as `Sequences` lays them out.

    The content of a message is a text, or parts: `{"type": "text", "text": ...}` and `{"type": "image", "ids": ...}`
    with ids in tokenizer order. A text may hold images too, as `VisualVocabulary.spell` writes them. What the assistant
    says stands between `{% generation %}` marks, which give trainers their masks.

    Example:
        >>> import jinja2
        >>> vocabulary = VisualVocabulary(text_size=9, codebook_size=8, num_tokens=3)
        >>> jinja = jinja2.Template(for_plain_jinja(chat_template("instruction", vocabulary)))
        >>> content = [{"type": "image", "ids": [0, 5, 7]}, {"type": "text", "text": "make it blue"}]
        >>> messages = [{"role": "user", "content": content}]
        >>> jinja.render(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
        '<s>USER:<boi><v_7><v_5><v_0><eoi> make it blue ASSISTANT:'
    """
    orders = {"coarse_to_fine": "part.ids | reverse", "tokenizer": "part.ids"}
    shuffled = f"[{', '.join(f'part.ids[{i}]' for i in vocabulary.order)}]"
    content = CONTENT.replace("ORDER", orders.get(vocabulary.visual_order, shuffled))
    content = content.replace("SPACE", "' '" if template == "instruction" else "''")
    return content + (INSTRUCTION if template == "instruction" else CAPTION)


def for_plain_jinja(template: str) -> str:
    """Return a chat template without `{% generation %}`, a block that only transformers knows."""
    return template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")


def tokenizer_for_chat(
    sequences: Sequences, template: Template, longest: int | None = None
) -> "PreTrainedTokenizerFast":
    """Return a copy of the text tokenizer that says what other tools ask it.

    It puts `<bos>` before a text, pads on the left with a token that it has, names the most tokens of an input, and
    has the chat template; not where its own way with spaces gives a conversation other ids than the model was trained
    on, as that of LLaMA 2 does.
    """
    tokenizer = copy.deepcopy(sequences.text_tokenizer)
    tokenizer.bos_token, tokenizer.pad_token = tokenizer.convert_ids_to_tokens([sequences.bos, sequences.pad])
    tokenizer.add_bos_token = True
    tokenizer.padding_side = "left"
    # What is saved is what the base was made with, so say it there too.
    tokenizer.init_kwargs |= {"add_bos_token": True, "padding_side": "left"}
    if longest is not None:
        tokenizer.model_max_length = longest
    tokenizer.chat_template = chat_template(template, sequences.vocabulary)
    if not _agree(tokenizer, sequences, template):
        tokenizer.chat_template = None
        logger.warning("no chat template is saved: the text tokenizer joins texts otherwise than the model was trained")
    return tokenizer


def generation_config(sequences: Sequences, never: Sequence[int], longest: int | None = None) -> "GenerationConfig":
    """Return how transformers' `generate`, vLLM and others write by default: as `Sampling` does, until `<eos>`.

    Args:
        never: Tokens that are never written.
        longest: Most tokens of a prompt with its answer.
    """
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=sequences.bos,
        eos_token_id=sequences.eos,
        pad_token_id=sequences.pad,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        suppress_tokens=list(never) or None,
        **({} if longest is None else {"max_length": longest}),
    )


def _agree(tokenizer: "PreTrainedTokenizerFast", sequences: Sequences, template: Template) -> bool:
    """Compare the template's ids of a conversation with those that a model is trained on."""
    image = torch.arange(sequences.vocabulary.num_tokens) % sequences.vocabulary.codebook_size
    asked: list[Part] = [image, "What colour is it, 2 or 3?\n"] if template == "instruction" else ["A red fox."]
    history = [(["Draw a fox. "], ["Here it is:", image])] if template == "instruction" else []
    sides = [("user", asked)]
    for question, answer in history:
        sides = [("user", question), ("assistant", answer), *sides]
    messages = [{"role": role, "content": [_part(part) for part in parts]} for role, parts in sides]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return ids == sequences.prompt(asked, template, history)


def _part(part: Part) -> dict[str, object]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "ids": part.tolist()}


assert USER in INSTRUCTION and ASSISTANT in INSTRUCTION  # spelled there once more, to be read as it stands
