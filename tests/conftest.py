import os
import pathlib

from hypothesis import settings

# What tests share holds no tests. Collected for doctests it would be imported a second time, under
# another name, and its classes registered with Keras again.
collect_ignore = [
    path.name
    for path in pathlib.Path(__file__).parent.glob("*.py")
    if not path.name.startswith("test_")
]

# No deadlines: a test must not fail because a machine is slow. Hypothesis looks in new places on
# every run at home, and in the same ones on a build server.
settings.register_profile("home", deadline=None)
settings.register_profile("build_server", deadline=None, derandomize=True)
settings.load_profile("build_server" if os.environ.get("CI") else "home")
