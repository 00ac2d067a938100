"""Sign models and records of edits, and check signatures, by the field's own libraries.

A model's signature is that of OpenSSF model-signing: a Sigstore bundle over the SHA-256 of every
file of the model. A record of edits becomes a statement of in-toto about its output, in an
envelope of DSSE.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ckpt_surgery.errors import MissingDependencyError, PathLike, ReadError
from ckpt_surgery.fileio.atomic import atomic_output
from ckpt_surgery.fileio.distinct import INPUT, OUTPUT, Role, require_distinct
from ckpt_surgery.ops.lineage import EditRecord, require_output
from ckpt_surgery.reports.signing import SignReport
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

_PREDICATE: Final = "urn:ckpt-surgery:edit:v1"
"""The type of the statement that a record becomes: what it says is that of `EditRecord`."""

_PAYLOAD: Final = "application/vnd.in-toto+json"
_MOST_NBYTES: Final = 64 << 20  # of a signature or a statement
_OPEN_IT: Final = "name the variable that holds its password: --password-env NAME"
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
_HASH: Final = re.compile(r"Hash mismatch for '([^']*)'")
_FILES: Final = re.compile(r"(Extra|Missing) files(?: found)? in model '[^']*': ([^\"\]]*)")


@dataclass(frozen=True, slots=True)
class Proved:
    """What a signature that is right says: which key signed it, and of a record what was done."""

    kind: str
    file: str
    key: str
    says: str = ""

    def to_dict(self) -> dict[str, str]:
        return {"kind": self.kind, "file": self.file, "key": self.key, "says": self.says}


class ForgedError(ReadError):
    """A signature is not that of the key, or not of these bytes."""


def sign(
    model: PathLike,
    key: PathLike,
    *,
    signature: PathLike | None = None,
    record: PathLike | None = None,
    password: str | None = None,
    force: bool = False,
) -> SignReport:
    """Sign the file or directory `model` with the private key in the PEM file `key`.

    The signature goes into the file `signature`, by default the model's name with ``.sig``. With
    `record`, which an edit wrote as ``--record``, a signed statement about it goes into
    ``.intoto.json`` beside. `password` opens an encrypted key.

    Raises `ReadError` for a key, a model or a record that cannot be used, `WriteError` for outputs
    and `MissingDependencyError` if the libraries are not installed.
    """
    private = _private_key(key, password)
    if not Path(model).exists():
        raise ReadError("there is no such file", path=model)
    where = Path(f"{model}.sig") if signature is None else Path(signature)
    statement, beside = None, None
    if record is not None:
        statement, beside = _envelope(model, record, private), Path(f"{model}.intoto.json")
    outputs = [Role(OUTPUT, each) for each in (where, beside) if each is not None]
    inputs = [Role(INPUT, each) for each in (model, key, record) if each is not None]
    require_distinct(outputs, inputs)
    bundle = _bundle(model, key, password, where)
    with ExitStack() as stack:  # all of them or none
        sink = stack.enter_context(atomic_output(where, force=force))
        if beside is not None and statement is not None:
            stack.enter_context(atomic_output(beside, force=force)).write(statement)
        sink.write(bundle)
    return SignReport(
        str(model),
        str(where),
        _key_name(private.public_key()),
        None if record is None else str(record),
        None if beside is None else str(beside),
    )


def check_signature(model: PathLike, signature: PathLike, public_key: PathLike) -> Proved:
    """Return what the signature of a model says.

    Raises `ForgedError` if it is not of this key or of these bytes, and `ReadError` for files that
    cannot be used.
    """
    key = _public_key(public_key)
    _read(signature)
    verifying = _library("model_signing.verifying")
    config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        with _silent():
            config.verify(Path(model), Path(signature))
    except Exception as error:  # of several libraries, about data that is not ours
        raise ForgedError(_why(error), path=signature) from error
    return Proved("signature", str(signature), _key_name(key))


def check_statement(model: PathLike, statement: PathLike, public_key: PathLike) -> Proved:
    """Return what the signed record of an edit says about its output, the file `model`.

    Raises `ForgedError` if it is not of this key or about another file, and `ReadError` for files
    that cannot be used.
    """
    key = _public_key(public_key)
    dsse, signers = _library("securesystemslib.dsse"), _library("securesystemslib.signer")
    text = _read(statement)
    try:
        envelope = dsse.Envelope.from_dict(json.loads(text))
        envelope.verify([signers.SSlibKey.from_crypto(key)], 1)
        said = json.loads(envelope.payload)
        kinds = envelope.payload_type, said["predicateType"]
        about = [subject["digest"]["sha256"] for subject in said["subject"]]
        record = EditRecord.from_dict(said["predicate"])
    except Exception as error:  # of several libraries, about data that is not ours
        raise ForgedError(_why(error), path=statement) from error
    if kinds != (_PAYLOAD, _PREDICATE):
        raise ForgedError("it is no record of edits", path=statement)
    try:
        require_output(model, about)
    except ReadError as error:
        raise ForgedError(error.message, path=statement) from error
    return Proved("record", str(statement), _key_name(key), record.words)


def _envelope(model: PathLike, record: PathLike, private: PrivateKeyTypes) -> bytes:
    """Return the signed statement about the output `model` of the edits in `record`."""
    v1 = _library("in_toto_attestation.v1.statement")
    described = _library("in_toto_attestation.v1.resource_descriptor")
    dsse, signers = _library("securesystemslib.dsse"), _library("securesystemslib.signer")
    json_format = _library("google.protobuf.json_format")
    edits = EditRecord.read(record)
    digest = require_output(model, edits.outputs.values())
    subject = described.ResourceDescriptor(name=Path(model).name, digest={"sha256": digest})
    statement = v1.Statement([subject.pb], _PREDICATE, edits.to_dict())
    statement.validate()
    # the library's numbers are all floating point, and those of a plan are not
    said = json_format.MessageToDict(statement.pb) | {"predicate": edits.to_dict()}
    envelope = dsse.Envelope(json.dumps(said).encode(), _PAYLOAD, {})
    envelope.sign(signers.CryptoSigner(private))
    return json.dumps(envelope.to_dict()).encode() + b"\n"


def _bundle(model: PathLike, key: PathLike, password: str | None, where: Path) -> bytes:
    """Return the signature of every file of a model; a file at `where` is not one of them."""
    signing, hashing = _library("model_signing.signing"), _library("model_signing.hashing")
    hashes = hashing.Config().use_file_serialization(allow_symlinks=True)
    root, out = Path(model).resolve(), where.resolve()
    hashes.set_ignored_paths(paths=[out.relative_to(root)] if root in out.parents else [])
    config = signing.Config().set_hashing_config(hashes)
    secret = None if password is None else password.encode()
    config.use_elliptic_key_signer(private_key=key, password=secret)
    with tempfile.TemporaryDirectory(prefix="ckpt-sign-") as folder:
        target = Path(folder) / "signature"
        try:
            with _silent():
                config.sign(Path(model), target)
        except (OSError, ValueError) as error:
            raise ReadError(f"cannot be signed: {_why(error)}", path=model) from error
        return target.read_bytes()


def _private_key(path: PathLike, password: str | None) -> PrivateKeyTypes:
    """Read a private key. Raises `ReadError` if it is none, or of a kind that cannot sign here."""
    serialization = _library("cryptography.hazmat.primitives.serialization")
    secret = None if password is None else password.encode()
    try:
        key: PrivateKeyTypes = serialization.load_pem_private_key(_read(path), secret)
    except (TypeError, ValueError) as error:
        encrypted = password is None and "encrypted" in str(error)
        said = "it is no private key in PEM, or the password is not its own"
        raise ReadError(
            "the key is encrypted" if encrypted else said,
            path=path,
            hint=_OPEN_IT if encrypted else None,
        ) from error
    _require_curve(key.public_key(), path)
    return key


def _public_key(path: PathLike) -> PublicKeyTypes:
    serialization = _library("cryptography.hazmat.primitives.serialization")
    try:
        key: PublicKeyTypes = serialization.load_pem_public_key(_read(path))
    except ValueError as error:
        raise ReadError("it is no public key in PEM", path=path) from error
    _require_curve(key, path)
    return key


def _require_curve(key: PublicKeyTypes, path: PathLike) -> None:
    if getattr(getattr(key, "curve", None), "name", None) not in _CURVES:
        raise ReadError(
            "the key is not on one of the elliptic curves that model-signing takes",
            path=path,
            hint="openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem",
        )


def _key_name(key: PublicKeyTypes) -> str:
    """Return SHA-256 of a public key in PEM, as model-signing names it in a signature."""
    import hashlib

    serialization = _library("cryptography.hazmat.primitives.serialization")
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(pem).hexdigest()


def _read(path: PathLike) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MOST_NBYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ReadError(f"cannot be read: {reason.lower()}", path=path) from error
    if len(data) > _MOST_NBYTES:
        raise ReadError("too large for a key or a signature", path=path)
    return data


def _why(error: Exception) -> str:
    """Return in one line what a library says, without the digests that it prints as bytes."""
    said = str(error).replace("\\'", "'")  # parts of it are printed as Python writes texts
    files = [f"'{name}' has other bytes" for name in _HASH.findall(said)]
    files += [f"{which.lower()} files: {names}" for which, names in _FILES.findall(said)]
    if files:
        return "the model is not what was signed: " + "; ".join(files).replace("'.'", "it")
    if "Key mismatch" in said:
        return "it was made with another key"
    if type(error).__name__ in {"InvalidSignature", "VerificationError"}:
        return "it is not that of this key"
    return (said.strip() or type(error).__name__).splitlines()[0][:200]


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what the libraries print from the command's output."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _library(name: str) -> Any:
    """Import a module of a library. Raises `MissingDependencyError` if it is not installed."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"signing needs '{name.partition('.')[0]}', which is not installed",
            hint="pip install 'ckpt-surgery[sign]'",
        ) from error
