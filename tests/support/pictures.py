"""Pictures drawn from a seed, as objects and as the bytes that a question file holds."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image


def noise_picture(seed: int, width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())


def encoded_picture(seed: int, format: str = "PNG", size: tuple[int, int] = (48, 48)) -> dict[str, Any]:
    """An encoded image of one colour with a square of another."""
    image = Image.new("RGB", size, (seed * 37 % 256, seed * 91 % 256, 40))
    image.paste((200, seed * 53 % 256, seed * 11 % 256), (8, 8, 30, 30))
    return stored_picture(image, format) | {"path": f"{seed}.{format.lower()}"}


def stored_picture(image: Image.Image, format: str = "PNG", **how: Any) -> dict[str, Any]:
    """An image as a question file holds it."""
    stream = io.BytesIO()
    image.save(stream, format, **how)
    return {"bytes": stream.getvalue(), "path": None}
