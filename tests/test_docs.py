"""What README.md and docs/ say is so: sessions, examples, tables and links."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import fields
from pathlib import Path

import docs_files
import pytest
from docs_sessions import Shell, Step, fenced, steps

import ckpt_surgery
from ckpt_surgery.cli import boundary, options
from ckpt_surgery.fileio import zip_read
from ckpt_surgery.formats import safetensors, torchscript
from ckpt_surgery.merge.method import catalogue
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits
from ckpt_surgery.torch_objects import calls, row_major

_REPOSITORY = Path(__file__).resolve().parents[1]
_DOCUMENTS = [
    _REPOSITORY / "README.md",
    _REPOSITORY / "CONTRIBUTING.md",
    *sorted((_REPOSITORY / "docs").glob("*.md")),
]
_WITH_SESSIONS = [path for path in _DOCUMENTS if list(steps(path.read_text("utf-8")))]
_MACHINE_READABLE = re.compile(
    r"<!-- prints: (ckpt [^\n]*) -->\n\n```json\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
_ANSWERS = tuple(f"ckpt {verb} " for verb in ("match", "verify", "hash", "diff"))
_LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]*))?\)")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with the files that the sessions name."""
    folder = tmp_path_factory.mktemp("prepared")
    docs_files.make(folder)
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    """The current directory, with those files in it (as links: no command changes them there)."""
    here = tmp_path / "here"
    here.mkdir()
    for file in prepared.iterdir():
        if file.is_dir():
            shutil.copytree(file, here / file.name)
        else:
            os.link(file, here / file.name)
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def shell(folder, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    return Shell(folder, programs)


def read(name):
    return (_REPOSITORY / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", _WITH_SESSIONS, ids=lambda path: path.name)
def test_sessions_print_what_they_show(document, shell):
    for step in steps(document.read_text(encoding="utf-8")):
        if "jq " in step.command and not shutil.which("jq") and not os.environ.get("CI"):
            continue
        printed = shell.run(step.command)
        difference = step.difference(printed)
        assert not difference, f"{document.name}:{step.line}: $ {step.command}\n{difference}"
        says_no = shell.status == 1 and step.command.startswith(_ANSWERS)
        assert not shell.status or says_no or "error:" in printed, (
            f"{document.name}:{step.line}: it failed"
        )


def test_the_main_documents_have_sessions():
    assert {"README.md", "commands.md", "formats.md", "safety.md"} <= {
        path.name for path in _WITH_SESSIONS
    }


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        (("a", "…", "d"), "a\nb\nc\nd\n", True),
        (("a", "…", "d"), "a\nd\n", False),
        (("a", "  … and 2 more"), "a\n  … and 2 more\n", True),
        (("a",), "a\nb\n", False),
        (("a",), "a", False),
        (("a.",), "ab\n", False),
        ((), "", True),
    ],
)
def test_a_session_that_prints_something_else_is_noticed(expected, printed, same):
    assert (Step("echo", expected, 1).difference(printed) == "") is same


def test_json_examples_are_what_is_printed(shell):
    examples = _MACHINE_READABLE.findall(read("docs/cli.md"))
    assert len(examples) == 2
    for command, document in examples:
        expected = json.loads(document.replace("VERSION", ckpt_surgery.__version__))
        assert json.loads(shell.run(command)) == expected, command


def test_library_examples(folder):
    names: dict[str, object] = {}
    examples = list(fenced(read("docs/library.md"), "pycon"))
    assert examples
    for line, text in examples:
        _run_examples(text, names, "docs/library.md", line)


def test_example_of_the_package(folder):
    _run_examples(ckpt_surgery.__doc__, {}, "ckpt_surgery/__init__.py", 1)


def _run_examples(text, names, file, line):
    test = doctest.DocTestParser().get_doctest(text, {}, file, file, line)
    test.globs = names
    shown: list[str] = []
    result = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(
        test, out=shown.append, clear_globs=False
    )
    assert result.attempted
    assert not result.failed, "".join(shown)


def test_options_are_those_of_the_commands():
    done = _make_reference("--check")
    assert done.returncode == 0, "run: python scripts/make_reference.py\n" + done.stderr


def test_a_stale_list_of_options_is_noticed(tmp_path):
    stale = tmp_path / "commands.md"
    stale.write_text(read("docs/commands.md").replace("| `--fold` |", "| `--bend` |"))
    assert _make_reference("--check", stale).returncode == 1
    assert _make_reference(stale).returncode == 0
    assert stale.read_text(encoding="utf-8") == read("docs/commands.md")


def _make_reference(*args):
    return subprocess.run(
        [sys.executable, "scripts/make_reference.py", *map(str, args)],
        cwd=_REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(_REPOSITORY)},
        capture_output=True,
        text=True,
    )


def table(document, heading):
    """The rows of the first table below a heading, without its head; cells without backquotes."""
    rows = document.partition(f"# {heading}\n")[2].partition("|---")[2].splitlines()[1:]
    for row in rows:
        if not row.startswith("|"):
            return
        yield [cell.strip().strip("`") for cell in row.strip("|").split("|")]


