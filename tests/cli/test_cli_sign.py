"""``ckpt sign``, ``ckpt bom``, and what ``ckpt verify`` says of signatures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from frameworks import framework

framework("model_signing")
ec = framework("cryptography.hazmat.primitives.asymmetric.ec")
serialization = framework("cryptography.hazmat.primitives.serialization")


@pytest.fixture(autouse=True)
def keys(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    secret = serialization.BestAvailableEncryption(b"word")
    Path("key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
    )
    Path("key.pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return folder


def test_from_an_edit_to_a_verified_record(invoke, monkeypatch):
    monkeypatch.setenv("WORD", "word")
    done = invoke("strip", "net.pth", "fc.bias", "-o", "out.pth", "--record", "out.json", "-q")
    assert done.exit_code == 0
    key = ("--key", "key.pem", "--password-env", "WORD")
    done = invoke("sign", "out.pth", *key, "--record", "out.json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == [
        "signature in out.pth.sig",
        "signed record in out.pth.intoto.json",
    ]
    assert invoke("sign", "out.pth", *key).exit_code == 2
    assert json.loads(invoke("sign", "out.pth", *key, "--force", "--json").stdout)["key"]
    proofs = ("--signature", "out.pth.sig", "--statement", "out.pth.intoto.json")
    done = invoke("verify", "out.pth", *proofs, "--public-key", "key.pub")
    assert done.exit_code == 0
    said = done.stdout.splitlines()[-2:]
    assert said[0].startswith("  signature: signed with the key ")
    assert said[1].startswith("  record: strip of net.pth (sha256 ")
    done = invoke("verify", "net.pth", *proofs, "--public-key", "key.pub")
    assert done.exit_code == 1
    assert "error: signature: out.pth.sig: the model is not what was signed" in done.stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sign net.pth --key key.pem", "the key is encrypted"),
        ("sign net.pth --key key.pem --password-env NO_SUCH", "no such variable"),
        ("sign - --key key.pem", "'-' is no file"),
        ("verify net.pth --public-key key.pub", "'--public-key' goes with"),
        ("verify net.pth --signature key.pub", "'--public-key' goes with"),
        ("verify net.pth big.pth --signature s --public-key key.pub", "take one FILE"),
        ("bom net.pth big.pth --record r.json", "'--record' is about one FILE"),
        ("bom net.pth --force", "'--force' is about the output"),
    ],
)
def test_what_cannot_work_is_refused(line, message, invoke):
    done = invoke(*line.split())
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_bill_of_materials_goes_where_it_is_told(invoke):
    done = invoke("bom", "net.pth")
    assert json.loads(done.stdout)["bomFormat"] == "CycloneDX"
    assert invoke("bom", "net.pth", "-o", "net.cdx.json").stdout == ""
    assert invoke("bom", "net.pth", "-o", "net.cdx.json").exit_code == 2
    assert json.loads(Path("net.cdx.json").read_text())["specVersion"] == "1.6"
