"""Bytes in and out: byte ranges, zip records, files that appear whole, copies in the kernel.

The names here are those that reading needs, as every command does; what writes is imported from
`atomic`, `sink` and `zip_write`, so that a command that only reads does not wait for it.
"""

from ckpt_surgery.fileio.ranges import CHUNK, ByteRange, Bytes, ByteSource
from ckpt_surgery.fileio.sources import FileSource, MemorySource, PartSource, Source
from ckpt_surgery.fileio.zip_read import looks_like_zip, read_zip
from ckpt_surgery.fileio.zip_records import ZipArchive, ZipRecord

__all__ = [
    "CHUNK",
    "ByteRange",
    "ByteSource",
    "Bytes",
    "FileSource",
    "MemorySource",
    "PartSource",
    "Source",
    "ZipArchive",
    "ZipRecord",
    "looks_like_zip",
    "read_zip",
]
