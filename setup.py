"""The part of building that pyproject.toml cannot say: manual pages, made from the commands."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build import build

_HERE = Path(__file__).resolve().parent


class BuildWithPages(build):
    """Builds the package, and the pages that go to share/man/man1."""

    def run(self) -> None:
        """Make the pages where files that are built go; the wheel takes them from there."""
        sys.path.insert(0, str(_HERE))
        folder = Path(self.build_base) / "man"
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, text in runpy.run_path(str(_HERE / "scripts" / "make_man.py"))["pages"]():
            (folder / name).write_text(text, "utf-8")
            written.append(str(folder / name))
        self.distribution.data_files = [("share/man/man1", written)]
        super().run()


setup(cmdclass={"build": BuildWithPages})
