"""Lets mkdocstrings read the docstrings of this package, whose examples stand unindented."""

import re

import griffe

_EXAMPLE = re.compile(r"^Example:\n\n(.*?)(?=\n\nReference:|\Z)", re.DOTALL | re.MULTILINE)


class Examples(griffe.Extension):
    """Turns `Example:` with lines of code into the section that griffe knows."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(_section, obj.docstring.value)


def _section(match):
    lines = "\n".join(f"    {line}".rstrip() for line in match[1].splitlines())
    return f"Examples:\n{lines}"
