"""Lets mkdocstrings read this package: unindented examples, and functions named like files."""

import re

import griffe

_EXAMPLE = re.compile(r"^Example:\n\n(.*?)(?=\n\nReference:|\Z)", re.DOTALL | re.MULTILINE)


class Docstrings(griffe.Extension):
    """Turns `Example:` with lines of code into the section that griffe knows.

    And has a public name mean the function where a submodule has the same name, as in Python.
    """

    def on_package(self, *, pkg, **kwargs):
        for module in pkg.modules.values():
            for name in module.exports or ():
                file = module.members[name]
                if isinstance(file, griffe.Module) and name in file.members:
                    function = file.members[name]
                    module.members[name] = griffe.Alias(name, function, parent=module)
                    self.on_object(obj=function)  # which griffe does not visit behind an alias

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(_section, obj.docstring.value)


def _section(match):
    lines = "\n".join(f"    {line}".rstrip() for line in match[1].splitlines())
    return f"Examples:\n{lines}"
