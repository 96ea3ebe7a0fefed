"""What a receiver's output depends on: sketch → map → weights."""

from jaxwrap.importance.averages import MapMean
from jaxwrap.importance.batches import batched_importance_maps
from jaxwrap.importance.maps import ControlVariate, ImportanceMap, importance_map, yuv_metric
from jaxwrap.importance.memory import frames_within
from jaxwrap.importance.sketch import SKETCHES, Sketch, TopDct
from jaxwrap.importance.weights import DEFAULT_ALPHA, MapError, average_map, check_map, importance_weights

__all__ = [
    "DEFAULT_ALPHA",
    "SKETCHES",
    "ControlVariate",
    "ImportanceMap",
    "MapError",
    "MapMean",
    "Sketch",
    "TopDct",
    "average_map",
    "batched_importance_maps",
    "check_map",
    "frames_within",
    "importance_map",
    "importance_weights",
    "yuv_metric",
]
