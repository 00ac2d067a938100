"""The structures of a zip archive, for reading and writing.

Layout and field names: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import struct
from typing import Final

LOCAL: Final = struct.Struct("<4s5HIIIHH")
CENTRAL: Final = struct.Struct("<4s6HIIIHHHHHII")
END: Final = struct.Struct("<4sHHHHIIH")
END64: Final = struct.Struct("<4sQHHIIQQQQ")
LOCATOR: Final = struct.Struct("<4sIQI")
LOCAL_MAGIC: Final = b"PK\x03\x04"
CENTRAL_MAGIC: Final = b"PK\x01\x02"
END_MAGIC: Final = b"PK\x05\x06"
END64_MAGIC: Final = b"PK\x06\x06"
LOCATOR_MAGIC: Final = b"PK\x06\x07"
DESCRIPTOR_MAGIC: Final = b"PK\x07\x08"

FLAG_DESCRIPTOR: Final = 0x0008
FLAG_UTF8: Final = 0x0800
STORED: Final = 0
DEFLATED: Final = 8
ZIP64_EXTRA: Final = 0x0001
SATURATED_16: Final = 0xFFFF
SATURATED_32: Final = 0xFFFFFFFF
