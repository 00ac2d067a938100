"""What is signed here other tools of the field verify, and the other way round."""

from __future__ import annotations

import base64
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from frameworks import framework
from torch_checks import save

from ckpt_surgery import StripRequest, convert, selection, strip, verify
from ckpt_surgery.errors import MissingDependencyError, ReadError, WriteError
from ckpt_surgery.ops.bom import bill_of_materials
from ckpt_surgery.ops.lineage import EditRecord
from ckpt_surgery.ops.proofs import Proofs
from ckpt_surgery.ops.signing import ForgedError, check_signature, check_statement, sign
from ckpt_surgery.ops.verify_checks import Checks

model_signing = framework("model_signing")
ec = framework("cryptography.hazmat.primitives.asymmetric.ec")
ed25519 = framework("cryptography.hazmat.primitives.asymmetric.ed25519")
serialization = framework("cryptography.hazmat.primitives.serialization")


def write_keys(folder: Path, name: str, key: object, password: bytes | None = None) -> None:
    hidden = serialization.NoEncryption()
    if password is not None:
        hidden = serialization.BestAvailableEncryption(password)
    (folder / f"{name}.pem").write_bytes(
        key.private_bytes(  # type: ignore[attr-defined]
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden
        )
    )
    (folder / f"{name}.pub").write_bytes(
        key.public_key().public_bytes(  # type: ignore[attr-defined]
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with keys, a model, and a record of the edit that wrote it."""
    monkeypatch.chdir(tmp_path)
    for name, curve in (("key", ec.SECP256R1()), ("other", ec.SECP384R1())):
        write_keys(tmp_path, name, ec.generate_private_key(curve))
    write_keys(tmp_path, "hidden", ec.generate_private_key(ec.SECP521R1()), b"word")
    write_keys(tmp_path, "edwards", ed25519.Ed25519PrivateKey.generate())
    save({"fc.weight": torch.ones(3), "body": torch.arange(2**24 - 1, 2**24 + 2)}, Path("a.pth"))
    report = strip("a.pth", "net.pth", StripRequest(selection(prefix=["fc"])))
    digests = {
        kind: {name: sha256(name)} for kind, name in (("inputs", "a.pth"), ("outputs", "net.pth"))
    }
    Path("net.json").write_text(json.dumps(report.to_dict() | {"digests": digests}))
    return tmp_path


def sha256(name: str) -> str:
    import hashlib

    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def flip(name: str) -> None:
    data = bytearray(Path(name).read_bytes())
    data[len(data) // 2] ^= 1
    Path(name).write_bytes(data)


# --- models


@pytest.mark.parametrize("name", ["key", "other", "hidden"])
def test_model_signing_verifies_what_is_signed_here(name: str) -> None:
    report = sign("net.pth", f"{name}.pem", password="word" if name == "hidden" else None)
    assert (report.output, report.statement) == ("net.pth.sig", None)
    config = model_signing.verifying.Config()
    config.use_elliptic_key_verifier(public_key=f"{name}.pub").verify("net.pth", report.output)
    proved = check_signature("net.pth", "net.pth.sig", f"{name}.pub")
    assert (proved.kind, proved.key) == ("signature", report.key)


def test_what_model_signing_signs_is_verified_here() -> None:
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key="key.pem")
    config.sign("net.pth", "net.sig")
    assert check_signature("net.pth", "net.sig", "key.pub").kind == "signature"


def test_a_right_signature_is_of_bytes_without_a_checksum(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    convert("net.pth", path)
    sign(path, "key.pem")
    found = {}
    for name in ("key", "other"):
        checks = Checks(proofs=Proofs(f"{name}.pub", f"{path}.sig"), require_checksums=True)
        (verdict,) = verify([path], checks).verdicts
        found[name] = {finding.rule for finding in verdict.findings}
    assert found == {"key": set(), "other": {"no-checksum", "signature"}}


def test_a_signature_is_of_the_bytes_whatever_the_file_is_called() -> None:
    sign("net.pth", "key.pem")
    Path("net.pth").rename("other.pth")
    assert check_signature("other.pth", "net.pth.sig", "key.pub")
    flip("other.pth")
    with pytest.raises(ForgedError, match="not what was signed: it has other bytes"):
        check_signature("other.pth", "net.pth.sig", "key.pub")


def test_a_directory_is_signed_as_a_whole() -> None:
    folder = Path("model")
    folder.mkdir()
    for name in ("one", "two"):
        (folder / name).write_text(name)
    sign("model", "key.pem", signature="model/model.sig")
    assert check_signature("model", "model/model.sig", "key.pub")
    (folder / "three").write_text("x")
    with pytest.raises(ForgedError, match="extra files: three"):
        check_signature("model", "model/model.sig", "key.pub")
    (folder / "three").rename(folder / "one")
    with pytest.raises(ForgedError, match="'one' has other bytes"):
        check_signature("model", "model/model.sig", "key.pub")
    (folder / "one").unlink()
    with pytest.raises(ForgedError, match="missing files: one"):
        check_signature("model", "model/model.sig", "key.pub")


def test_another_key_or_a_changed_signature_is_forged() -> None:
    sign("net.pth", "key.pem")
    write_keys(Path(), "twin", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(ForgedError, match="made with another key"):
        check_signature("net.pth", "net.pth.sig", "twin.pub")
    bundle = json.loads(Path("net.pth.sig").read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(b"net", b"not")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    Path("net.pth.sig").write_text(json.dumps(bundle))
    with pytest.raises(ForgedError, match="not that of this key"):
        check_signature("net.pth", "net.pth.sig", "key.pub")
    Path("net.pth.sig").write_text("{}")
    with pytest.raises(ForgedError):
        check_signature("net.pth", "net.pth.sig", "key.pub")


@pytest.mark.parametrize(
    ("key", "password", "message"),
    [
        ("hidden.pem", None, "the key is encrypted"),
        ("hidden.pem", "wrong", "the password is not its own"),
        ("key.pem", "word", "the password is not its own"),
        ("key.pub", None, "no private key in PEM"),
        ("edwards.pem", None, "elliptic curves that model-signing takes"),
        ("nothing.pem", None, "cannot be read: no such file"),
    ],
)
def test_keys_that_cannot_sign(key: str, password: str | None, message: str) -> None:
    before = set(Path().iterdir())
    with pytest.raises(ReadError, match=message):
        sign("net.pth", key, password=password)
    assert set(Path().iterdir()) == before


def test_what_cannot_be_signed_or_written() -> None:
    with pytest.raises(ReadError, match="no such file"):
        sign("nothing.pth", "key.pem")
    with pytest.raises(ReadError, match="no public key"):
        check_signature("net.pth", "a.pth", "key.pem")
    with pytest.raises(ReadError, match="no such file"):
        check_signature("net.pth", "nothing.sig", "key.pub")
    with pytest.raises(WriteError):
        sign("net.pth", "key.pem", signature="net.pth", force=True)
    sign("net.pth", "key.pem")
    with pytest.raises(WriteError, match="exists"):
        sign("net.pth", "key.pem", record="net.json")
    assert not Path("net.pth.intoto.json").exists()
    sign("net.pth", "key.pem", record="net.json", force=True)


# --- records


def test_a_signed_record_says_inputs_plan_and_output() -> None:
    statement = sign("net.pth", "key.pem", record="net.json").statement
    assert statement == "net.pth.intoto.json"
    envelope = json.loads(Path(statement).read_text())
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    said = json.loads(base64.b64decode(envelope["payload"]))
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["subject"] == [{"name": "net.pth", "digest": {"sha256": sha256("net.pth")}}]
    predicate = said["predicate"]
    assert predicate["inputs"] == [{"name": "a.pth", "digest": {"sha256": sha256("a.pth")}}]
    assert predicate["plan"] == json.loads(Path("net.json").read_text())["plan"]
    proved = check_statement("net.pth", statement, "key.pub")
    assert proved.says.startswith("strip of a.pth (sha256 ")
    assert proved.says.endswith(": 1 edit")
    for wrong in ("a.pth", "nothing"):
        with pytest.raises(ForgedError):
            check_statement(wrong, statement, "key.pub")
    with pytest.raises(ForgedError):
        check_statement("net.pth", statement, "other.pub")


def test_a_statement_of_another_kind_is_no_record() -> None:
    statement = Path(sign("net.pth", "key.pem", record="net.json").statement or "")
    dsse, signers = framework("securesystemslib.dsse"), framework("securesystemslib.signer")
    private = serialization.load_pem_private_key(Path("key.pem").read_bytes(), None)
    said = json.loads(base64.b64decode(json.loads(statement.read_text())["payload"]))
    for change in ({"predicateType": "urn:other"}, {"predicate": {"plan": []}}):
        envelope = dsse.Envelope(
            json.dumps(said | change).encode(), "application/vnd.in-toto+json", {}
        )
        envelope.sign(signers.CryptoSigner(private))
        statement.write_text(json.dumps(envelope.to_dict()))
        with pytest.raises(ForgedError, match="it is no record of edits"):
            check_statement("net.pth", statement, "key.pub")


def test_a_record_of_another_file_is_not_signed() -> None:
    with pytest.raises(ReadError, match="is about another file"):
        sign("a.pth", "key.pem", record="net.json")
    for text in ("{", "[]", "{}"):
        Path("bad.json").write_text(text)
        with pytest.raises(ReadError, match="no record of an edit"):
            sign("net.pth", "key.pem", record="bad.json")
    with pytest.raises(ReadError, match="no such file"):
        EditRecord.read("nothing.json")


def test_verify_says_what_is_proved_and_what_is_forged() -> None:
    sign("net.pth", "key.pem", record="net.json")
    proofs = Proofs("key.pub", "net.pth.sig", "net.pth.intoto.json")
    report = verify(["net.pth"], Checks(proofs=proofs))
    assert report.exit_code == 0
    assert [each["kind"] for each in report.verdicts[0].proofs] == ["signature", "record"]
    report = verify(["a.pth"], Checks(proofs=proofs))
    assert report.exit_code == 1
    assert [f.entry for f in report.verdicts[0].findings] == ["net.pth.sig", "net.pth.intoto.json"]
    report = verify(["net.pth"], Checks(proofs=Proofs("nothing.pub", "net.pth.sig")))
    assert report.exit_code == 2


# --- bills of materials


def test_a_bill_of_materials_is_valid_and_has_the_lineage() -> None:
    validation = framework("cyclonedx.validation.json")
    schema = framework("cyclonedx.schema")
    check = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    text = bill_of_materials(["net.pth"], record="net.json")
    assert check.validate_str(text) is None
    model = json.loads(text)["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": sha256("net.pth")}]
    properties = {each["name"]: each["value"] for each in model["properties"]}
    assert properties["ckpt:types"] == "int64: 1"
    assert properties["ckpt:digest"].startswith("ckpt1:")
    (ancestor,) = model["pedigree"]["ancestors"]
    assert ancestor["hashes"][0]["content"] == sha256("a.pth")
    several = bill_of_materials(["net.pth", "a.pth"])
    assert check.validate_str(several) is None
    assert [each["name"] for each in json.loads(several)["components"]] == ["a.pth", "net.pth"]


def test_a_bill_of_several_state_dicts_and_of_a_directory(tmp_path: Path) -> None:
    one = {"w": torch.ones(2)}
    save({"state_dict": one, "ema": dict(one)}, Path("run.pth"))
    properties = json.loads(bill_of_materials(["run.pth"]))["metadata"]["component"]["properties"]
    names = [each["name"] for each in properties if "digest" in each["name"]]
    assert names == ["ckpt:digest:ema", "ckpt:digest:state_dict"]
    with pytest.raises(ReadError, match="another file"):
        bill_of_materials(["run.pth"], record="net.json")


@pytest.mark.parametrize("gone", ["model_signing.hashing", "cyclonedx.model.component"])
def test_without_the_libraries_one_line_says_how_to_get_them(
    gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, gone, None)
    needing = partial(sign, "net.pth", "key.pem")
    if gone.startswith("cyclonedx"):
        needing = partial(bill_of_materials, ["net.pth"])
    with pytest.raises(MissingDependencyError) as caught:
        needing()
    assert caught.value.hint == "pip install 'ckpt-surgery[sign]'"
