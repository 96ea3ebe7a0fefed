"""What a receiver's output depends on: sketch → map → weights."""

from jaxwrap.importance.maps import ImportanceMap, batched_importance_maps, importance_map, yuv_metric
from jaxwrap.importance.sketch import SKETCHES, Sketch
from jaxwrap.importance.weights import DEFAULT_ALPHA, MapError, average_map, check_map, importance_weights

__all__ = [
    "DEFAULT_ALPHA",
    "SKETCHES",
    "ImportanceMap",
    "MapError",
    "Sketch",
    "average_map",
    "batched_importance_maps",
    "check_map",
    "importance_map",
    "importance_weights",
    "yuv_metric",
]
