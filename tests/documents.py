"""The Python blocks of a document, and what they print."""

import re

_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


def code_blocks(path):
    """Pairs of code and the block without a language that follows it at once, or None."""
    found = _BLOCK.findall(path.read_text(encoding="utf-8"))
    return [(code, printed or None) for code, printed in found]


def run_blocks(blocks, capsys):
    """Runs the blocks one after the other in one namespace, which is returned."""
    names = {"__name__": "document"}
    for code, printed in blocks:
        capsys.readouterr()
        exec(code, names)
        if printed is not None:
            assert capsys.readouterr().out == printed
    return names
