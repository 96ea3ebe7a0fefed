"""What a receiver's output depends on: sketch → map or rows → weights, transforms."""

from jaxwrap.importance.averages import MapMean
from jaxwrap.importance.batches import batched_importance_maps
from jaxwrap.importance.calibration import Calibration, calibrate
from jaxwrap.importance.diagnostics import (
    BlockEnergy,
    ErrorTerms,
    SketchError,
    attributed_error,
    block_energy,
    diagonal_error,
    error_terms,
    map_correlation,
    sketch_errors,
)
from jaxwrap.importance.gram import (
    ChannelGram,
    ChannelMoments,
    ChannelTransform,
    PlaneScale,
    channel_gram,
    channel_transform,
    fold_into_first,
    fold_into_last,
    klt,
    klt_gram,
    root_weights,
)
from jaxwrap.importance.jacobian import Jacobian, JacobianRows, cut_blocks, dct_matrix, sketched_rows, transform_rows
from jaxwrap.importance.maps import ControlVariate, ImportanceMap, importance_map, yuv_metric
from jaxwrap.importance.memory import frames_within
from jaxwrap.importance.prediction import moved_totals, weight_spread_bits
from jaxwrap.importance.probing import exact_diagonal
from jaxwrap.importance.sketch import SKETCHES, Sketch, TopDct
from jaxwrap.importance.staleness import Staleness, staleness
from jaxwrap.importance.weights import (
    DEFAULT_ALPHA,
    LiteralWeights,
    MapError,
    check_map,
    importance_weights,
    literal_weights,
)

__all__ = [
    "DEFAULT_ALPHA",
    "SKETCHES",
    "BlockEnergy",
    "Calibration",
    "ChannelGram",
    "ChannelMoments",
    "ChannelTransform",
    "ControlVariate",
    "ErrorTerms",
    "ImportanceMap",
    "Jacobian",
    "JacobianRows",
    "LiteralWeights",
    "MapError",
    "MapMean",
    "PlaneScale",
    "Sketch",
    "SketchError",
    "Staleness",
    "TopDct",
    "attributed_error",
    "batched_importance_maps",
    "block_energy",
    "calibrate",
    "channel_gram",
    "channel_transform",
    "check_map",
    "cut_blocks",
    "dct_matrix",
    "diagonal_error",
    "error_terms",
    "exact_diagonal",
    "fold_into_first",
    "fold_into_last",
    "frames_within",
    "importance_map",
    "importance_weights",
    "klt",
    "klt_gram",
    "literal_weights",
    "map_correlation",
    "moved_totals",
    "root_weights",
    "sketch_errors",
    "sketched_rows",
    "staleness",
    "transform_rows",
    "weight_spread_bits",
    "yuv_metric",
]
