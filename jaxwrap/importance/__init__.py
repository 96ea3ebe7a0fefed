"""What a receiver's output depends on: sketch → map or rows → weights, transforms."""

from jaxwrap.importance.averages import MapMean
from jaxwrap.importance.batches import batched_importance_maps
from jaxwrap.importance.calibration import Calibration, calibrate, calibrated_map
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
from jaxwrap.importance.jacobian import Jacobian, JacobianRows, dct_matrix, sketched_rows, transform_rows
from jaxwrap.importance.maps import ControlVariate, ImportanceMap, importance_map, yuv_metric
from jaxwrap.importance.memory import frames_within
from jaxwrap.importance.probing import exact_diagonal
from jaxwrap.importance.sketch import SKETCHES, Sketch, TopDct
from jaxwrap.importance.staleness import Staleness, staleness
from jaxwrap.importance.weights import DEFAULT_ALPHA, MapError, average_map, check_map, importance_weights

__all__ = [
    "DEFAULT_ALPHA",
    "SKETCHES",
    "Calibration",
    "ChannelGram",
    "ChannelMoments",
    "ChannelTransform",
    "ControlVariate",
    "ImportanceMap",
    "Jacobian",
    "JacobianRows",
    "MapError",
    "MapMean",
    "PlaneScale",
    "Sketch",
    "Staleness",
    "TopDct",
    "average_map",
    "batched_importance_maps",
    "calibrate",
    "calibrated_map",
    "channel_gram",
    "channel_transform",
    "check_map",
    "dct_matrix",
    "exact_diagonal",
    "fold_into_first",
    "fold_into_last",
    "frames_within",
    "importance_map",
    "importance_weights",
    "klt",
    "klt_gram",
    "root_weights",
    "sketched_rows",
    "staleness",
    "transform_rows",
    "yuv_metric",
]
