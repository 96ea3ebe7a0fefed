"""A diagnosis in words, and its page."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from rich.table import Table

from jaxwrap.codec import Weights
from jaxwrap.codecs.files import write_atomically
from jaxwrap.colour import yuv_to_rgb
from jaxwrap.train.diagnose import CodecVerdict, Diagnosis
from jaxwrap.train.evaluate.modes import BIT_DEPTH
from jaxwrap.train.report.allocation import importance_figure
from jaxwrap.train.report.diagnosis_figures import (
    PAPER_CROSS_RATIO,
    correlation_figure,
    cross_figure,
    energy_figure,
    linearisation_figure,
    sketches_figure,
    verdict_figure,
)
from jaxwrap.train.report.page import embedded, render_page
from jaxwrap.train.verdict import NO_EFFECT, Picture

State = Literal["holds", "in part", "fails", "not measured"]

CROSS_RATIO = 10.0
"""‖e‖² should be this many times the cross term: dropping it then moves the error by a tenth at most."""

NEAR_ONE = 0.15
"""Ratios to ‖e‖² within 1 ± this hold; within 1 ± twice this, in part."""

SAME_MAP = 0.9
"""A map serves another frame where their correlation is this part of what sketch noise allows."""

FEWEST_PAIRS = 3
"""Pairs of inputs from which something is said about all inputs."""

_ROUNDING = 1 / math.sqrt(12)  # standard deviation of what rounding a QP offset to whole numbers changes


_WORDS = {
    "gains": "QP offsets from maps save bits",
    "loses": "QP offsets from maps cost bits",
    "unknown": "cannot be predicted, as no picture has a monotone curve of received quality over rate",
    "no effect": f"QP offsets from maps change nothing (less than {NO_EFFECT} %, or within the interval)",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One assumption: whether it holds here, and the figures that say so."""

    assumption: str
    state: State
    text: str


def enough_error(alpha: float) -> float:
    """Relative error of block means at which a map's noise moves QP offsets as much as their rounding does.

    ΔQP = −3 log₂ w moves by 3 / ln 2 times the relative error of w, which is the map's over 1 + α where h is near its
    mean; rounding has a standard deviation of 1 / √12.
    """
    return _ROUNDING * math.log(2) / 3 * (1 + alpha)


def findings(diagnosis: Diagnosis) -> list[Finding]:
    """What the figures say of each assumption, in the order of the page."""
    return [
        _cross(diagnosis),
        _linear(diagnosis),
        _diagonal(diagnosis),
        _held(diagnosis),
        _frozen(diagnosis),
        _sketches(diagnosis),
    ]


def verdict_text(codec: str, verdict: CodecVerdict, diagnosis: Diagnosis) -> str:
    """The prediction for one codec and its reason, in a few sentences."""
    interval = verdict.score.interval
    if interval is None:
        return f"{codec}: {_WORDS['unknown']}: {next(iter(verdict.score.left_out.values()))}."
    bounds = ""
    if interval.low is not None and interval.high is not None:
        bounds = f" (95 % interval {_signed(interval.low)} … {_signed(interval.high)} %)"
    words = _WORDS[verdict.score.effect]
    text = [
        f"{codec}: {words}. Predicted BD-rate {_signed(interval.mean)} %{bounds}, {interval.num_sequences} pictures."
    ]
    low, high = verdict.offsets
    moves = (
        f"{verdict.moved:.0%} of the blocks change their QP, by {low:+d} to {high:+d}"
        if verdict.moved
        else "no QP moves"
    )
    text.append(
        f"Weights of blocks spread by {verdict.spread_bits:.3f} bits per sample (½ log₂ of their arithmetic over their "
        f"geometric mean); {moves}."
    )
    terms = diagnosis.terms[codec]
    ratio = terms.ratio("diagonal").mean(0)
    reasons = []
    if verdict.moved < 0.05:
        reasons.append("blocks are almost equally important, so that the encoder changes almost no QP")
    elif verdict.spread_bits < 0.01:
        reasons.append("blocks are almost equally important: there is little to win by treating them differently")
    if verdict.score.effect != "gains" and verdict.moved >= 0.05 and abs(ratio[-1] - 1) > NEAR_ONE:
        reasons.append(
            f"the map accounts for {ratio[0]:.0%} of the error at QP {terms.qps[0]} but {ratio[-1]:.0%} at QP "
            f"{terms.qps[-1]}: what coding errors do together is not on its diagonal"
        )
    four = _error_of_used(diagnosis)
    if verdict.moved >= 0.05 and four > 2 * enough_error(diagnosis.settings["alpha"]):
        reasons.append(f"maps are noisy (16×16 means are off by {four:.0%})")
    if verdict.score.effect == "gains":
        reasons.append("importance differs between blocks, and the codec does not know")
    if reasons:
        text.append("Reason: " + "; ".join(reasons) + ".")
    if verdict.score.left_out:
        text.append(f"Left out, as they allow no BD-rate: {', '.join(verdict.score.left_out)}.")
    return " ".join(text)


