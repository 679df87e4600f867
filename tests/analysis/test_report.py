"""The page is whole, holds the values of the logs, and does no harm."""

import base64
import html.parser
import io
import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from logs import metrics, report, write_log
from matplotlib.image import imread

from sage_keras.analysis import read_log, write_report
from sage_keras.analysis.__main__ import main, name_runs

pytestmark = pytest.mark.backend_agnostic

CURVE = {"fraction": np.array([0.0, 0.5]), "loss": np.array([0.4, 0.9])}


class Page(html.parser.HTMLParser):
    """Tables as rows of texts, pictures as dicts of attributes, and all tags and addresses."""

    def __init__(self, content):
        super().__init__()
        self.tables, self.pictures, self.tags, self.addresses = [], [], set(), []
        self._open = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.addresses += [
            attributes[key] for key in ("src", "href", "srcset") if key in attributes
        ]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.pictures.append(attributes)
        if tag not in ("img", "meta", "link", "!doctype"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    first = [report(step) for step in (2, 4)]
    second = [report(step, groups=("second", "third"), mean=2.0, scale_mean=None) for step in (3,)]
    second[0]["optimizers"][0].update(guide=False, beta_3=0.9)
    return {
        "first run": read_log(write_log(folder / "first", *first)),
        "other run": read_log(write_log(folder / "other", *second)),
    }


@pytest.fixture(scope="module")
def content(logs, tmp_path_factory):
    """The page about both runs and a pruning curve."""
    path = write_report(logs, tmp_path_factory.mktemp("page") / "page.html", {"pruned": CURVE})
    return path.read_text(encoding="utf-8")


@pytest.fixture
def no_pictures(monkeypatch):
    """Most of the time of a page is that of its pictures."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: None)


def read_page(path):
    return Page(path.read_text(encoding="utf-8"))


def test_table_of_runs_holds_the_values_of_the_last_reports(content):
    runs, _ = Page(content).tables
    titles = ["Run", "Optimizer", "Steps", "Parameters", "Mean sensitivity", "Redundant share"]
    assert runs == [
        [*titles, "Gini index", "Mean scale"],
        ["first run", "Sage (β₃ 0.75)", "4", "20", "1.25e-01", "25.0%", "0.500", "0.500"],
        ["other run", "Sage (β₃ 0.9, watched)", "3", "20", "2.00e+00", "25.0%", "0.500", "\u2013"],
    ]


def test_table_of_groups_has_the_runs_side_by_side(content):
    _, groups = Page(content).tables
    none = "\u2013"
    assert groups[0] == ["", "first run", "other run"]
    assert groups[1] == [
        "Group",
        "Parameters",
        *2 * ["Mean sensitivity", "Redundant share", "Mean scale"],
    ]
    assert groups[2:] == [
        ["first", "10", "5.00e-01", "25.0%", "0.500", none, none, none],
        ["second", "10", "1.00e+00", "25.0%", "0.500", "3.75e-01", "25.0%", "0.500"],
        ["third", "10", none, none, none, "7.50e-01", "25.0%", "0.500"],
    ]


def test_page_needs_nothing_but_itself(content):
    page = Page(content)
    assert all(address.startswith("data:") for address in page.addresses)
    assert not page.tags & {"script", "iframe", "object", "embed", "base"}
    assert "@import" not in content and "url(" not in content
    assert "http" not in content


def test_each_picture_is_inlined_with_its_size_and_described(logs, content):
    page = Page(content)
    descriptions = [picture["alt"] for picture in page.pictures]
    # Distribution, heat map and scale of both runs, and one metric of the curves.
    assert len(descriptions) == 7
    assert [sum(name in one for one in descriptions) for name in logs] == [3, 3]
    assert descriptions[-1] == "The loss by share of weights set to zero, of pruned."
    for picture in page.pictures:
        data = picture["src"].removeprefix("data:image/png;base64,")
        height, width, _ = imread(io.BytesIO(base64.b64decode(data, validate=True))).shape
        # Two dots for each pixel of the page.
        assert abs(width / 2 - int(picture["width"])) <= 1
        assert abs(height / 2 - int(picture["height"])) <= 1


def test_pictures_without_values_are_left_out(tmp_path):
    plain = report(1)
    del plain["model"]["histogram"]
    for entry in (plain["model"], *plain["groups"].values()):
        entry["values"] = {"mean": 0.0}
    log = read_log(write_log(tmp_path, plain))
    page = read_page(write_report({"plain": log}, tmp_path / "page.html"))
    assert [picture["alt"] for picture in page.pictures] == [
        "Mean sensitivity of each group of variables in plain by step."
    ]
    assert page.tables[0][1][-3:] == 3 * ["\u2013"]


def test_names_are_text_and_nothing_else(tmp_path):
    name = '<script>alert("1")</script> a & b\' "c" $x$ $\\frac{$'
    log = read_log(write_log(tmp_path, report(1, groups=[name])))
    page = read_page(write_report({name: log}, tmp_path / "page.html", {name: CURVE}))
    assert "script" not in page.tags
    assert page.tables[0][1][0] == page.tables[1][2][0] == name
    assert all(name in picture["alt"] for picture in page.pictures)


def test_runs_share_what_they_are_compared_by(logs, monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    write_report(logs, tmp_path / "page.html")
    first, second = (figure.axes[0] for figure in drawn[0:2])  # distributions
    assert (first.get_xlim(), first.get_ylim()) == (second.get_xlim(), second.get_ylim())
    maps = [figure.axes[0].collections[0].get_clim() for figure in drawn[2:4]]
    assert maps[0] == maps[1] == (0.25, 1.0)  # of 0.25 to 1 and 0.375 to 0.75
    # (0.75 - 0.75^4) / 0.25, the highest of the bounds.
    scales = [figure.axes[0].get_ylim() for figure in drawn[4:6]]
    assert scales[0] == scales[1] == pytest.approx((0, 1.05 * 1.734375))


def test_loss_and_metrics_are_shown(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    one = write_log(tmp_path / "a", report(1, mean=2.0), metrics(2, accuracy=0.5, loss=4.0))
    ends = metrics(1, loss=3.0, val_loss=2.0), metrics(2, val_loss=1.5)
    two = write_log(tmp_path / "b", report(1, mean=8.0), *ends)
    logs = {"one": read_log(one), "two": read_log(two)}
    page = read_page(write_report(logs, tmp_path / "page.html"))
    assert page.tables[0][0][-3:] == ["loss", "accuracy", "val_loss"]
    none = "\u2013"
    assert [row[-3:] for row in page.tables[0][1:]] == [["4", "0.5", none], [none, none, "1.5"]]
    descriptions = [picture["alt"] for picture in page.pictures[:4]]
    assert descriptions[:3] == [
        f"The {one} by step, and the sensitivity."
        for one in ("loss of one", "loss of two", "accuracy of one")
    ]
    assert descriptions[3].startswith("Share of parameters")
    losses = [[axes.get_ylim() for axes in figure.axes] for figure in drawn[:2]]
    assert losses[0] == losses[1]
    assert losses[0][0][0] < 1.5 < 4 < losses[0][0][1]


@pytest.mark.usefixtures("no_pictures")
def test_page_is_written_whole_or_not_at_all(logs, tmp_path, monkeypatch):
    folder = tmp_path / "pages"
    path = write_report(logs, folder / "page.html")
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report({"other": logs["other run"]}, path)
    assert path.read_bytes() == before
    assert list(folder.iterdir()) == [path]


@pytest.mark.usefixtures("no_pictures")
def test_a_link_stays_a_link_and_a_file_keeps_its_mode(logs, tmp_path):
    target, link = tmp_path / "folder" / "page.html", tmp_path / "link.html"
    target.parent.mkdir()
    target.write_text("before")
    target.chmod(0o600)
    link.symlink_to(target)
    assert write_report(logs, link) == link
    assert link.is_symlink()
    assert read_page(target).tables
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    dangling = tmp_path / "dangling.html"
    dangling.symlink_to(tmp_path / "new" / "page.html")
    write_report(logs, dangling)
    assert dangling.is_symlink()
    (tmp_path / "plain").touch()
    assert dangling.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("kind", ["pipe", "loop", "/dev/null"])
def test_what_is_no_file_is_refused_and_stays(logs, tmp_path, kind):
    output = tmp_path / "output"
    if kind == "pipe":
        os.mkfifo(output)
    elif kind == "loop":
        output.symlink_to(output)
    else:
        output.symlink_to(kind)
    before = output.lstat()
    with pytest.raises(ValueError, match=r"`output` must be the path of a file.*output', which is"):
        write_report(logs, output)
    assert (output.lstat().st_mode, output.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.usefixtures("no_pictures")
def test_a_name_may_be_as_long_as_a_file_system_allows(logs, tmp_path):
    path = write_report(logs, tmp_path / ("x" * 250 + ".html"))
    assert read_page(path).tables


def test_a_log_of_another_logger_is_refused(logs, tmp_path):
    from sage_keras.analysis import read_dps_log

    entry = {"parameters": 8, "values": {"share": 0.5, "overlap": None}}
    settings = [{"class": "DPSDense", "stage_steps": 2, "drop_rate": 0.3}]
    line = {"step": 3, "epoch": 0, "model": entry, "groups": {"h": entry}}
    for name, optimizers, reason in [("a", settings, "no 'beta_3'"), ("b", [], "no 'mean'")]:
        (tmp_path / name).mkdir()
        text = json.dumps({**line, "optimizers": optimizers}) + "\n"
        (tmp_path / name / "dps.jsonl").write_text(text)
        both = {**logs, "dps run": read_dps_log(tmp_path / name)}
        with pytest.raises(ValueError, match=rf"of a SensitivityLogger.*'dps run'.*{reason}"):
            write_report(both, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.usefixtures("no_pictures")
def test_a_log_without_groups(tmp_path):
    page = read_page(
        write_report(
            {"plain": read_log(write_log(tmp_path, report(1, groups=())))}, tmp_path / "page.html"
        )
    )
    assert len(page.tables[0]) == 2
    assert not any("group" in picture["alt"] for picture in page.pictures)


@pytest.mark.filterwarnings("error")  # matplotlib would warn of a character without a picture
def test_escapes_are_shown_as_text(tmp_path, capsys):
    escape, shown = "a\x1b[2J\x07\nb", r"a\x1b[2J\x07\nb"
    log = read_log(write_log(tmp_path / escape, report(1, groups=[escape])))
    path = write_report({escape: log}, tmp_path / "page.html", {escape: CURVE})
    page = read_page(path)
    assert page.tables[0][1][0] == page.tables[1][2][0] == shown
    assert all(shown in picture["alt"] for picture in page.pictures)
    assert "\x1b" not in path.read_text(encoding="utf-8")

    (tmp_path / escape / "sensitivity.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(SystemExit):
        main([str(tmp_path / escape), "-o", str(path)])
    [line] = capsys.readouterr().err.splitlines()
    assert f"Line 1 of {tmp_path}/{shown}/sensitivity.jsonl is not a report" in line


def test_no_logs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`logs` must not be empty"):
        write_report({}, tmp_path / "page.html")


@pytest.mark.usefixtures("no_pictures")
def test_command_names_runs_by_what_tells_their_folders_apart(tmp_path, capsys):
    folders = ["one/Sage/log", "two/Sage/log", "AdamW"]
    for folder in folders:
        write_log(tmp_path / folder, report(1))
    folders = [str(tmp_path / folder) for folder in folders]
    output = tmp_path / "page.html"
    main([*folders, "-o", str(output)])
    assert capsys.readouterr().out == f"Wrote {output}\n"
    names = [row[0] for row in read_page(output).tables[0][1:]]
    assert names == ["one/Sage/log", "two/Sage/log", "AdamW"]


def test_a_folder_can_be_the_end_of_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert name_runs(["/log", "/a/log"]) == {"//log": "/log", "a/log": "/a/log"}
    assert name_runs(["."]) == {tmp_path.name: "."}


@pytest.mark.usefixtures("no_pictures")
def test_command_writes_report_html_unless_told_otherwise(tmp_path, monkeypatch):
    write_log(tmp_path / "Sage", report(1))
    monkeypatch.chdir(tmp_path)
    main(["Sage"])
    assert read_page(tmp_path / "report.html").tables


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing"], "there is no sensitivity.jsonl in it. Received: log_dir='missing'"),
        (["good", "broken"], "Line 1 of broken/sensitivity.jsonl is not a report"),
        (["good", "empty"], "empty/sensitivity.jsonl holds no report yet"),
        (["good", "./good"], "each LOG_DIR must be named once"),
        (["good", "-o", "good"], "Received: output='good', which is a folder"),
    ],
)
def test_command_refuses_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "good", report(1))
    (write_log(tmp_path / "broken") / "sensitivity.jsonl").write_text("{}\n")
    write_log(tmp_path / "empty")
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m sage_keras.analysis: ")
    assert message in line
    assert not list(tmp_path.glob("*.html*"))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.extended
def test_command_as_a_program(tmp_path):
    command = [sys.executable, "-m", "sage_keras.analysis", "missing"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("python -m sage_keras.analysis: ")
