"""The repository's own files: workflows run commands that are documented, links lead somewhere."""

import pathlib
import re

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / folder / "README.md" for folder in ("examples", "tests"))]

pytestmark = pytest.mark.backend_agnostic


def commands(workflow):
    """The lines that the jobs of a workflow run."""
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    steps = [step for job in jobs for step in job.get("steps", ())]
    return [line for step in steps for line in step.get("run", "").splitlines()]


def plain(command):
    """A command without the flags that only concern how much it prints."""
    return re.sub(r" --quiet\b", "", command).strip()


def test_checks_of_the_workflow_are_those_of_the_local_run():
    local = plain((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    local += (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [tests] = [path for path in WORKFLOWS if path.name == "tests.yml"]
    lines = [one for one in commands(tests) if "pip install" not in one]
    assert len(lines) == 8
    assert [one for one in lines if plain(one) not in local] == []


def test_extras_that_are_installed_exist():
    extras = (ROOT / "setup.cfg").read_text(encoding="utf-8").partition("extras_require]")[2]
    known = set(re.findall(r"^(\w+) =$", extras, re.MULTILINE))
    installed = [
        name
        for workflow in WORKFLOWS
        for command in commands(workflow)
        for names in re.findall(r"\[([\w,]+)\]", command)
        for name in names.split(",")
    ]
    assert len(installed) >= 9
    assert set(installed) <= known


def test_every_backend_is_tested():
    for name in ("tests.yml", "nightly_keras.yml"):
        jobs = yaml.safe_load((WORKFLOWS[0].parent / name).read_text(encoding="utf-8"))["jobs"]
        backends = jobs["tests"]["strategy"]["matrix"]["backend"]
        assert backends == ["tensorflow", "jax", "torch"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_forms_are_what_github_reads():
    forms = list((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    for form in forms:
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        if form.name == "config.yml":
            continue
        assert {"name", "description", "body"} <= content.keys()
        fields = [field for field in content["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert all(field["attributes"]["label"] for field in fields)
    assert len(forms) == 3
