"""ddt export gguf: a language model for llama.cpp, with the grammar that makes it draw."""

from pathlib import Path

from ddt_apps.models import load_language_model
from ddt_apps.run.atomic import writing
from ddt_llm.gguf_file import Kind, image_grammar, write_gguf


def export_gguf(run: Path, out: Path, kind: Kind = "f16") -> str:
    """Write the model of a run, and beside it `.gbnf`, and say how large it is.

    Raises:
        FileNotFoundError: If there is no such finished run.
        ValueError: If llama.cpp would not read the model rightly.
    """
    lm = load_language_model(run)
    write_gguf(lm, out, kind)
    grammar = out.with_suffix(".gbnf")
    with writing(grammar) as part:
        part.write_text(image_grammar(lm.vocabulary) + "\n")
    return f"{out} has {out.stat().st_size / 1e6:.1f} MB of {kind}; it draws held by {grammar}, see docs/exports.md"
