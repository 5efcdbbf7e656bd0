"""An image file as RGB pixels, by one policy."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from common.errors import UserError


def decode_rgb(path: Path) -> Image.Image:
    """Decode one file as the released SimSiam does (torchvision's ImageFolder: Pillow's `convert("RGB")`).

    Grayscale is repeated over the three channels, CMYK and palette are converted, transparency is dropped. The EXIF
    orientation is not applied: the pixels are taken as they are stored, as in the original.

    Raises:
        UserError: the file is missing, cut short, or no image; names it.
    """
    try:
        with open(path, "rb") as stream, Image.open(stream) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path} cannot be read as an image ({reason}); mend, replace or remove it") from error
