"""How docstrings and fields of this repository are read for the API pages: an extension of griffe."""

import re

import griffe


class Docstrings(griffe.Extension):
    """Examples stand under `Example:`; what a setting means stands in the comment at the end of its line."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        """Make a section of each example, whose code would be read as Markdown otherwise."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)

    def on_class_members(self, *, cls: griffe.Class, **kwargs) -> None:
        """List the fields of a dataclass with their comments, and show no attribute that nothing is said about."""
        said = []
        for attribute in (each for each in cls.members.values() if isinstance(each, griffe.Attribute)):
            if not attribute.docstring:
                attribute.public = False
                lines = attribute.filepath.read_text().splitlines()[attribute.lineno - 1 : attribute.endlineno]
                comment = " ".join(line.partition("  # ")[2].strip() for line in lines).strip()
                if comment and "dataclass" in cls.labels:
                    said.append(f"    {attribute.name}: {comment[0].upper()}{comment[1:]}")
        if said and cls.docstring:
            cls.docstring.value = "\n".join([cls.docstring.value, "", "Attributes:", *said])
        if "__post_init__" in cls.members:
            cls["__post_init__"].public = False
