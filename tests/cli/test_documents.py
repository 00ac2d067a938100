"""Laws of JSON: one envelope, one meaning a field, errors included; the schemas that say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from signing_keys import write_key

import ckpt_surgery
from ckpt_surgery.cli.main import COMMANDS

jsonschema = pytest.importorskip("jsonschema")
referencing = pytest.importorskip("referencing")

ENVELOPE = ["schema", "command", "version", "exit_code", "inputs", "output", "warnings"]
SCHEMAS = {
    path.name.removesuffix(".schema.json"): json.loads(path.read_text())
    for path in (Path(ckpt_surgery.__file__).parent / "reports" / "schemas").glob("*.json")
}
REGISTRY = referencing.Registry().with_resources(
    (f"{name}.schema.json", referencing.Resource.from_contents(schema))
    for name, schema in SCHEMAS.items()
)
FIELDS = SCHEMAS["fields"]["$defs"]
DOCUMENTS = {name: schema for name, schema in SCHEMAS.items() if name != "fields"}
RUNS = (
    "inspect train.pth.tar",
    "inspect net.pth --stats",
    "strip train.pth.tar --prefix module.fc -o out.pth",
    "strip net.pth fc.bias -o out.pth",
    "rename net.pth --add-prefix m. --dry-run",
    "edit net.pth --transpose fc.weight -o out.pth",
    "set train.pth.tar epoch=4 -o out.pth",
    "convert train.pth.tar --state-dict-only -o out.safetensors",
    "consolidate net.pth -o out.pth",
    "match net.pth --like net.pth",
    "match net.pth --like train.pth.tar",
    "fit net.pth --like train.pth.tar --at  -o out.pth",
    "merge net.pth net.pth -o out.pth",
    "merge train.pth.tar train.pth.tar -m average -o out.pth",
    "lora extract net.pth run.pth --rank 1 -o adapter",
    "freeze-plan net.pth --train head",
    "freeze-plan net.pth --train head -o plan.toml",
    "verify net.pth train.pth.tar",
    "verify net.pth nothing.pth",
    "verify net.pth --salvage out.pth",
    "diff net.pth train.pth.tar --values",
    "hash net.pth train.pth.tar nothing.pth",
    "hash net.pth --per-tensor",
    "hash --files net.pth",
    "hash --check DIGESTS",
)
FAILURES = (
    ("strip nothing.pth --prefix fc -o out.pth", "ReadError", ["nothing.pth"]),
    ("strip net.pth --prefix nose --dry-run", "UsageError", ["net.pth"]),
    ("inspect --nonsense net.pth", "UsageError", []),
    ("rename net.pth -i --sub ( x", "UsageError", ["net.pth"]),
    ("match net.pth --model torchvision:resnet19", "UsageError", ["net.pth"]),
    ("lora extract net.pth nothing.pth --rank 2 -o l", "ReadError", ["net.pth", "nothing.pth"]),
    ("verify --force net.pth", "UsageError", ["net.pth"]),
    ("nonsense", "UsageError", []),
)


def check(document, kind):
    """Raise if a document breaks its schema, or has a field that the schema does not know."""
    validator = jsonschema.Draft202012Validator(SCHEMAS[kind], registry=REGISTRY)
    validator.validate(document)
    assert set(document) <= set(SCHEMAS[kind]["properties"])
    assert list(document)[: len(ENVELOPE)] == ENVELOPE


@pytest.mark.parametrize("line", RUNS)
def test_what_a_command_prints_is_what_its_schema_says(folder, invoke, line):
    invoke("hash", "net.pth")
    Path("DIGESTS").write_text(invoke("hash", "net.pth").stdout)
    invoke("edit", "net.pth", "--scale", "**=2", "-o", "run.pth")
    words = line.split(" ")
    result = invoke(*words, "--json")
    document = json.loads(result.stdout)
    check(document, words[0])
    assert document["exit_code"] == result.exit_code
    assert document["version"] == ckpt_surgery.__version__


def test_a_recipe_and_a_record_are_documents_like_the_others(folder, invoke):
    line = ("strip", "net.pth", "fc.bias", "-o", "out.pth", "--record", "log.json")
    assert invoke(*line).exit_code == 0
    check(json.loads(Path("log.json").read_text()), "strip")
    check(json.loads(invoke("apply", "log.json", "-o", "again.pth", "--json").stdout), "apply")


def test_a_signature_is_a_document_like_the_others(folder, invoke):
    write_key("key.pem")
    strip = ("strip", "net.pth", "fc.bias", "-o", "out.pth", "--record", "log.json")
    assert invoke(*strip).exit_code == 0
    for more in ((), ("--record", "log.json", "--force")):
        result = invoke("sign", "out.pth", "--key", "key.pem", *more, "--json")
        document = json.loads(result.stdout)
        check(document, "sign")
        assert document["exit_code"] == result.exit_code == 0
        assert document["inputs"] == ["out.pth", *more[1:2]]
    refused = json.loads(invoke("sign", "out.pth", "--key", "key.pem", "--json").stdout)
    check(refused, "error")


@pytest.mark.parametrize(("line", "kind", "inputs"), FAILURES, ids=lambda v: str(v)[:30])
def test_an_error_is_a_document_where_the_report_would_go(folder, invoke, line, kind, inputs):
    words = line.split(" ")
    plain, result = invoke(*words), invoke(*words, "--json")
    document = json.loads(result.stdout)
    check(document, "error")
    assert document["exit_code"] == result.exit_code == plain.exit_code == 2
    assert document["error"]["kind"] == kind
    assert document["inputs"] == inputs
    assert document["command"] == (words[0] if words[0] in COMMANDS else "ckpt")
    # people at the terminal of a pipeline read it all the same
    assert result.stderr == plain.stderr
    assert document["error"]["message"] in result.stderr


def test_an_error_where_the_checkpoint_would_go_to_standard_output_is_on_the_other(folder, ckpt):
    done = ckpt("strip", "nothing.pth", "--prefix", "fc", "--json")
    assert done.stdout == b""
    check(json.loads(done.stderr), "error")


def test_an_error_of_many_documents_is_one_line(folder, invoke):
    (line,) = invoke("inspect", "nothing.pth", "--jsonl").stdout.splitlines()
    check(json.loads(line), "error")


def test_a_file_of_that_name_asks_for_nothing(folder, invoke):
    Path("net.pth").rename("--json")
    assert invoke("inspect", "--keys", "--", "--json").exit_code == 0
    assert invoke("inspect", "--keys", "--", "--jsons").stdout == ""


def test_a_field_has_one_meaning_in_all_documents():
    used = set()
    for name, schema in DOCUMENTS.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert list(schema["properties"])[: len(ENVELOPE)] == ENVELOPE
        assert set(ENVELOPE) <= set(schema["required"])
        for field, meaning in schema["properties"].items():
            if field != "command" or name == "error":
                assert meaning == {"$ref": f"fields.schema.json#/$defs/{field}"}, (name, field)
            used.add(field)
    assert used == set(FIELDS)
    assert all(FIELDS[field]["description"].endswith(".") for field in FIELDS)


def test_every_command_with_a_report_has_a_schema():
    import click

    from ckpt_surgery.cli.main import cli

    context = click.Context(cli)
    having = {
        name
        for name in COMMANDS
        if any("--json" in option.opts for option in cli.get_command(context, name).params)
    }
    values = {"get"}  # which prints a value of the file, as JSON if it is told to
    assert having - values == set(DOCUMENTS) - {"error"}
