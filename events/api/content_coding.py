"""Undoes the Content-Encoding of a request, gzip or zstd, and never makes more of it than it is allowed to."""

import sys
import zlib
from collections.abc import Callable
from typing import Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Members of a gzip stream (RFC 1952 section 2.2) or frames of a zstd one, at most: even an empty one costs time.
MAX_MEMBERS = 1000
#: Bytes decompressed at a time: what is left of them after a member is looked at again.
PIECE_BYTES = 64 * 1024
#: Base-2 logarithm of the window that a zstd frame may ask for: 8 MiB, as RFC 9659 has it for HTTP.
ZSTD_WINDOW_LOG = 23
#: zlib: the largest window, and a gzip header and trailer around the data.
GZIP_WINDOW_BITS = 16 + zlib.MAX_WBITS


class _Decompressor(Protocol):
    """What zlib's and zstd's have in common. As long as less than max_length comes out, all that went in is used up."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


_CODINGS: dict[str, Callable[[], _Decompressor]] = {
    "gzip": lambda: zlib.decompressobj(GZIP_WINDOW_BITS),
    "zstd": lambda: zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}),
}
#: Content codings that are taken (RFC 9110 section 8.4.1), as a 415 tells them.
CODINGS = (*_CODINGS, "identity")


class UnknownCoding(ValueError):
    """There is no such content coding here, or there are several; the message says which."""


class BrokenStream(ValueError):
    """What was sent is not what its content coding says; the message says why."""


def coding_of(content_encoding: str) -> str:
    """The content coding of a request.

    Args:
        content_encoding: the header; "" where there is none.

    Returns:
        One of CODINGS.

    Raises:
        UnknownCoding: it is none of them, or there is more than one.
    """
    codings = [
        coding for name in content_encoding.split(",") if (coding := name.strip().lower()) not in ("", "identity")
    ]
    if not codings:
        return "identity"
    if len(codings) > 1:
        raise UnknownCoding(f"{len(codings)} codings, {', '.join(codings)[:100]}, are too many: use one")
    # RFC 9110 section 8.4.1.3.
    coding = "gzip" if codings[0] == "x-gzip" else codings[0]
    if coding not in _CODINGS:
        raise UnknownCoding(f"{coding[:100]} is not supported")
    return coding


def decompress(body: bytes, coding: str, *, limit: int) -> bytes | None:
    """Undoes a content coding.

    Args:
        body: what was sent.
        coding: one of CODINGS.
        limit: bytes that may come out of it.

    Returns:
        What came out, or None where it is more than the limit: then no more than that was decompressed.

    Raises:
        BrokenStream: it is not such a stream, is cut short, or has something behind it.
    """
    if coding == "identity":
        return body if len(body) <= limit else None
    parts: list[bytes] = []
    room = limit + 1
    members = position = 0
    decompressor = None
    try:
        while position < len(body):
            if decompressor is None or decompressor.eof:
                decompressor = _CODINGS[coding]()
                members += 1
                if members > MAX_MEMBERS:
                    raise BrokenStream(f"has more than {MAX_MEMBERS} {coding} streams one after the other")
            piece = body[position : position + PIECE_BYTES]
            part = decompressor.decompress(piece, room)
            position += len(piece) - len(decompressor.unused_data)
            parts.append(part)
            room -= len(part)
            if not room:
                return None
    except (zlib.error, zstd.ZstdError) as error:
        # zstd has a number for it, which Python does not pass on.
        if "too much memory" in str(error):
            raise BrokenStream(
                f"has a zstd frame with a window of more than {2**ZSTD_WINDOW_LOG // 2**20} MiB: "
                "compress it at level 19 or below, and not with --long"
            ) from None
        raise BrokenStream(f"{_not_a(coding, members)}: {error}") from None
    if decompressor is None or not decompressor.eof:
        raise BrokenStream(f"{_not_a(coding, members)}: it ended early")
    return b"".join(parts)


def _not_a(coding: str, members: int) -> str:
    if members <= 1:
        return f"is not a whole {coding} stream"
    return f"has something behind its {coding} stream that is not another whole one"
