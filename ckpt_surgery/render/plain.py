"""Reports for programs: names, CSV, JSON. No Rich here; what starts up for a pipe starts fast."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TextIO

from ckpt_surgery.checkpoint.description import Entry, join_path
from ckpt_surgery.render.text import visible

if TYPE_CHECKING:
    from ckpt_surgery.reports import Report
    from ckpt_surgery.reports.inspection import InspectReport

_LARGEST_BITS: Final = 4096  # of an integer that JSON gets as a number
_COLUMNS: Final = (
    *("state_dict", "index", "parameter_index", "name", "shape", "dtype", "role"),
    *("numel", "nbytes", "device"),
)
_FORMULAS: Final = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # noqa: RUF001 (wide ones as well)
_STATS: Final = ("min", "max", "mean", "std", "nan", "inf", "zeros")


def write_keys(report: InspectReport, stream: TextIO) -> None:
    """Write the names of each state dict, one a line; a line break within one is escaped."""
    stream.writelines(
        f"{visible(entry.name)}\n" for each in report.state_dicts for entry in each.entries
    )


def write_csv(report: InspectReport, stream: TextIO) -> None:
    """Write a head and one line an entry; a shape is a JSON list, what does not apply is empty.

    A text that a spreadsheet would take for a formula has an apostrophe in front.
    """
    import csv

    table = csv.writer(stream, lineterminator="\n")
    table.writerow((*_COLUMNS, *_STATS) if report.stats else _COLUMNS)
    for state_dict in report.state_dicts:
        for entry in state_dict.entries:
            key = join_path(state_dict.path, entry.name)
            place = report.places[key]
            parameter = "" if place.parameter is None else place.parameter
            row = [_cell(state_dict.path), place.index, parameter, *_cells(entry)]
            if report.stats:
                stats = report.stats.get(key)
                facts = {} if stats is None else stats.to_dict()
                row += [facts.get(name) for name in _STATS]
            table.writerow(row)


def _cells(entry: Entry) -> Iterator[object]:
    tensor = entry.tensor
    yield _cell(entry.name)
    if tensor is None:
        yield from ("", "", entry.role, "", "", "")
        return
    yield str(list(tensor.shape))
    yield tensor.dtype.name
    yield entry.role
    yield tensor.numel
    yield tensor.nbytes
    yield _cell(tensor.device)


def _cell(text: str) -> str:
    """`text`, which comes from a file, as a cell that no spreadsheet computes."""
    shown = visible(text)
    return f"'{shown}" if shown.startswith(_FORMULAS) else shown


def write_json(report: Report, stream: TextIO) -> None:
    """Write the report's document, ASCII only."""
    stream.write(to_json(report.to_dict()) + "\n")


def write_jsonl(report: Report, stream: TextIO) -> None:
    """Write the report's document on one line, ASCII only."""
    stream.write(to_jsonl(report.to_dict()) + "\n")


def to_json(document: Mapping[str, Any]) -> str:
    """Strict JSON: what it cannot say (NaN, a number of thousands of digits) becomes a text."""
    import json

    return json.dumps(_strict(document), indent=2, allow_nan=False)


def to_jsonl(document: Mapping[str, Any]) -> str:
    """Return the same on one line."""
    import json

    return json.dumps(_strict(document), allow_nan=False)


def _strict(value: Any) -> Any:
    """Reports are a few levels deep, whatever the file holds."""
    if isinstance(value, Mapping):
        return {str(key): _strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > _LARGEST_BITS:
        return hex(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)