def test_limits_are_those_of_the_reader():
    rows = list(table(read("docs/safety.md"), "Limits"))
    said = {name: int(value.replace(",", "")) for name, value, *_ in rows}
    known = {field.name: getattr(DEFAULT_LIMITS, field.name) for field in fields(Limits)}
    assert said == known | {
        "records of an archive": zip_read.MAX_RECORDS,
        "directory of an archive": zip_read._MAX_DIRECTORY,
        "header of a safetensors file": safetensors.MAX_HEADER_BYTES,
        "code of a TorchScript archive": torchscript._MAX_CODE,
        "dimensions of a tensor": calls._MAX_DIMENSIONS,
        "elements of a repeating view": row_major.MOST_REPEATED,
        "list of keys, map of names": options._MOST_TEXT,
    }


def test_exit_codes_are_those_of_the_boundary():
    codes = [int(code) for code, _ in table(read("docs/cli.md"), "Exit codes")]
    assert codes == [0, 1, boundary.REFUSED, boundary._BUG, 129, 130, 143]


def test_formats_are_those_that_inspect_names():
    source = "".join(p.read_text() for p in (_REPOSITORY / "ckpt_surgery/formats").glob("*.py"))
    cells = [name for name, *_ in table(read("docs/formats.md"), "What is read")]
    names = [name.strip(" `") for cell in cells for name in cell.split(",")]
    assert names
    assert all(f'"{name}"' in source for name in names)


def explained(heading):
    """The fields that docs/cli.md explains under a heading, and those of every document."""
    text = read("docs/cli.md")
    cells = [name for name, *_ in (*table(text, "JSON"), *table(text, heading))]
    return {name.strip(" `") for cell in cells for name in cell.split(",")}


@pytest.mark.parametrize("report", ["inspect", "edits", "match", "fit"])
def test_every_field_of_a_report_is_explained(report, folder):
    if report == "inspect":
        document = ckpt_surgery.inspect("train.pth.tar").to_dict()
    elif report == "edits":
        keep = ckpt_surgery.selection(prefix="module.bn")
        document = ckpt_surgery.strip("train.pth.tar", "out.pth", keep).to_dict()
    elif report == "match":
        document = ckpt_surgery.match("train.pth.tar", like="old.pth").to_dict()
    else:
        output = ckpt_surgery.Output(dry_run=True)
        document = ckpt_surgery.fit("train.pth.tar", output, like="old.pth").to_dict()
    heading = "JSON of the edits" if report == "edits" else f"JSON of {report}"
    assert explained(heading) == document.keys()


def test_every_field_of_a_merge_is_explained(folder):
    sources = ["run1.pth", "run2.pth"]
    document = ckpt_surgery.merge(sources, "out.pth", "average").to_dict()
    assert explained("JSON of merge") == document.keys()


def test_methods_of_merging_are_those_of_the_catalogue():
    rows = {(name, method.summary, method.citation) for name, method in catalogue().items()}
    said = table(read("docs/merge.md"), "Numbers")
    assert {(name, what, where) for name, _, what, where in said} == rows


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target, anchor in _LINK.findall(document.read_text(encoding="utf-8")):
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), f"{document.name}: {target}"
        if anchor:
            assert anchor in _anchors(path), f"{document.name}: {target}#{anchor}"


def _anchors(path):
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_snippet_for_pipelines_runs(shell):
    """Its file is the one of the sessions, and the names that it expects are those it gets."""
    if not shutil.which("jq") and not os.environ.get("CI"):
        pytest.skip("the snippet needs jq")
    ((_, workflow),) = fenced(read("README.md"), "yaml")
    script = textwrap.dedent(workflow.partition("run: |\n")[2])
    assert script.startswith("set -euo pipefail\n")
    (shell.folder / "last.pth.tar").hardlink_to(shell.folder / "train.pth.tar")
    script = f"RUN=.\n{script}"
    assert "expected-names.txt: No such file" in shell.run(script)
    assert shell.status
    (shell.folder / "weights.pth").unlink()
    (shell.folder / "names.txt").rename(shell.folder / "expected-names.txt")
    assert shell.run(script) == "true\n"
    assert not shell.status


def test_design_names_the_rooms_as_the_import_contract_does():
    contracts = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [layer.split(" | ") for layer in contracts["contracts"][0]["layers"]]
    design = (_REPOSITORY / "docs" / "design.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.*?`) \|", design, re.MULTILINE)
    assert [row.replace("`", "").split(", ") for row in rows] == layers


def test_contributing_names_files_and_names_that_there_are():
    text = (_REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    package = _REPOSITORY / "ckpt_surgery"
    for path in re.findall(r"`([\w./]+/[\w./]*)`", text):
        if "NAME" not in path and path != "ckpt_surgery.formats":
            assert (_REPOSITORY / path).exists() or (package / path).exists(), path
    for module, name in re.findall(r"`([a-z_]+\.[a-z_]+)\.([A-Z]\w+)`", text):
        assert hasattr(importlib.import_module(f"ckpt_surgery.{module}"), name), (module, name)


def test_changelog_is_about_this_version():
    changelog = (_REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## (\S+)", changelog, re.MULTILINE)
    assert ckpt_surgery.__version__ in versions[:2]
