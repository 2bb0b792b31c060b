"""How docstrings and fields of this repository are read for the API pages: an extension of griffe."""

import ast
import re

import griffe


class Docstrings(griffe.Extension):
    """Examples stand under `Example:`; what a setting means stands in the comment at the end of its line."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        """Make a section of each example, whose code would be read as Markdown otherwise."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)

    def on_attribute_instance(self, *, node: ast.AST, attr: griffe.Attribute, **kwargs) -> None:
        """Take the comment of a dataclass's field for its docstring."""
        if attr.parent.is_class and "dataclass" in attr.parent.labels and not attr.docstring:
            lines = attr.filepath.read_text().splitlines()[attr.lineno - 1 : attr.endlineno]
            if said := " ".join(line.partition("  # ")[2].strip() for line in lines).strip():
                attr.docstring = griffe.Docstring(said[0].upper() + said[1:], parent=attr)
