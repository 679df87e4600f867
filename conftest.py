import importlib.util

# The package is collected for its docstrings, and this module imports torch, which need not be
# installed.
collect_ignore = [] if importlib.util.find_spec("torch") else ["sage_keras/foreach.py"]
