"""How an example ends that cannot have what it needs."""

import pathlib
import sys


def stop(message):
    """Prints one line that says what to do, and ends the script with status 2.

    Args:
        message: String, or an exception that carries it.
    """
    script = pathlib.Path(sys.argv[0]).name
    print(f"{script}: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(2)
