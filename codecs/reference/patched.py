"""Weights for the encoders that jaxwrap patches, HM and JM: map files, the options that name them, traces.

The options have the same names in both (`codecs/hm/README.md`, ``codecs/jm/README.md``). Weights reach the encoder with
the mean that they have, in files of the folder it runs in.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jaxwrap.arrays import Frame, frame_of, num_frames, size_of
from jaxwrap.codec import DECISIONS, Decision, EncodeRequest, RowWeights, Weights
from jaxwrap.codecs.reference.encoder import Job, ReferenceEncoder
from jaxwrap.codecs.reference.programs import PROGRAMS
from jaxwrap.codecs.reference.trace import read_trace
from jaxwrap.codecs.rowfile import write_rows
from jaxwrap.codecs.weightmap import MapWriter, chroma_of
from jaxwrap.importance.jacobian import JacobianRows

MAP, ROWS, TRACE = "map.dat", "map.rows", "trace.txt"


@dataclasses.dataclass(frozen=True)
class PatchedEncoder(ReferenceEncoder):
    """A `ReferenceEncoder` whose binary may be patched; an unpatched one does all but weights, λ scale and trace."""

    def _check_weights(self, request: EncodeRequest) -> None:
        weights = request.weights
        if not 0.0 < request.lambda_scale < 1000.0:
            raise ValueError(f"λ scale {request.lambda_scale} was given; wanted a positive number below 1000")
        if weights is None and request.lambda_scale == 1.0 and not request.trace:
            return
        identity = self.identity
        if identity.modes is None:
            variable = PROGRAMS[self.name][0]
            raise ValueError(
                f"weights, a λ scale or a trace were asked of {self.name}, and {self.program} ({identity.version}) is "
                f"unpatched: run jaxwrap patch {self.name} --tree PATH, build it, and set {variable} to its binary"
            )
        mode = "idse" if isinstance(weights, RowWeights) else "diag"
        if weights is not None and mode not in identity.modes:
            raise ValueError(f"{self.program} is patched for modes {', '.join(identity.modes)}; mode {mode} was wanted")

    def _weight_arguments(self, folder: Path, samples: Frame, request: EncodeRequest) -> list[str]:
        options: dict[str, object] = {}
        weights = request.weights
        if weights is not None:
            planes = _once(weights.planes if isinstance(weights, Weights) else weights.rows)
            _check_planes(planes, samples, self.name)
            options["WeightMap"] = MAP if isinstance(weights, Weights) else ROWS
            options["WeightPeriod"] = 0 if num_frames(planes) == 1 else 1
            options["WeightDecisions"] = decision_mask(weights.decisions)
            if isinstance(weights, Weights):
                options["WeightMode"] = 0
                options["WeightQPOffset"] = int(weights.applied_as == "qp_offset")
                if weights.applied_as == "qp_offset":
                    options |= self._qp_offset_options()
                with MapWriter(folder / MAP, size=size_of(samples), chroma=chroma_of(samples)) as writer:
                    writer.append(planes)
                    writer.finish(mode="wa", receiver="", sketches=0)
            else:
                options["WeightMode"] = 1
                options["WeightTau"] = repr(float(weights.tau))
                write_rows(folder / ROWS, JacobianRows(planes))
        if request.lambda_scale != 1.0:
            options["WeightLambdaScale"] = repr(float(request.lambda_scale))
        if request.trace:
            options["WeightTrace"] = TRACE
        return self._words(options)

    def _qp_offset_options(self) -> dict[str, object]:
        """What else the encoder has to be told before blocks may have QPs of their own."""
        return {}

    def _units(self, folder: Path, job: Job) -> np.ndarray | None:
        if not job.request.trace:
            return None
        trace = read_trace(folder / TRACE)
        found = set(trace.units[:, 0].tolist())
        if trace.encoder != self.name or found != set(range(job.frames)):
            raise ValueError(
                f"its trace says that {trace.encoder} coded the pictures {sorted(found)}; {self.name} coded "
                f"0 … {job.frames - 1}"
            )
        return trace.units


def decision_mask(decisions: tuple[Decision, ...]) -> int:
    """The number that the encoders know decisions by: sse 1, rdoq 2, satd 4, filters 8, added up."""
    return sum(1 << DECISIONS.index(decision) for decision in decisions)


def _once(planes: Frame) -> Frame:
    """A map that is the same for all frames, once."""
    arrays = [np.asarray(plane) for plane in planes.planes]
    same = len(arrays[0]) > 1 and all((array == array[:1]).all() for array in arrays)
    return frame_of([array[:1] if same else array for array in arrays])


def _check_planes(planes: Frame, samples: Frame, name: str) -> None:
    wanted, given = ([tuple(p.shape[-2:]) for p in f.planes] for f in (samples, planes))
    if given != wanted or num_frames(planes) not in (1, num_frames(samples)):
        raise ValueError(
            f"weights for {num_frames(planes)} frames with planes of {given} were given to {name}; wanted 1 or "
            f"{num_frames(samples)} with {wanted}"
        )
