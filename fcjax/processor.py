"""What this machine's processor can, by Linux's list of its instructions."""

import platform
import re
import zlib
from pathlib import Path

_DESCRIBED = Path("/proc/cpuinfo")


def number() -> int:
    """Differs where a processor's instructions do."""
    return zlib.crc32((_instructions() or platform.processor()).encode())


def multiplies_bfloat16() -> bool:
    """Whether there are instructions for bfloat16 products; True where nothing tells."""
    listed = _instructions()
    return not listed or re.search(r"\b(amx_bf16|avx512_bf16|bf16)\b", listed) is not None


def _instructions() -> str:
    """The list's line (x86 calls it flags, ARM Features); nothing elsewhere."""
    lines = _DESCRIBED.read_text().splitlines() if _DESCRIBED.is_file() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
