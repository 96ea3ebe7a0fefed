"""Block transforms: the orthonormal DCT of any size, and the integer DCT that libjpeg's default encoder uses.

Matrices hold one basis function per **row**: coefficients are ``T @ samples``, samples are ``T.T @ coefficients``; the
library's `dct_matrix` has them in columns. They are NumPy arrays; the functions on planes are JAX.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.importance.jacobian import dct_matrix

BLOCK_SIZES = (4, 8, 16, 32)
"""Transform sizes of the proxy codec (SNW section 3.3)."""

LARGEST_BLOCK = BLOCK_SIZES[-1]


def block_dct_matrices() -> np.ndarray:
    """``[4, 32, 32]`` float32: per size of `BLOCK_SIZES`, the matrix that transforms 32 samples in such blocks."""
    return np.stack(
        [np.kron(np.eye(LARGEST_BLOCK // size), dct_matrix(size).T) for size in BLOCK_SIZES], dtype=np.float32
    )


def _islow_matrix() -> np.ndarray:
    """Loeffler, Ligtenberg and Moschytz's 8-point transform with libjpeg's 13-bit constants, as one integer matrix.

    Every output of the accurate integer DCT (``JDCT_ISLOW``) is an exact integer combination of its inputs before the
    one rounding at the end of a pass, so that running the flow graph on unit vectors gives the matrix; it is
    √8 · 2^13 times the orthonormal DCT, up to the rounding of the constants.
    """

    def fixed(constant: float) -> int:
        return round(constant * (1 << 13))

    x = np.eye(8, dtype=np.int64)
    s, d = x[:4] + x[:3:-1], x[:4] - x[:3:-1]  # sums and differences of mirrored samples
    out = np.zeros((8, 8), np.int64)
    # Even part: a 4-point DCT of the sums.
    a0, a1, b0, b1 = s[0] + s[3], s[1] + s[2], s[0] - s[3], s[1] - s[2]
    out[0], out[4] = (a0 + a1) << 13, (a0 - a1) << 13
    r = (b0 + b1) * fixed(0.541196100)
    out[2], out[6] = r + b0 * fixed(0.765366865), r - b1 * fixed(1.847759065)
    # Odd part: two rotations that share one product.
    shared = (d[0] + d[1] + d[2] + d[3]) * fixed(1.175875602)
    outer = shared - (d[0] + d[2]) * fixed(0.390180644)
    inner = shared - (d[1] + d[3]) * fixed(1.961570560)
    near, far = -(d[0] + d[3]) * fixed(0.899976223), -(d[1] + d[2]) * fixed(2.562915447)
    out[7] = d[3] * fixed(0.298631336) + near + inner
    out[5] = d[2] * fixed(2.053119869) + far + outer
    out[3] = d[1] * fixed(3.072711026) + far + inner
    out[1] = d[0] * fixed(1.501321110) + near + outer
    return out


_ISLOW = _islow_matrix()
_FIRST_SHIFT, _SECOND_SHIFT = (
    11,
    15,
)  # the first pass keeps 2 fraction bits of the constants' 13, the second drops them too


def islow_dct(samples: jax.Array) -> list[list[jax.Array]]:
    """libjpeg's integer DCT (``JDCT_ISLOW``) of level-shifted planes: 8 times the orthonormal coefficients, bit-exact.

    ``samples [N, H, W]`` float32 holding integers in −128…127, H and W multiples of 8. Returns ``c`` with ``c[u][v]``
    the int32 ``[N, H/8, W/8]`` coefficients of vertical frequency u and horizontal frequency v: 64 arrays, so that
    XLA fuses what follows into one loop over blocks and never stores the coefficients.
    """
    n, h, w = samples.shape
    # Rows as a float matrix product: all partial sums are integers ≤ 128 · 65536 = 2^23, so float32 is exact in any
    # order. The precision is stated because tf32, the default on NVIDIA GPUs, has 10 bits of mantissa where 14-bit
    # constants are multiplied.
    rows = jnp.einsum(
        "vj,bj->vb",
        jnp.asarray(_ISLOW, jnp.float32),
        samples.reshape(n * h * w // 8, 8),
        precision=jax.lax.Precision.HIGHEST,
    ).reshape(8, n, h // 8, 8, w // 8)  # [v, N, H/8, i, W/8]
    rows = (rows.astype(jnp.int32) + (1 << (_FIRST_SHIFT - 1))) >> _FIRST_SHIFT
    # Columns as additions and int32 products (≤ 2^28): even rows of the matrix are symmetric, odd rows antisymmetric.
    sums = [rows[:, :, :, i] + rows[:, :, :, 7 - i] for i in range(4)]  # [v, N, H/8, W/8]
    differences = [rows[:, :, :, i] - rows[:, :, :, 7 - i] for i in range(4)]
    coefficients = []
    for u in range(8):
        terms = [int(_ISLOW[u, i]) * (differences if u % 2 else sums)[i] for i in range(4)]
        column = (terms[0] + terms[1] + terms[2] + terms[3] + (1 << (_SECOND_SHIFT - 1))) >> _SECOND_SHIFT
        coefficients.append([column[v] for v in range(8)])
    return coefficients
