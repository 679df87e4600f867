"""Makes of each tutorial a notebook and a page of the documentation.

    python -m tutorials.make
    python -m tutorials.make --execute vision_transformer

A tutorial is one script: a docstring with its title, then text in docstrings and code between
them. The notebook keeps the outputs that it has as long as the code is the same; `--execute` runs
it again for new ones. `--set NAME=VALUE` runs it with another constant, and `--before FILE` after
the code of a file: neither gets into the notebook.
"""

import argparse
import ast
import base64
import pathlib
import re
import tempfile
import textwrap

import nbformat
from nbclient import NotebookClient
from nbformat import v4

FOLDER = pathlib.Path(__file__).parent
PAGES = FOLDER.parent / "docs" / "tutorials"
# "owner/name" on GitHub, as soon as there is a public address: each tutorial then has its badge.
REPOSITORY = None
SHELL = "shell\n"  # begins a text that is commands of a shell
SKIPPED = "skip-execution"  # the tag by which nbclient knows such a cell
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
    "colab": {"provenance": [], "toc_visible": True},
}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--execute", nargs="*", default=[], metavar="TUTORIAL")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--before", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args(arguments)
    before = options.before.read_text(encoding="utf-8") if options.before else ""
    for script in scripts():
        notebook = keep_outputs(make_notebook(script), script.with_suffix(".ipynb"))
        if script.stem in options.execute:
            settings = dict(one.split("=", 1) for one in options.set)
            copy_outputs(execute(notebook, settings, before), notebook)
        nbformat.write(notebook, script.with_suffix(".ipynb"))
        write_page(script, notebook)
        print(f"Wrote {script.stem}.ipynb and {script.stem}.md")


def scripts():
    """The tutorials, as paths."""
    return sorted(path for path in FOLDER.glob("*.py") if path.name != "make.py")


def header(script):
    """The lines of the first docstring, as a dict of lower-case key to text."""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    pairs = (line.partition(": ") for line in text.splitlines())
    return {key.lower(): value.strip() for key, _, value in pairs}


def make_notebook(script):
    """The notebook of a script, without outputs."""
    texts_and_code = parts(script.read_text(encoding="utf-8"))
    cells = [v4.new_markdown_cell(opening(script))]
    for kind, source in texts_and_code[1:]:
        if kind == "code":
            cells.append(v4.new_code_cell(source))
        elif source.startswith(SHELL):
            commands = source.removeprefix(SHELL).splitlines()
            shell = "\n".join(f"!{command}" for command in commands)
            cells.append(v4.new_code_cell(shell, metadata={"tags": [SKIPPED]}))
        else:
            cells.append(v4.new_markdown_cell(source))
    for index, cell in enumerate(cells):
        cell["id"] = f"{script.stem}-{index}"
    return v4.new_notebook(cells=cells, metadata=METADATA)


def parts(source):
    """Pairs of `"text"` or `"code"` and what it is, in the order of a script."""
    lines, found, begin = source.splitlines(), [], 0

    def add_code(end):
        code = "\n".join(lines[begin:end]).strip()
        if code:
            found.append(("code", code))

    for node in ast.parse(source).body:
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
            continue
        add_code(node.lineno - 1)
        found.append(("text", textwrap.dedent(node.value.value).strip()))
        begin = node.end_lineno
    add_code(len(lines))
    return found


def opening(script):
    """Title, author, dates, description, and the badge, in Markdown."""
    about = header(script)
    facts = f"**Author:** {about['author']}<br>\n**Date created:** {about['date created']}<br>\n"
    facts += f"**Last modified:** {about['last modified']}<br>\n"
    facts += f"**Description:** {about['description']}"
    return "\n\n".join(filter(None, [f"# {about['title']}", facts, badge(script)]))


def badge(script):
    """The link that opens the notebook in Colab, or nothing without a public address."""
    if REPOSITORY is None:
        return ""
    path = f"github/{REPOSITORY}/blob/main/tutorials/{script.stem}.ipynb"
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({image})](https://colab.research.google.com/{path})"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def keep_outputs(notebook, path):
    """The notebook with the outputs that are in a file, if its code is the same."""
    if path.exists():
        old = nbformat.read(path, as_version=4)
        if [one.source for one in code_cells(old)] == [one.source for one in code_cells(notebook)]:
            return copy_outputs(old, notebook)
    return notebook


def copy_outputs(source, target):
    """Gives a notebook the outputs of another one of the same code; warnings stay behind."""
    for one, other in zip(code_cells(source), code_cells(target)):
        other.outputs = joined([o for o in one.outputs if o.get("name") != "stderr"])
        other.execution_count = one.execution_count
    return target


def joined(outputs):
    """Outputs with what was printed in several pieces in one."""
    found = []
    for output in outputs:
        if found and output.output_type == found[-1].output_type == "stream":
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def execute(notebook, settings=None, before=""):
    """Runs a notebook in a process of its own, in a passing folder, and returns it with outputs.

    Args:
        notebook: A notebook.
        settings: Dict of the name of a constant to Python code: what it is instead.
        before: String, Python code to run before the first cell.
    """
    run = v4.new_notebook(cells=[cell.copy() for cell in notebook.cells], metadata=METADATA)
    for name, value in (settings or {}).items():
        constant = re.compile(rf"^{name} = .*$", re.MULTILINE)
        if not any(constant.search(cell.source) for cell in code_cells(run)):
            raise ValueError(f"The tutorial has no constant {name}.")
        line = f"{name} = {value}".replace("\\", r"\\")
        for cell in code_cells(run):
            cell.source = constant.sub(line, cell.source)
    run.cells.insert(0, v4.new_code_cell(before))  # and taken out again below
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(run, timeout=None, resources={"metadata": {"path": folder}}).execute()
    del run.cells[0]
    executed = [cell for cell in code_cells(run) if cell.execution_count]
    for count, cell in enumerate(executed, start=1):
        cell.execution_count = count
    return run


def write_page(script, notebook):
    """Writes the page of a notebook and its pictures."""
    text, pictures = make_page(script, notebook)
    PAGES.mkdir(parents=True, exist_ok=True)
    for old in PAGES.glob(f"{script.stem}_*.png"):
        old.unlink()
    for name, content in pictures.items():
        (PAGES / name).write_bytes(content)
    (PAGES / f"{script.stem}.md").write_text(text, encoding="utf-8")


def make_page(script, notebook):
    """A page of the documentation as a string, and its pictures as a dict of name to bytes."""
    where = (
        f"One file, `tutorials/{script.name}`, and as a notebook `tutorials/{script.stem}.ipynb`."
    )
    blocks, pictures = [notebook.cells[0].source, where], {}
    for cell in notebook.cells[1:]:
        if cell.cell_type == "markdown":
            blocks.append(cell.source)
            continue
        if SKIPPED in cell.metadata.get("tags", ()):
            blocks.append(fence(re.sub(r"^!", "", cell.source, flags=re.MULTILINE), "sh"))
            continue
        blocks.append(fence(cell.source, "python"))
        captions = iter(re.findall(r"plt\.show\(\)  # (.+)", cell.source))
        for output in cell.outputs:
            if output.output_type == "stream":
                blocks.append(fence(output.text))
            elif "image/png" in output.get("data", {}):
                name = f"{script.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode(output.data["image/png"])
                blocks.append(f"![{next(captions)}]({name})")
    return "\n\n".join(blocks) + "\n", pictures


def fence(text, language=""):
    return f"```{language}\n{text.strip()}\n```"


if __name__ == "__main__":
    main()
