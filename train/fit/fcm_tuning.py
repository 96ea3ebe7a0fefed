"""What methods freeze for a feature wrapper, from the training pictures: moments, Gram, calibrated weights, fold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, Yuv400
from jaxwrap.codec import EncodeRequest
from jaxwrap.codecs.x26x import X26x
from jaxwrap.importance.calibration import Calibration
from jaxwrap.importance.gram import ChannelGram, ChannelMoments, klt_gram
from jaxwrap.importance.jacobian import Jacobian, sketched_rows
from jaxwrap.train.fit.fcm_data import FeatureSet
from jaxwrap.wrappers.fcm import POWERS, FcmTuning, FcmWrapper

PICTURES = 64
"""Views that the moments are taken over, spread over all."""

GRAM_PICTURES = 16
CALIBRATION_PICTURES = 16
CALIBRATION_QP = 27
SKETCHES = 4
BATCH = 8


def tune(wrapper: FcmWrapper, training: FeatureSet, *, seed: int = 0) -> FcmTuning:
    """The constants of a wrapper's methods. The calibrated weights are from x265's errors, intra, at
    `CALIBRATION_QP`."""
    chosen = np.unique(np.linspace(0, len(training) - 1, PICTURES).astype(int))
    depth = wrapper.config.bit_depth
    moments = gram = calibration = None
    samples = []
    codec = X26x("x265")
    for start in range(0, len(chosen), BATCH):
        features = jax.tree.map(jnp.asarray, training.part(chosen[start : start + BATCH]))
        layout = wrapper.layout(features)
        sandwich = wrapper.sandwich(features)
        metric = wrapper.metric(features)
        z: Frame = sandwich.bottleneck(features)
        moments = moments or ChannelMoments(layout)
        moments.update(jax.device_get(z))
        samples.append(np.asarray(z.y))
        receiver = jax.tree_util.Partial(_receive, sandwich.post, jnp.float32((1 << depth) - 1))
        if start < GRAM_PICTURES:
            gram = gram or ChannelGram(layout)
            jacobian = Jacobian(receiver, z, metric)
            gram.update(sketched_rows(jacobian, jax.random.key(seed), SKETCHES, frame_offset=start))
        if start < CALIBRATION_PICTURES:
            calibration = calibration or Calibration(layout, layout.size, 1)
            decoded = codec.encode(jax.device_get(z), EncodeRequest(CALIBRATION_QP, bit_depth=depth)).decoded
            q = jax.tree.map(lambda a, b: jnp.asarray(a, jnp.float32) - b, decoded, z)
            calibration.update(receiver, z, q, metric=metric)
    assert moments is not None
    assert gram is not None
    assert calibration is not None
    frames = Yuv400(np.concatenate(samples))
    transforms = [klt_gram(moments, gram.gram(), power).fitted(frames, depth) for power in POWERS]
    weights = calibration.map()
    tile = layout.tile_height, layout.tile_width
    per_channel = np.asarray(weights.y)[0, :: tile[0], :: tile[1]].reshape(-1)
    return FcmTuning(
        moments.mean,
        moments.covariance(),
        gram.gram(),
        per_channel.astype(np.float64),
        np.stack([t.matrix for t in transforms]),
        np.asarray([t.scale for t in transforms], np.float64),
        np.stack([t.offset for t in transforms]),
    )


def _receive(post: jax.tree_util.Partial, top: jax.Array, samples: Frame) -> dict[str, jax.Array]:
    found: dict[str, jax.Array] = post(jax.tree.map(lambda plane: plane * (2.0 / top) - 1.0, samples))
    return found
