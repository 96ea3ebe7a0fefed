from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxwrap.tasks import masks
from jaxwrap.tasks.masks import MaskHead, MaskHeadConfig, crop_mask, masks_for, paste_masks

CONFIG = MaskHeadConfig((("fine", 4, 5), ("coarse", 8, 7)), width=6, blocks=1, fine_width=4, size=8)


def head(seed: int = 0) -> MaskHead:
    """Every parameter random, those that start at zero included."""
    module = MaskHead(CONFIG, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    state = nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.3, p.shape), jnp.float32), state))
    return module


def features(count: int, seed: int = 1) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = {"fine": (count, 12, 16, 5), "coarse": (count, 6, 8, 7)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def disc(height: int, width: int) -> np.ndarray:
    """An ellipse that touches the border."""
    y, x = (np.arange(n) * 2 + 1 - n for n in (height, width))
    return (y[:, None] / height) ** 2 + (x[None] / width) ** 2 <= 1


def test_cells_hold_the_share_that_the_mask_covers() -> None:
    rng = np.random.default_rng(3)
    mask = rng.random((11, 9)) < 0.5
    box = (12.3, 20.1, 24.7, 28.9)  # goes beyond the mask on the right, and not to its borders elsewhere
    found = crop_mask(mask, box, 4, origin=(11, 19))
    fine = 200  # points per side of a cell
    y, x = ((np.arange(4 * fine) + 0.5) / (4 * fine) * (b - a) + a for a, b in ((20.1, 28.9), (12.3, 24.7)))
    rows, columns = np.floor(y - 19).astype(int), np.floor(x - 11).astype(int)
    inside = (rows < 11)[:, None] & (columns < 9)[None]
    points = inside & mask[np.minimum(rows, 10)][:, np.minimum(columns, 8)]
    wanted = points.reshape(4, fine, 4, fine).mean(axis=(1, 3))
    np.testing.assert_allclose(found, wanted, atol=0.01)  # the points' own resolution


@pytest.mark.parametrize(("height", "width"), [(200, 120), (30, 41), (9, 6)])
def test_a_mask_comes_back_from_its_grid(height: int, width: int) -> None:
    shape = disc(height, width)
    grid = crop_mask(shape, (0, 0, width, height), 28)
    whole = np.zeros((240, 260), bool)
    whole[25 : 25 + height, 50 : 50 + width] = shape
    (found,) = paste_masks(
        np.log((grid + 1e-6) / (1 - grid + 1e-6))[None], [[50, 25, 50 + width, 25 + height]], (240, 260)
    )
    assert (found & whole).sum() / (found | whole).sum() > 0.97


def test_a_full_grid_fills_the_pixels_whose_centres_the_box_holds() -> None:
    boxes = np.array([[2.4, 3.6, 7.5, 9.49], [-4, -3, 3.2, 2.1], [5, 5, 5, 5], [18, 10, 40, 40]])
    found = paste_masks(np.full((4, 28, 28), 9.0), boxes, (12, 20))
    for mask, (x0, y0, x1, y1) in zip(found, boxes, strict=True):
        for y in range(12):
            for x in range(20):
                assert mask[y, x] == (x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1), (x, y)
    assert not found[2].any()


def test_boxes_that_do_not_fit_their_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 8, 8\) and boxes \(2, 4\)"):
        paste_masks(np.zeros((3, 8, 8)), np.zeros((2, 4)), (4, 4))


def test_pictures_and_boxes_do_not_see_each_other() -> None:
    boxes = jnp.asarray(np.random.default_rng(5).uniform(0, 40, (2, 3, 4)), jnp.float32)
    boxes = jnp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)
    both = masks_for(head(), features(2), boxes)
    assert both.shape == (2, 3, 8, 8)
    alone = masks_for(head(), {k: v[1:] for k, v in features(2).items()}, boxes[1:, 2:])
    np.testing.assert_allclose(both[1, 2], alone[0, 0], atol=1e-5)
    assert np.std(both) > 0.01


def test_reading_a_box_commutes_with_a_flip() -> None:
    x = features(1)["fine"]
    box = np.array([[[9.0, 6.0, 41.0, 30.0]]], np.float32)
    flipped = np.array([[[64 - 41.0, 6.0, 64 - 9.0, 30.0]]], np.float32)
    direct = masks._read(x, jnp.asarray(box), 4, 4)
    other = masks._read(x[:, :, ::-1], jnp.asarray(flipped), 4, 4)
    np.testing.assert_allclose(other[:, :, :, ::-1], direct, atol=1e-5)


def test_features_of_another_split_are_refused_with_all_differences() -> None:
    wrong = {"coarse": features(1)["coarse"][..., :3]}
    with pytest.raises(ValueError, match=r"fine: missing[\s\S]*coarse: \(1, 6, 8, 3\), wanted \[N, H, W, 7\]"):
        masks_for(head(), wrong, jnp.zeros((1, 2, 4)))


def test_a_configuration_survives_json_and_refuses_what_it_does_not_know() -> None:
    assert MaskHeadConfig.from_dict(CONFIG.to_dict()) == CONFIG
    with pytest.raises(ValueError, match="unknown fields depth; known: scales"):
        MaskHeadConfig.from_dict({**CONFIG.to_dict(), "depth": 3})
    with pytest.raises(ValueError, match="finest first"):
        dataclasses.replace(CONFIG, scales=CONFIG.scales[::-1])
    with pytest.raises(ValueError, match="size=7"):
        dataclasses.replace(CONFIG, size=7)
