"""Decoding JPEG files straight to tensors: the bytes of the plain way by PIL, at about two thirds of its time."""

import io
import os
from typing import Any

import torch
import torchvision  # noqa: F401  (loads the operators of its decoders)
from PIL import Image
from torch import Tensor

_START = b"\xff\xd8\xff"
_MODES = {"L": 1, "RGB": 3}  # torchvision.io.ImageReadMode
_ORIENTATION = 0x0112


def jpeg_to_tensor(value: Any) -> Tensor | None:
    """
    Decodes a JPEG file in grey or colours whose EXIF orientation is the usual one.

    PIL decodes into four bytes a pixel and copies them twice on the way to a tensor; torchvision's decoder, of the
    same library, writes into the tensor. No reduced decoding ("draft"), which is faster still, but changes values.
    torchvision 0.29 announces that its decoders will go; without them PIL decodes, to the same values.

    Args:
        value: the path or the bytes of a file, or the `{"bytes", "path"}` struct of an undecoded `datasets.Image`.

    Returns:
        `Tensor` of shape `(C, H, W)`, uint8, C of 1 or 3; `None` for everything that PIL has to look at: another
        format, colours of print, a turned or a broken file, a value that is open already.
    """
    data = _file(value)
    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data)) as header:  # refuses decompression bombs; decodes nothing
            usual = header.format == "JPEG" and header.getexif().get(_ORIENTATION, 1) == 1
            mode = _MODES.get(header.mode) if usual else None
        return None if mode is None else _decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode)
    except (OSError, SyntaxError, ValueError, AttributeError, RuntimeError, Image.DecompressionBombError):
        return None  # PIL says what is wrong with the file, or torchvision is built without its decoders


def _decode(data: Tensor, mode: int) -> Tensor:
    decoded: Tensor = torch.ops.image.decode_jpeg(data, mode, False)
    return decoded


def _file(value: Any) -> bytes | None:
    """The bytes of a JPEG file, by its first bytes."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str | os.PathLike):
        try:
            with open(value, "rb") as stream:
                value = stream.read(len(_START))
                value = value + stream.read() if value == _START else None
        except (OSError, ValueError):  # a path with a null byte
            return None
    return value if isinstance(value, bytes) and value.startswith(_START) else None
