import pathlib

# What other processes run: they need devices, or peers, that this one does not have.
collect_ignore = [
    path.name
    for path in pathlib.Path(__file__).parent.glob("*.py")
    if not path.name.startswith("test_")
]
