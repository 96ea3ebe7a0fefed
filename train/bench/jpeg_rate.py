"""The JPEG model against libjpeg: bytes by which the sizes of real pictures differ (0 expected), and the time taken."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, features

from jaxwrap.codecs.jpeg.rate import entropy_coded_bits, jpeg_num_bytes
from jaxwrap.codecs.jpeg.tables import flat_table, quality_table

QUALITIES = (5, 10, 25, 50, 75, 90, 100)
FLAT_STEPS = (1, 2, 4, 8, 16, 40, 100, 255)


def run(*, images: Path) -> dict[str, Any]:
    """Compares the luma of every PNG in a folder at `QUALITIES` and `FLAT_STEPS` with the file that Pillow writes;
    prints the outcome.

    Returns ``{"device", "jax", "libjpeg_turbo", "files", "files_differing", "bytes_differing",
    "unstuffed_error_percent": {"mean", "max"}, "ms_per_megapixel": {"exact", "unstuffed", "bits", "libjpeg"}}``; the
    errors are those of ``exact=False``, in per cent of libjpeg's size. Times are medians over the files. Raises
    `ValueError` when the folder holds no PNG.
    """
    paths = sorted(images.glob("*.png"))
    if not paths:
        raise ValueError(f"{images} holds no .png: give a folder of pictures, such as the Kodak set")
    tables = [quality_table(quality) for quality in QUALITIES] + [flat_table(step) for step in FLAT_STEPS]
    count = {
        "exact": jax.jit(jpeg_num_bytes),
        "unstuffed": jax.jit(lambda plane, table: jpeg_num_bytes(plane, table, exact=False)),
        "bits": jax.jit(entropy_coded_bits),
    }
    sizes: dict[str, list[int]] = {name: [] for name in (*count, "libjpeg")}
    times: dict[str, list[float]] = {name: [] for name in sizes}
    compiled_for = set()
    for path in paths:
        luma = np.asarray(Image.open(path).convert("L"))
        plane = jax.device_put(luma[None].astype(np.float32))
        if luma.shape not in compiled_for:
            compiled_for.add(luma.shape)
            for function in count.values():
                jax.block_until_ready(function(plane, tables[0]))
        for table in tables:
            for name, function in count.items():
                start = time.perf_counter()
                result = jax.block_until_ready(function(plane, table))
                times[name].append((time.perf_counter() - start) / luma.size)
                sizes[name].append(int(result[0]))
            start = time.perf_counter()
            size = _libjpeg_num_bytes(luma, table)
            times["libjpeg"].append((time.perf_counter() - start) / luma.size)
            sizes["libjpeg"].append(size)
    expected = np.array(sizes["libjpeg"])
    differing = np.abs(np.array(sizes["exact"]) - expected)
    error_percent = 100 * (np.array(sizes["unstuffed"]) / expected - 1)
    figures = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "libjpeg_turbo": _libjpeg_turbo_version(),
        "files": len(expected),
        "files_differing": int((differing > 0).sum()),
        "bytes_differing": int(differing.sum()),
        "unstuffed_error_percent": {
            "mean": float(error_percent.mean()),
            "max": float(error_percent[np.abs(error_percent).argmax()]),
        },
        "ms_per_megapixel": {name: 1e9 * float(np.median(values)) for name, values in times.items()},
    }
    _print(figures, len(paths))
    return figures


def _print(figures: dict[str, Any], num_pictures: int) -> None:
    ms, error = figures["ms_per_megapixel"], figures["unstuffed_error_percent"]
    print(
        f"JPEG rate, {num_pictures} pictures × ({len(QUALITIES)} qualities + {len(FLAT_STEPS)} flat steps); "
        f"{figures['device']}, jax {figures['jax']}, libjpeg-turbo {figures['libjpeg_turbo']}"
    )
    print(
        f"{figures['files_differing']} of {figures['files']} files differ, by {figures['bytes_differing']} bytes; "
        f"without stuffing off by {error['mean']:.2f} % on average, {error['max']:.2f} % at worst"
    )
    print(
        f"ms per megapixel: file size {ms['exact']:.1f}, without stuffing {ms['unstuffed']:.1f}, "
        f"bits {ms['bits']:.1f}, libjpeg {ms['libjpeg']:.1f}"
    )


def _libjpeg_num_bytes(luma: np.ndarray, table: np.ndarray) -> int:
    buffer = io.BytesIO()
    # Never quality= together with qtables=: since 11.3 Pillow rescales the tables.
    Image.fromarray(luma).save(buffer, "jpeg", qtables=[table.tolist()])
    return len(buffer.getvalue())


def _libjpeg_turbo_version() -> str:
    return str(features.version_feature("libjpeg_turbo") or f"none (libjpeg {features.version('jpg')})")
