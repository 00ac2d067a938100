"""What `verify` found as SARIF 2.1.0, which hosts of code show beside the files.

The form is that of the OASIS standard "Static Analysis Results Interchange Format (SARIF) Version
2.1.0". A checkpoint has no lines: every result stands at line 1, where GitHub wants one, and names
its record or tensor as a logical location.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from ckpt_surgery.checkpoint.findings import RULES, Finding
from ckpt_surgery.reports import Failure
from ckpt_surgery.reports.verification import VerifyReport

_SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


def to_sarif(report: VerifyReport, version: str) -> dict[str, Any]:
    """Return the SARIF document of a report made by `version` of ckpt."""
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": _driver(version)},
                "invocations": [_invocation(report)],
                "artifacts": [
                    {"location": {"uri": _uri(each.file)}, "length": each.size}
                    for each in report.verdicts
                ],
                "results": [
                    _result(finding, index, verdict.file)
                    for index, verdict in enumerate(report.verdicts)
                    for finding in verdict.findings
                ],
                "columnKind": "unicodeCodePoints",
            }
        ],
    }


def _driver(version: str) -> dict[str, Any]:
    rules = [
        {"id": rule, "shortDescription": {"text": title}, "fullDescription": {"text": f"{title}."}}
        for rule, title in RULES.items()
    ]
    return {"name": "ckpt", "version": version, "rules": rules}


def _invocation(report: VerifyReport) -> dict[str, Any]:
    return {
        "executionSuccessful": not report.failures,
        "exitCode": report.exit_code,
        "toolExecutionNotifications": [_notification(each) for each in report.failures],
    }


def _notification(failure: Failure) -> dict[str, Any]:
    return {
        "level": "error",
        "message": {"text": failure.message},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(failure.file)}}}],
    }


def _result(finding: Finding, index: int, file: str) -> dict[str, Any]:
    said = f"{finding.entry}: {finding.message}" if finding.entry else finding.message
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": _uri(file), "index": index},
            "region": {"startLine": 1},
        }
    }
    if finding.entry is not None:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.entry}]
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": list(RULES).index(finding.rule),
        "level": finding.severity,
        "message": {"text": said},
        "locations": [location],
    }
    if finding.offset is not None:
        result["properties"] = {"byteOffset": finding.offset}
    return result


def _uri(file: str) -> str:
    """Return the name of a file as a reference: relative if it is,
    and with nothing that is no URI.
    """
    return quote(file.encode("utf-8", "surrogateescape"), safe="/")
