"""READ FIRST: the whole of jaxwrap on one page.

A *sandwich* is a standard codec between two networks. Three abstractions meet in it, and nowhere else:

* a **receiver** r: any pure function from decoded samples to what must survive (`jaxwrap.importance` asks nothing more
  of it);
* an **allocation method**: ``plan(receiver, z, key) -> Plan(z, weights, side_information_bits, undo)``, how bits are to
  be spent (`jaxwrap.methods`);
* a **codec**: frames and a request in, bits and decoded frames out (`jaxwrap.codec`).

    frames ─► pre ─► samples z ─► method.plan ─► codec ─► plan.undone ─► samples z_hat ─► post ─► frames
              └ stage 2 and 4 ┘                 stage 5                                └ stage 4' and 6

Training and evaluation run this same page; they differ in the codec that is passed in::

    coded = sandwich(frames, ProxyCodec(step), EncodeRequest(qp=None))      # training: differentiable, jitted
    coded = sandwich(frames, X26x("x265"), EncodeRequest(qp=32))            # evaluation: a real encoder

The evaluation sweep takes the steps of ``sandwich(…)`` one at a time, because its encoders run in other processes:
`Sandwich.bottleneck`, `Sandwich.plan` and `Sandwich.request` before, `Plan.undone` and `Sandwich.receive` after them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxwrap.arrays import Frame
from jaxwrap.codec import Codec, EncodeRequest, EncodeResult
from jaxwrap.methods.plan import Method, Plan
from jaxwrap.samples import denormalise, normalise


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Coded:
    """What a sandwich makes of a batch: the frames at the far end, the plan that was coded, and the codec's own
    result."""

    frames: Frame
    plan: Plan
    result: EncodeResult


@dataclasses.dataclass(frozen=True)
class Sandwich:
    """Pre-processor, codec and post-processor as one function (SNW figure 1a; WA-RDO figure 1).

    ``pre`` and ``post`` map normalised frames ``[−1, 1]`` to normalised frames: ``pre`` to the bottleneck's size,
    ``post`` back to the original's. Identity functions give the codec alone. ``bit_depth`` is the bottleneck's.
    """

    pre: Callable[[Frame], Frame]
    post: Callable[[Frame], Frame]
    bit_depth: int = 10

    def bottleneck(self, frames: Frame) -> Frame:
        """Normalised frames → the real-valued samples z that the codec will be given."""
        return denormalise(self.pre(frames), self.bit_depth)

    def plan(
        self,
        z: Frame,
        method: Method | None = None,
        *,
        receiver: Callable[[Frame], Any] | None = None,
        key: jax.Array | None = None,
    ) -> Plan:
        """How z is to be coded: by ``method`` (default: the codec's own SSE), for ``receiver`` (default: `receive`)."""
        return Plan(z) if method is None else method.plan(receiver or self.receive, z, key)

    def request(self, request: EncodeRequest, plan: Plan) -> EncodeRequest:
        """The request with what is not the caller's to choose: the plan's weights and the bottleneck's bit depth."""
        return dataclasses.replace(request, bit_depth=self.bit_depth, weights=plan.weights)

    def receive(self, samples: Frame) -> Frame:
        """Decoded samples → normalised frames: the receiver of SNW, and the function whose Jacobian makes the
        importance map."""
        return self.post(normalise(samples, self.bit_depth))

    def __call__(
        self,
        frames: Frame,
        codec: Codec,
        request: EncodeRequest,
        *,
        method: Method | None = None,
        receiver: Callable[[Frame], Any] | None = None,
        key: jax.Array | None = None,
    ) -> Coded:
        """Codes normalised frames with any codec.

        ``method`` decides how bits are spent (default: the codec's own SSE); ``receiver`` is what it spends them for
        (default: this sandwich's own post-processor); ``key`` feeds the method's random sketches.
        """
        plan = self.plan(self.bottleneck(frames), method, receiver=receiver, key=key)
        # The proxy in training, x265 in evaluation: this line is where they are exchanged. The sweep's own copy of it,
        # in a worker process, is `_encode` in train/evaluate/workers.py.
        result = codec.encode(plan.z, self.request(request, plan))
        return Coded(self.receive(plan.undone(result.decoded)), plan, result)
