"""How docstrings and fields of this repository are read for the API pages: an extension of griffe."""

import re

import griffe

SEVERAL = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n {8}.*)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Examples stand under `Example:`; what a setting means stands in the comment at the end of its line."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        """Make a section of each example, whose code would be Markdown, and a line for each of `a, b: Of both`."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = SEVERAL.sub(
                lambda item: "\n".join(f"    {name}: {item[2]}" for name in item[1].split(", ")), text
            )

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        """List the fields of dataclasses with their comments, and show no attribute that nothing is said about."""
        for module in pkg.modules.values():
            self.on_package(pkg=module)
        for cls in pkg.classes.values():
            if not cls.is_alias:
                _list_fields(cls)


def _list_fields(cls: griffe.Class) -> None:
    said = []
    for attribute in [each for each in cls.members.values() if isinstance(each, griffe.Attribute)]:
        if not attribute.docstring:
            lines = attribute.filepath.read_text().splitlines()[attribute.lineno - 1 : attribute.endlineno]
            comment = " ".join(line.partition("  # ")[2].strip() for line in lines).strip()
            if comment and "dataclass" in cls.labels:
                said.append(f"    {attribute.name} ({attribute.annotation}): {comment[0].upper()}{comment[1:]}")
            del cls.members[attribute.name]
    if said and cls.docstring:
        cls.docstring.value = "\n".join([cls.docstring.value, "", "Attributes:", *said])
    cls.members.pop("__post_init__", None)
