import os
import pathlib

from hypothesis import HealthCheck, settings

# What tests share holds no tests. Collected for doctests it would be imported a second time, under
# another name, and its classes registered with Keras again.
collect_ignore = [
    path.name
    for path in pathlib.Path(__file__).parent.glob("*.py")
    if not path.name.startswith("test_")
]

# No deadlines: a test must not fail because a machine is slow. Hypothesis looks in new places on
# every run at home, and in the same ones on a build server.
patient = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("home", **patient)
settings.register_profile("build_server", **patient, derandomize=True)
settings.load_profile("build_server" if os.environ.get("CI") else "home")
