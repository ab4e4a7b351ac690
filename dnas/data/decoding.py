"""From image files to pixels: photographs by torchvision, on the host or on a device that decodes; others by PIL."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    IMAGELENGTH,
    IMAGEWIDTH,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
    TiffImageFile,
)
from torch import Tensor

from search_spaces.errors import InputError, one_line
from search_spaces.user_files import open_regular, read_regular

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"""What PIL tries, in this order; of forty others some start programs (EPS: Ghostscript)."""
_TURNED = (5, 6, 7, 8)  # orientations that make height of width
_SIGNED = 2  # as TIFF says it
_CPU = torch.device("cpu")
_START_OF_JPEG, _END_OF_JPEG = b"\xff\xd8", b"\xff\xd9"


def decode(path: str) -> Tensor:
    """Read an image file as uint8 RGB (3, H, W), turned upright as its EXIF orientation says.

    Of 16 bits a channel the upper 8 are kept. Transparency is left out: the colours are those that are stored. Raises
    InputError where it is no whole image, or one whose pixels have no known full scale (floats, 32-bit integers).
    """
    try:
        content = read_regular(path)
        if _photograph(content) and not cannot_decode(_CPU):
            with suppress(RuntimeError):  # of what torchvision cannot decode PIL says what is wrong
                return decode_there([_as_tensor(content)], _CPU)[0]  # twice as fast as PIL
        return decode_by_pil(content)
    except Exception as error:  # a damaged file fails anywhere inside PIL's readers
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> InputError:
    unknown = "it is no image file, or of a kind that is not read; save it as PNG or JPEG"
    reason = unknown if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    return InputError(f"cannot read the image '{path}': {reason}")


def size_of(path: str) -> tuple[int, int]:
    """Height and width that :func:`decode` gives, of the header alone; :class:`InputError` where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
                turned = image.getexif().get(Base.Orientation, 1) in _TURNED
                width, height = _stored_size(image)
                return (width, height) if turned else (height, width)
    except Exception as error:
        raise _unreadable(path, error) from error


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image as it lies in the file; of a TIFF, PIL may tell those of it upright."""
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2[IMAGEWIDTH]), int(image.tag_v2[IMAGELENGTH])
    return image.width, image.height


def decode_by_pil(content: bytes) -> Tensor:
    """As :func:`decode`, of the bytes of a file of any kind; raises whatever PIL does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's remarks on metadata and transparency
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return torch.from_numpy(_rgb(image)).permute(2, 0, 1)


def encoded(path: str) -> tuple[Tensor, tuple[int, int]] | None:
    """The bytes (B,) of a JPEG file with its height and width, if a device gives for it what :func:`decode` gives.

    That is a whole colour photograph as cameras and programs write them, which stands upright; for all others, and
    files that cannot be read, None.
    """
    try:
        content = read_regular(path)
    except OSError:  # whoever decodes it says what is wrong
        return None
    shape = _photograph(content)
    return (_as_tensor(content), shape) if shape else None


def decode_there(files: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Decode the bytes (B,) of JPEG files on a device, as uint8 RGB (3, H, W); RuntimeError where it fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision will leave this to another package one day
        made = torchvision.io.decode_jpeg(list(files), mode=torchvision.io.ImageReadMode.RGB, device=device)
    if device.type == "cuda":  # it decodes in a queue of its own, and memory must not be given away before that is done
        torch.cuda.synchronize(device)
    return list(made)


@cache
def cannot_decode(device: torch.device) -> str:
    """Why a device cannot decode JPEG files, found out by one; empty where it can."""
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "JPEG")
    try:
        made = decode_there([_as_tensor(content.getvalue())], device)
    except Exception as error:  # torchvision without it, a device without a decoder
        return one_line(error)
    return "" if made[0].device.type == device.type else "torchvision decodes on CUDA alone"


def _photograph(content: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG file as :func:`encoded` asks for."""
    if not content.startswith(_START_OF_JPEG) or not content.rstrip(b"\0").endswith(_END_OF_JPEG):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
                plain = image.mode == "RGB" and image.getexif().get(Base.Orientation, 1) == 1
                plain &= image.info.get("adobe_transform", 1) == 1 and _components(image) != b"RGB"
                return (image.height, image.width) if plain else None
    except Exception:  # a damaged header fails anywhere inside PIL's reader
        return None


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _components(image: Image.Image) -> bytes:
    """The identifiers of a JPEG file's components, which are the letters RGB where they are stored as such."""
    return bytes(number for number, *_ in getattr(image, "layer", ()))


def _rgb(image: Image.Image) -> np.ndarray:
    """The pixels (H, W, 3), uint8."""
    image.load()
    if isinstance(image, TiffImageFile) and _SIGNED in image.tag_v2.get(SAMPLEFORMAT, ()) and image.mode[0] not in "IF":
        raise InputError("its pixels are signed integers, of which PIL makes others; save it with unsigned ones")
    if image.mode == "F" or image.mode.startswith("I"):
        return np.repeat(_grey_of_sixteen_bits(image)[..., None], 3, axis=2)
    # A palette with transparency is converted through RGBA, which keeps its colours.
    return np.array(_upright(image).convert("RGBA" if image.mode in ("P", "PA") else "RGB"))[..., :3]


def _grey_of_sixteen_bits(image: Image.Image) -> np.ndarray:
    """The upper eight bits (H, W) of an image whose grey values have more than eight."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else None
    if image.mode == "F" or (image.mode == "I" and tags):  # PNG and PGM of 16 bits may be of mode I
        raise InputError(
            f"its pixels are {'floats' if image.mode == 'F' else 'signed or 32-bit integers'} (mode {image.mode}), "
            "whose full scale is not known; save it with 8 or 16 bits a channel"
        )
    bits = tags.get(BITSPERSAMPLE, (16,))[0] if tags else 16
    grey = (np.asarray(_upright(image)) >> (bits - 8)).astype(np.uint8)
    return 255 - grey if tags and tags.get(PHOTOMETRIC_INTERPRETATION) == 0 else grey


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata say nothing of the pixels
        return image
