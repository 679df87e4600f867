import gc
import os

from hypothesis import settings

# A worker for each core, and a thread for each worker: at more, torch's wait for one another on
# models as small as these, and take ten times as long. It has to be said before they are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadlines: a test must not fail because a machine is slow. Hypothesis looks in new places on
# every run at home, and in the same ones on a build server.
settings.register_profile("home", deadline=None)
settings.register_profile("build_server", deadline=None, derandomize=True)
settings.load_profile("build_server" if os.environ.get("CI") else "home")


def pytest_addoption(parser):
    parser.addoption("--extended", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config, items):
    # The pages first: they have Keras forget its names, which takes 40 seconds once TensorFlow's
    # default graph is large. Then the long ones: in the end both workers share short ones.
    items.sort(
        key=lambda item: (item.path.name != "test_docs.py", not item.get_closest_marker("extended"))
    )
    if config.getoption("--extended"):
        return
    extended = [item for item in items if item.get_closest_marker("extended")]
    config.hook.pytest_deselected(items=extended)
    items[:] = [item for item in items if not item.get_closest_marker("extended")]


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # what was imported stays, and need not be looked through again and again


def pytest_ignore_collect(collection_path):
    # What tests share, or run in processes of their own, holds no tests of this process. Collected
    # for doctests it would be imported a second time, and its classes registered with Keras again.
    if collection_path.suffix == ".py" and not collection_path.name.startswith("test_"):
        return True
    return None  # others may still ignore it
