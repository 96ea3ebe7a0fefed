"""Published arrays into networks."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxwrap.tasks.blocks import Conv, Depthwise
from jaxwrap.tasks.weights import convolution, depthwise_convolution, linear, load_state

RNG = np.random.default_rng(0)


class Two(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.dense = Conv(3, 5, kernel_size=3, stride=2, rngs=rngs)
        self.separate = Depthwise(5, kernel_size=3, rngs=rngs)
        self.top = nnx.Linear(5, 2, rngs=rngs)


KEYS = (
    convolution("dense", "conv", norm="bn")
    | depthwise_convolution("separate", "dw", norm="bn2", epsilon=1e-3)
    | linear("top", "fc")
)


def arrays() -> dict[str, np.ndarray]:
    shapes = {"conv.weight": (5, 3, 3, 3), "dw.weight": (5, 1, 3, 3), "fc.weight": (2, 5), "fc.bias": (2,)}
    shapes |= {f"{n}.{k}": (5,) for n in ("bn", "bn2") for k in ("weight", "bias", "running_mean", "running_var")}
    return {key: RNG.uniform(0.5, 2.0, shape).astype(np.float32) for key, shape in shapes.items()}


def loaded(given: dict[str, np.ndarray]) -> Two:
    network = nnx.eval_shape(lambda: Two(nnx.Rngs(0)))
    load_state(network, given, KEYS, ignored=["num_batches_tracked"])
    return network


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int, groups: int) -> np.ndarray:
    """In PyTorch's layouts."""
    padding = [(1, 1), (1, 1)]
    return np.asarray(lax.conv_general_dilated(x, kernel, (stride, stride), padding, feature_group_count=groups))


def normalised(x: np.ndarray, given: dict[str, np.ndarray], name: str, epsilon: float) -> np.ndarray:
    gamma, beta, mean, variance = (
        given[f"{name}.{k}"].reshape(1, -1, 1, 1) for k in ("weight", "bias", "running_mean", "running_var")
    )
    return gamma * (x - mean) / np.sqrt(variance + np.float32(epsilon)) + beta


def test_normalisation_is_folded_into_the_convolution_before_it() -> None:
    given = arrays()
    network = loaded({**given, "bn.num_batches_tracked": np.array(7)})
    x = RNG.standard_normal((2, 3, 8, 6)).astype(np.float32)
    dense = normalised(convolved(x, given["conv.weight"], 2, 1), given, "bn", 1e-5)
    ours = network.dense(jnp.asarray(x.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), dense, rtol=1e-4, atol=1e-4)
    separate = normalised(convolved(dense, given["dw.weight"], 1, 5), given, "bn2", 1e-3)
    ours = network.separate(ours)
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), separate, rtol=1e-4, atol=1e-3)
    last = separate[:, :, 0, 0] @ given["fc.weight"].T + given["fc.bias"].reshape(1, -1)
    np.testing.assert_allclose(network.top(ours[:, 0, 0]), last, rtol=1e-4, atol=1e-2)


def test_all_mismatches_are_listed_at_once() -> None:
    given = arrays()
    del given["conv.weight"], given["fc.bias"]
    given["dw.weight"] = np.ones((5, 1, 5, 5), np.float32)
    given["bn2.weight"] = np.ones(4, np.float32)
    given["fc.weight"] = np.full((2, 5), np.nan, np.float32)
    given["bn.bias"] = np.ones(5, np.int32)
    given["other.weight"] = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="do not fit this network") as caught:
        loaded(given)
    text = str(caught.value)
    for fault in (
        "missing: conv.weight",
        "missing: fc.bias",
        "unexpected: other.weight (3,)",
        "misshapen: dw.weight (5, 1, 5, 5), bn2.weight (4,)",
        "wanted (3, 3, 5) for separate.kernel",
        "wanted (5,) for separate.bias",
        "not finite: fc.weight",
        "not real numbers: bn.bias is int32",
    ):
        assert fault in text
    assert "7 mismatches" in text


def test_kernels_of_another_size_or_number_of_axes_are_misshapen() -> None:
    for wrong in ((5, 3, 1, 1), (5, 3), (3, 5, 3, 3)):
        with pytest.raises(ValueError, match=rf"misshapen: conv.weight \({wrong[0]}, {wrong[1]}"):
            loaded(arrays() | {"conv.weight": np.ones(wrong, np.float32)})


@pytest.mark.parametrize("key", ["weight", "bias", "running_mean", "running_var"])
def test_statistics_of_another_number_of_channels_are_misshapen(key: str) -> None:
    with pytest.raises(ValueError, match="does not fit together, wanted"):
        loaded(arrays() | {f"bn.{key}": np.ones(1, np.float32)})


def test_a_key_map_covers_every_parameter_and_no_other() -> None:
    with pytest.raises(ValueError, match=r"(?s)without a source: top.bias.*no such parameter: tip.bias"):
        load_state(
            nnx.eval_shape(lambda: Two(nnx.Rngs(0))),
            arrays(),
            {name.replace("top.bias", "tip.bias"): source for name, source in KEYS.items()},
        )


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_layers_pad_as_pytorch_does(size: int, stride: int) -> None:
    layer = Depthwise(4, kernel_size=size, stride=stride, rngs=nnx.Rngs(0))
    x = RNG.standard_normal((2, 8, 6, 4)).astype(np.float32)
    padding = [(size // 2, size // 2)] * 2
    grouped = lax.conv_general_dilated(
        x,
        layer.kernel[...][:, :, None],
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
    )
    np.testing.assert_allclose(layer(jnp.asarray(x)), grouped, rtol=1e-5, atol=1e-5)
