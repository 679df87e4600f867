import os

from hypothesis import settings

# Hypothesis looks in new places on every run at home, and in the same ones on a build server.
settings.register_profile("build_server", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("build_server")
