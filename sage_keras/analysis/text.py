"""Text from a log, which may come from anyone, on its way to a terminal or a page."""


def printable(text: str) -> str:
    """`text` in one line, with `\\x1b` and the like in place of what a terminal would obey.

    Args:
        text: String.

    Returns:
        String, in which every character is printable.

    Example:

    >>> print(printable("query\\x1b[2J"))
    query\\x1b[2J
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )
