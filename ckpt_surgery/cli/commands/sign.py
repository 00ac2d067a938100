"""``ckpt sign``."""

from __future__ import annotations

import os
from typing import Any

import click

from ckpt_surgery.cli.base import Command
from ckpt_surgery.cli.options import report_options
from ckpt_surgery.cli.output import print_report
from ckpt_surgery.cli.types import CheckpointFile, InputFile, OutputFile
from ckpt_surgery.errors import UsageError


@click.command(cls=Command)
@click.argument("file", type=CheckpointFile())
@click.option(
    "--key",
    required=True,
    metavar="PEM",
    type=InputFile(),
    help="The private key: an elliptic curve P-256, P-384 or P-521.",
)
@click.option(
    "--password-env",
    metavar="NAME",
    help="The variable of the environment that holds the key's password.",
)
@click.option(
    "--record",
    metavar="LOG",
    type=InputFile(),
    help="Also sign what this record of an edit says of FILE, into FILE.intoto.json.",
)
@click.option(
    "-o",
    "--output",
    metavar="SIG",
    type=OutputFile(),
    help="Write the signature to SIG (default: FILE.sig).",
)
@click.option("--force", is_flag=True, help="Replace existing signatures.")
@report_options
@click.pass_context
def sign(ctx: click.Context, /, file: str, key: str, **_: Any) -> int:
    r"""Sign a model, and where it comes from.

    The signature is that of OpenSSF model-signing, over every file of FILE (a file or a directory),
    in a Sigstore bundle. With --record a statement of in-toto about the edit that wrote FILE is
    signed as well: digests of its inputs, every edit, digest of the output. 'ckpt verify' checks
    both. Needs: pip install 'ckpt-surgery[sign]'.

    \b
    Examples:
      ckpt sign model.safetensors --key key.pem
      ckpt sign weights/ --key own.pem --password-env KEY_PASSWORD -o weights.sig
      ckpt strip run.pth --training-state -o net.pth --record net.json
      ckpt sign net.pth --key key.pem --record net.json
      ckpt verify net.pth --signature net.pth.sig --public-key key.pub
    """
    from ckpt_surgery.ops.signing import sign as run
    from ckpt_surgery.render.signing import show

    given = ctx.params
    if file == "-" or "-" in (given["output"], key, given["record"]):
        raise UsageError("'-' is no file that can be signed, or with which one signs")
    report = run(
        file,
        key,
        signature=given["output"],
        record=given["record"],
        password=_password(given["password_env"]),
        force=given["force"],
    )
    return print_report(ctx, report, show)


def _password(name: str | None) -> str | None:
    if name is None:
        return None
    found = os.environ.get(name)
    if found is None:
        raise UsageError(f"'--password-env {name}': there is no such variable in the environment")
    return found
