"""Counts against closed forms, and the post-processor's budget."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from jaxwrap.arrays import Yuv420
from jaxwrap.metrics.complexity import Macs, count_macs, count_parameters, resampling_macs
from jaxwrap.wrappers.blocks import Conv, SeparableConv
from jaxwrap.wrappers.resample import RATIOS
from jaxwrap.wrappers.switchable import PostConfig, PostProcessor, linear_wrapper


def struct(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (4, 1), (8, 2)])
def test_a_convolution_counts_outputs_times_kernel(groups: int, stride: int) -> None:
    n, h, w, c, o, k = 2, 12, 16, 8, 16, 3

    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        dims = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride,) * 2, "SAME", dimension_numbers=dims, feature_group_count=groups
        )

    macs = count_macs(conv, struct(n, h, w, c), struct(k, k, c // groups, o))
    assert macs == Macs(convolution=n * (h // stride) * (w // stride) * o * k * k * c // groups)
    assert macs.per_pixel(h, w, num_frames=n) == o * k * k * c / groups / stride**2


def test_a_batched_matrix_product_counts_its_three_sides() -> None:
    assert count_macs(jnp.matmul, struct(5, 3, 7), struct(5, 7, 2)) == Macs(dense=5 * 3 * 7 * 2)


def test_programs_within_programs_are_counted() -> None:
    def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jax.checkpoint(jax.jit(lambda v: v @ v))(x), None

    def fn(x: jax.Array) -> jax.Array:
        x, _ = lax.scan(step, x, length=3)
        return lax.cond(x[0, 0] > 0, lambda v: v @ v @ v, lambda v: v, x)

    assert count_macs(fn, struct(4, 4)).dense == (3 + 2) * 4**3


def test_a_loop_of_unknown_length_is_refused() -> None:
    with pytest.raises(ValueError, match="while loop"):
        count_macs(lambda x: lax.while_loop(lambda v: v[0, 0] < 1, lambda v: v @ v, x), struct(4, 4))


def test_a_separable_block_counts_as_thop_counts_it() -> None:
    block = SeparableConv(6, 10, kernel_size=5, implementation="grouped", rngs=nnx.Rngs(0))
    macs = count_macs(block, struct(1, 8, 12, 6))
    assert macs.total == 8 * 12 * (5 * 5 * 6 + 6 * 10)
    assert count_parameters(block) == 5 * 5 * 6 + 6 * 10 + 10


def test_a_pointwise_layer_counts_whether_convolution_or_product() -> None:
    assert count_macs(Conv(3, 5, rngs=nnx.Rngs(0)), struct(2, 4, 4, 3)).total == 2 * 16 * 15


def test_bilinear_doubling_costs_two_taps_per_sample_and_pass() -> None:
    assert resampling_macs(10, 20, 20, 40, "bilinear") == 2 * 10 * 40 + 2 * 20 * 40
    assert resampling_macs(20, 40, 10, 20, "bilinear") == 4 * 10 * 40 + 4 * 10 * 20
    assert resampling_macs(20, 40, 20, 40, "lanczos4") == 0


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_the_post_processor_stays_within_the_published_budget(ratio: Fraction) -> None:
    # SNW section 3.2: 516 MAC per output pixel (thop) and 8.2 K parameters, the same at every ratio.
    h, w = 96, 144
    bh, bw = linear_wrapper("bilinear", ratio).bottleneck_size(h, w)
    frame = Yuv420(struct(1, bh, bw), struct(1, bh // 2, bw // 2), struct(1, bh // 2, bw // 2))
    post = nnx.eval_shape(lambda: PostProcessor(PostConfig(), rngs=nnx.Rngs(0), implementation="grouped"))
    graph, state = nnx.split(post)
    macs = count_macs(lambda s, f: nnx.merge(graph, s)(f, h, w), state, frame)
    assert 480 <= macs.per_pixel(h, w) <= 516
    assert 7500 <= count_parameters(post) <= 8200
