"""Image files of any kind to what a model takes."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps

from dist_train.errors import UserError

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
WHITE = (255, 255, 255)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files named, and all images in the folders named and below, sorted.

    Raises:
        UserError: something named does not exist, or no image was found.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(_images_below(path))
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path} does not exist: expected an image file or a folder of them")
    if not found:
        raise UserError(
            f"no images in {', '.join(map(str, paths))}: expected files that end with "
            f"{' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return found


def _images_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield path


def parse_colour(name: str) -> tuple[int, int, int]:
    """RGB of a colour such as white, #ff8000 or rgb(255,128,0).

    Raises:
        UserError: there is no such colour.
    """
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise UserError(
            f"--background {name}: expected a colour such as white, black or #ff8000"
        ) from error


def read_image(
    path: Path, image_shape: tuple[int, int, int], background: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """An image as a data set of folders would hold it: uint8 (H, W, C).

    Turned as the camera was held, resized so that it covers H x W, the centre cut out, in grey for
    C = 1. Of 16 bits a channel the upper 8 count; of several frames the first.

    Args:
        image_shape: (H, W, C).
        background: what shows through where the image is transparent, RGB.

    Raises:
        UserError: the file is no image, or a damaged one.
    """
    height, width, channels = image_shape
    try:
        with Image.open(path) as file:
            # JPEG only: decode at a fraction of the size, still twice what is asked for.
            file.draft(None, (2 * width, 2 * height))
            image = _to_rgb(ImageOps.exif_transpose(file), background)
            fitted = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            pixels = np.asarray(fitted if channels == 3 else fitted.convert("L"))
            return pixels.reshape(image_shape)
    except Exception as error:  # Pillow's decoders raise all sorts of types on a broken file.
        raise UserError(f"cannot read the image {path} ({error}); repair or remove it") from error


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.has_transparency_data:
        backdrop = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(backdrop, image.convert("RGBA")).convert("RGB")
    if image.mode[0] in "IF":  # grey in more than 8 bits, which convert() would clip
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"mode {image.mode}: expected 8 or 16 bits a channel")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert("RGB")
