"""What the code of a TorchScript archive declares of its modules, read from its printed form.

torch prints a class as its name and base, a line for each declaration, then the methods; its parser
understands more than that: comments, other quotes and spaces, lines that go on. What has another
form than the printed one is refused, since the declarations say which tensors a state dict has.
The forms are those of ``torch/csrc/jit/serialization/python_print.cpp``.
"""

from __future__ import annotations

import re
from dataclasses import field
from typing import Final

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.startup.lazy_dataclass import dataclass

_CLASS: Final = re.compile(r"class (\w+)(?:\((\w+)\))?:", re.ASCII)
_OTHER: Final = re.compile(r"op_version_set = \d+|import [\w.]+|def \w+\(.*", re.ASCII)
_METHOD: Final = re.compile(r"  def \w+\(.*", re.ASCII)
_LIST: Final = re.compile(
    r'  __(parameters|buffers|forward_hooks|forward_pre_hooks)__ = \[((?:"[^"\\]*", )*)\]'
)
_NAME: Final = re.compile(r'"([^"\\]*)"')
_ATTRIBUTE: Final = re.compile(r'  (?:(\w+) :|__annotations__\["([^"\\]*)"\] =) (.+)')
_NO_ANNOTATIONS: Final = "  __annotations__ = []"
_TYPE: Final = re.compile(r"[\w.]+(?:\[[\w.\[\](), ]*\])?", re.ASCII)
_CONSTANT: Final = re.compile(r"Final\[([^=]*)\] = (.+)")
_TEXT: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_BRACKETS: Final = {")": "(", "]": "[", "}": "{"}
_MODULE: Final = "Module"
_TENSOR: Final = "Tensor"
_MANGLED: Final = "__torch__."


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the code says about a class: whether it is a module, and what its attributes are."""

    is_module: bool
    parameters: frozenset[str]
    buffers: frozenset[str]


def declarations(source: str) -> dict[str, Declaration]:
    """Return the declarations of every class in a source file, by the name of the class.

    Raises `DamagedFileError` if they are not in the form that torch prints.
    """
    found: dict[str, _Class] = {}
    current: _Class | None = None
    in_function = False
    for number, line in enumerate(source.split("\n"), 1):
        if not line:
            continue
        if line[0] == " ":
            if not (in_function if current is None else current.takes(line)):
                raise _unprinted(number, line)
            continue
        head = _CLASS.fullmatch(line)
        if (head is None and not _OTHER.fullmatch(line)) or (head and head[1] in found):
            raise _unprinted(number, line)
        in_function = line.startswith("def ")
        current = None if head is None else found.setdefault(head[1], _Class(head[2] == _MODULE))
    return {name: each.declaration() for name, each in found.items()}


@dataclass(slots=True)
class _Class:
    """A class whose lines are being read; `types` are those of its attributes, as text."""

    is_module: bool
    lists: dict[str, frozenset[str]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    in_methods: bool = False

    def takes(self, line: str) -> bool:
        """Take a line of the class; False for one that torch would not have printed."""
        if not self.is_module:  # nothing of it is read
            return True
        if _METHOD.fullmatch(line):
            self.in_methods = True
            return True
        if self.in_methods:
            return line.startswith("    ")
        return line == _NO_ANNOTATIONS or self._takes_list(line) or self._takes_attribute(line)

    def _takes_list(self, line: str) -> bool:
        match = _LIST.fullmatch(line)
        if match is None or match[1] in self.lists:
            return False
        self.lists[match[1]] = frozenset(_NAME.findall(match[2]))
        return True

    def _takes_attribute(self, line: str) -> bool:
        match = _ATTRIBUTE.fullmatch(line)
        if match is None:
            return False
        name, kind = match[1] or match[2], match[3]
        constant = _CONSTANT.fullmatch(kind)
        if constant is not None:
            return _is_type(constant[1]) and _is_whole(constant[2])
        if name in self.types or not _is_type(kind):
            return False
        self.types[name] = kind
        return True

    def declaration(self) -> Declaration:
        tensors = {name for name, kind in self.types.items() if kind == _TENSOR}
        return Declaration(
            self.is_module,
            self.lists.get("parameters", frozenset()),
            self.lists.get("buffers", frozenset()) & tensors,
        )


def _is_type(text: str) -> bool:
    """Return whether a type has the printed form, in which a tensor is never ``torch.Tensor``."""
    if not _TYPE.fullmatch(text) or not _is_whole(text):
        return False
    return text == _TENSOR or not text.endswith(_TENSOR) or text.startswith(_MANGLED)


def _is_whole(text: str) -> bool:
    """Return whether an expression ends where its line ends: no string
    or bracket goes on, no comment.
    """
    waiting: list[str] = []
    for character in _TEXT.sub('""', text).replace('""', "_"):
        if character in "\"'#\\":
            return False
        if character in _BRACKETS.values():
            waiting.append(character)
        elif character in _BRACKETS and (not waiting or waiting.pop() != _BRACKETS[character]):
            return False
    return not waiting


def _unprinted(number: int, line: str) -> DamagedFileError:
    return DamagedFileError(f"line {number} of the code is not as torch prints it: {line[:80]!r}")
