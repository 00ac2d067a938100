"""SARIF documents are of the published schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_checks import save

from ckpt_surgery import verify
from ckpt_surgery.checkpoint.findings import RULES
from ckpt_surgery.render.plain import to_json
from ckpt_surgery.render.sarif import to_sarif


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a good file, one with an odd name and damage, and one that is missing."""
    monkeypatch.chdir(tmp_path)
    save({"a": torch.ones(2)}, Path("good.pth"))
    bad = save({"a": torch.full((4,), 3.0)}, Path("50% of #1 é.pth"))
    data = bytearray(bad.read_bytes())
    data[data.index(torch.full((4,), 3.0).numpy().tobytes())] ^= 1
    bad.write_bytes(data)
    report = verify(["good.pth", str(bad), "missing.pth"])
    found: dict[str, Any] = json.loads(to_json(to_sarif(report, "1.2.3")))
    return found


def test_it_is_of_the_published_schema(document: dict[str, Any]) -> None:
    """`pydantic_sarif` is generated from ``sarif-schema-2.1.0.json`` and refuses anything else."""
    model = pytest.importorskip("pydantic_sarif.model")
    found = model.StaticAnalysisResultsFormatSarifVersion210JsonSchema.model_validate(document)
    assert len(found.runs) == 1
    document["runs"][0]["results"][0]["levle"] = "error"
    with pytest.raises(ValueError, match="levle"):
        model.StaticAnalysisResultsFormatSarifVersion210JsonSchema.model_validate(document)


def test_results(document: dict[str, Any]) -> None:
    (run,) = document["runs"]
    (result,) = run["results"]
    assert (result["ruleId"], result["level"]) == ("checksum", "error")
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == "checksum"
    (location,) = result["locations"]
    where = location["physicalLocation"]
    assert where["artifactLocation"] == {"uri": "50%25%20of%20%231%20%C3%A9.pth", "index": 1}
    assert where["region"] == {"startLine": 1}
    assert location["logicalLocations"] == [{"fullyQualifiedName": "data/0"}]
    assert result["properties"]["byteOffset"] > 0
    assert run["artifacts"][0]["location"]["uri"] == "good.pth"


def test_what_could_not_be_read_is_a_notification(document: dict[str, Any]) -> None:
    (invocation,) = document["runs"][0]["invocations"]
    assert not invocation["executionSuccessful"]
    assert invocation["exitCode"] == 2
    (said,) = invocation["toolExecutionNotifications"]
    assert said["message"]["text"] == "cannot be read: no such file or directory"


def test_every_rule_is_described(document: dict[str, Any]) -> None:
    rules = document["runs"][0]["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    assert document["runs"][0]["tool"]["driver"]["version"] == "1.2.3"
