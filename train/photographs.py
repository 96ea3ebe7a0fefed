"""scikit-image's bundled photographs: real pictures that need no download."""

from __future__ import annotations

from pathlib import Path

EVALUATION = ("astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
"""Colour photographs that the demo reports on; nothing is ever trained on them."""

FINE_TUNING = (
    "camera.png",
    "brick.png",
    "chelsea.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
)
"""Pictures that the demo fine-tunes on, and the data of training runs that name none; the first is held out."""


def photograph_paths(names: tuple[str, ...]) -> list[Path]:
    """Files of these pictures. Raises `FileNotFoundError` naming those that this scikit-image does not bundle."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    paths = [folder / name for name in names]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"this scikit-image does not bundle {', '.join(missing)}; install version 0.26")
    return paths
