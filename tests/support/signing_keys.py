"""Private keys for tests of signatures, always the same."""

from __future__ import annotations

from pathlib import Path

from frameworks import framework


def write_key(path: str | Path) -> None:
    """Write a private key without a password, or skip the test where nothing can sign."""
    framework("model_signing")
    ec = framework("cryptography.hazmat.primitives.asymmetric.ec")
    serialization = framework("cryptography.hazmat.primitives.serialization")
    key = ec.derive_private_key(12345, ec.SECP256R1())
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    Path(path).write_bytes(key.private_bytes(*pem, serialization.NoEncryption()))