def diagnosis_table(diagnosis: Diagnosis) -> Table:
    """Findings and verdicts for a terminal."""
    table = Table("assumption", "here", "because", title=f"Diagnosis of {diagnosis.subject}", title_justify="left")
    colours = {"holds": "green", "in part": "yellow", "fails": "red", "not measured": "dim"}
    for note in findings(diagnosis):
        table.add_row(note.assumption, f"[{colours[note.state]}]{note.state}[/]", note.text)
        table.add_section()
    table.caption = "\n".join(verdict_text(c, v, diagnosis) for c, v in diagnosis.verdicts.items())
    table.caption_justify = "left"
    return table


def write_diagnosis(diagnosis: Diagnosis, shown: tuple[Picture, Weights], out: Path) -> None:
    """Writes ``diagnosis.html`` (with its figures inside) and ``diagnosis.json`` to a folder."""
    notes = findings(diagnosis)
    texts = {codec: verdict_text(codec, v, diagnosis) for codec, v in diagnosis.verdicts.items()}
    picture, weights = shown
    source = yuv_to_rgb(jax.tree.map(np.asarray, picture.original), bit_depth=BIT_DEPTH)[0]
    has_correlations = bool(diagnosis.over_time or diagnosis.between_inputs)
    page = render_page(
        "diagnosis.html.jinja",
        subject=diagnosis.subject,
        settings=diagnosis.settings,
        notes=notes,
        verdicts=[{"effect": v.score.effect, "text": texts[c]} for c, v in diagnosis.verdicts.items()],
        picture=embedded(
            importance_figure(source, np.asarray(weights.planes.y)[0], f"Weights of {picture.name}, luma")
        ),
        cross=embedded(cross_figure(diagnosis.terms)),
        linearisation=embedded(linearisation_figure(diagnosis.terms)),
        correlation=embedded(
            correlation_figure(diagnosis.over_time, diagnosis.same_frame, diagnosis.between_inputs)
        ) if has_correlations else None,
        clips_over_time=diagnosis.clips_over_time,
        common=f"{diagnosis.common_size[1]}×{diagnosis.common_size[0]}" if diagnosis.resized else None,
        sketches=embedded(sketches_figure(diagnosis.sketch_errors, enough_error(diagnosis.settings["alpha"]))),
        energy=embedded(energy_figure(diagnosis.energy)),
        verdict=embedded(verdict_figure(diagnosis.verdicts)),
        paper_ratio=PAPER_CROSS_RATIO,
        literal_ratio=_literal_ratio(diagnosis),
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    content = diagnosis.to_json() | {
        "findings": [dataclasses.asdict(note) for note in notes],
        "verdict": {codec: {"effect": v.score.effect, "text": texts[codec]} for codec, v in diagnosis.verdicts.items()},
    }
    write_atomically(out / "diagnosis.json", (json.dumps(content, indent=1) + "\n").encode())
    write_atomically(out / "diagnosis.html", page.encode())


def _cross(diagnosis: Diagnosis) -> Finding:
    ratios = np.concatenate(
        [np.ravel(np.array(t.coding) / np.maximum(np.abs(t.cross), 1e-30)) for t in diagnosis.terms.values()]
    )
    first = next(iter(diagnosis.terms.values()))
    by_qp = np.array(first.coding).mean(0) / np.abs(first.cross).mean(0)
    low = float(by_qp.min())
    state: State = "holds" if low >= CROSS_RATIO else "in part" if float(np.median(ratios)) >= CROSS_RATIO else "fails"
    return Finding(
        "The wrapper's own error does not interact with coding (equation 4)",
        state,
        f"‖e‖² is {np.median(ratios):.1f} times the cross term in the median of all pictures and QPs; over means, "
        f"{by_qp[0]:.1f} at QP {first.qps[0]} and {by_qp[-1]:.1f} at QP {first.qps[-1]}. WA-RDO reports "
        f"{PAPER_CROSS_RATIO} on average. Wanted here: {CROSS_RATIO:g}.",
    )


def _literal_ratio(diagnosis: Diagnosis) -> float:
    coding = np.concatenate([np.ravel(t.coding) for t in diagnosis.terms.values()])
    cross = np.concatenate([np.ravel(t.cross) for t in diagnosis.terms.values()])
    return float(coding.max() / np.abs(cross).min())


def _linear(diagnosis: Diagnosis) -> Finding:
    parts, worst = _ratios(diagnosis, "linear")
    return Finding("The receiver is linear within coding errors", _near_one(worst), f"‖Jq‖² over ‖e‖²: {parts}.")


def _diagonal(diagnosis: Diagnosis) -> Finding:
    parts, worst = _ratios(diagnosis, "diagonal")
    calibrated, _ = _ratios(diagnosis, "calibrated")
    energy = {e.block: e for e in diagnosis.energy}
    return Finding(
        "Errors of single samples add up (equation 5: the diagonal is enough)",
        _near_one(worst),
        f"qᵀ diag(h) q over ‖e‖²: {parts}. With one calibrated weight per plane: {calibrated}. Within 16×16 blocks "
        f"{energy[16].off_diagonal:.0%} of the energy of JᵀMJ is off the diagonal, {energy[16].between_planes:.0%} "
        "couples planes; it matters where coding errors are coherent, as those of zeroed coefficients are.",
    )


def _held(diagnosis: Diagnosis) -> Finding:
    title = "A map of the I frame can be held for the frames after it (IWA)"
    if not diagnosis.over_time:
        return Finding(title, "not measured", "No input has more than one frame.")
    ceiling = diagnosis.same_frame.blocks.mean
    serving = [d for d, c in diagnosis.over_time.items() if c.blocks.mean >= SAME_MAP * ceiling]
    last = max(diagnosis.over_time)
    reach = next((d - 1 for d in range(1, last + 1) if d not in serving), last)
    end = diagnosis.over_time[last].blocks
    return Finding(
        title,
        "holds" if reach == last else "in part" if reach else "fails",
        f"16×16 means correlate by {end.mean:.2f} at a distance of {last} frames, {ceiling:.2f} within a frame between "
        f"independent sketches. They keep {SAME_MAP:.0%} of that for "
        + (f"all {last} frames that were looked at." if reach == last else f"{reach} frames."),
    )


def _frozen(diagnosis: Diagnosis) -> Finding:
    title = "One frozen map serves all inputs (FWA)"
    if len(diagnosis.between_inputs) < FEWEST_PAIRS:
        count = len(diagnosis.between_inputs)
        return Finding(title, "not measured", f"{count} pair(s) of inputs; give 3 or more pictures or clips.")
    values = np.array(diagnosis.between_inputs)[:, 1]
    ceiling = diagnosis.same_frame.blocks.mean
    part = float(np.median(values)) / ceiling
    where = "" if not diagnosis.resized else (
        f" Pictures differ in size: compared over their first {diagnosis.common_size[1]}×{diagnosis.common_size[0]} "
        "samples from the top left."
    )  # fmt: skip
    return Finding(
        title,
        "holds" if part >= SAME_MAP else "in part" if part >= 0.5 else "fails",
        f"16×16 means of different inputs correlate by {np.median(values):.2f} in the median of {len(values)} pairs "
        f"({_signed(np.percentile(values, 10), 2)} … {_signed(np.percentile(values, 90), 2)} for the middle 80 %), "
        f"{ceiling:.2f} within an input between independent sketches.{where}",
    )


def _error_of_used(diagnosis: Diagnosis) -> float:
    """Of 16×16 means, at the number of sketches in use, by the law from the nearest one measured."""
    used = diagnosis.settings["sketches"]
    near = min(diagnosis.sketch_errors, key=lambda e: abs(math.log(e.sketches / used)))
    return near.blocks * math.sqrt(near.sketches / used)


def _sketches(diagnosis: Diagnosis) -> Finding:
    wanted = enough_error(diagnosis.settings["alpha"])
    enough = next((e.sketches for e in diagnosis.sketch_errors if e.blocks <= wanted), None)
    used = diagnosis.settings["sketches"]
    table = ", ".join(f"{e.sketches}: {e.samples:.2f} / {e.blocks:.3f}" for e in diagnosis.sketch_errors)
    is_enough = enough is not None and enough <= used
    return Finding(
        "A few sketches are enough",
        "holds" if is_enough else "in part" if enough is not None else "fails",
        (
            f"{enough} sketches suffice"
            if enough is not None
            else f"{diagnosis.sketch_errors[-1].sketches} do not suffice"
        )
        + f" for QP offsets: 16×16 means are then off by less than {wanted:.2f}, where noise moves offsets as much as "
        f"rounding them does. In use: {used}. Relative error of samples / of 16×16 means by sketches: {table}.",
    )


def _ratios(diagnosis: Diagnosis, name: str) -> tuple[str, float]:
    """ "x264 1.00 at QP 22 … 0.93 at QP 42; …", and the ratio that is furthest from 1."""
    parts, worst = [], 1.0
    for codec, terms in diagnosis.terms.items():
        mean = terms.ratio(name).mean(0)
        parts.append(f"{codec} " + ", ".join(f"{v:.2f}" for v in mean) + f" at QP {', '.join(map(str, terms.qps))}")
        worst = max([worst, *mean.tolist()], key=lambda v: abs(v - 1))
    return "; ".join(parts), worst


def _near_one(ratio: float) -> State:
    distance = abs(ratio - 1)
    return "holds" if distance <= NEAR_ONE else "in part" if distance <= 2 * NEAR_ONE else "fails"


def _signed(value: float, digits: int = 1) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")
