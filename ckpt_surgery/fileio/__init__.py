"""Bytes in and out: byte ranges, zip records, files that appear whole, copies in the kernel."""

from ckpt_surgery.fileio.outputs import Progress, Sink, atomic_output, stream_output
from ckpt_surgery.fileio.serialization_id import serialization_id
from ckpt_surgery.fileio.sources import CHUNK, ByteRange, Bytes, ByteSource, SourceFile
from ckpt_surgery.fileio.ziprecords import ZipArchive, ZipRecord, looks_like_zip, read_zip
from ckpt_surgery.fileio.zipwriter import Derived, ZipLayout, lay_out

__all__ = [
    "CHUNK",
    "ByteRange",
    "ByteSource",
    "Bytes",
    "Derived",
    "Progress",
    "Sink",
    "SourceFile",
    "ZipArchive",
    "ZipLayout",
    "ZipRecord",
    "atomic_output",
    "lay_out",
    "looks_like_zip",
    "read_zip",
    "serialization_id",
    "stream_output",
]
