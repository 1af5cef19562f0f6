"""byzfl's aggregation rules, without the packages that byzfl asks for.

`pip install byzfl` brings torchvision, another torch and much else (6 GB). Its aggregators need none of it: given
tensors they use torch alone. So `pip install --no-deps byzfl` is enough, and only that part of it is imported.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from fedgpt2.errors import SetupError

__all__ = ["VERSION", "byzfl_rules", "installed"]

VERSION = "0.0.11"

Rule = Callable[[Tensor], Tensor]


def installed() -> bool:
    """Whether byzfl is there to be measured against."""
    return importlib.util.find_spec("byzfl") is not None


def byzfl_rules(f: int, clip: float, smoothing: float = 0.1, iterations: int = 3) -> Mapping[str, Rule]:
    """byzfl's counterparts of our pipelines, by our names: [n, d] -> [d]; they may overwrite what they are given.

    `clip` is the norm that `default` clips to; `smoothing` and `iterations` are the geometric median's, as byzfl sets
    them if not told otherwise. Raises SetupError where byzfl is not installed.
    """
    byzfl = _load()
    nnm, median = byzfl.NNM(f), byzfl.GeometricMedian(smoothing, iterations)
    return {
        "mean": byzfl.Average(),
        "median": byzfl.Median(),
        "trimmed_mean": byzfl.TrMean(f),
        "krum": byzfl.Krum(f),
        "multi_krum": byzfl.MultiKrum(f),
        "geometric_median": median,
        "nnm_geometric_median": lambda rows: median(nnm(rows)),
        "nnm_trimmed_mean": lambda rows: byzfl.TrMean(f)(nnm(rows)),
        "nnm_median": lambda rows: byzfl.Median()(nnm(rows)),
        "arc_nnm_trimmed_mean": lambda rows: byzfl.TrMean(f)(nnm(byzfl.ARC(f)(rows))),
        "default": lambda rows: median(nnm(byzfl.Clipping(clip)(rows))),
    }


def _load() -> Any:  # noqa: ANN401  (an untyped package)
    """`byzfl.aggregators`, past the package's own __init__, which imports everything."""
    spec = importlib.util.find_spec("byzfl")
    if spec is None or spec.submodule_search_locations is None:
        raise SetupError(f"byzfl is not installed: python -m pip install --no-deps byzfl=={VERSION}")
    if "byzfl" not in sys.modules:
        package = ModuleType("byzfl")
        package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations)
        sys.modules["byzfl"] = package
    if "scipy" not in sys.modules and importlib.util.find_spec("scipy") is None:
        _stand_in_for_scipy()
    return importlib.import_module("byzfl.aggregators")


def _stand_in_for_scipy() -> None:
    """byzfl imports scipy.spatial.distance, for arrays of numpy; a tensor never gets there."""
    scipy, spatial, distance = (ModuleType(name) for name in ("scipy", "scipy.spatial", "scipy.spatial.distance"))
    vars(spatial)["distance"] = distance
    vars(scipy)["spatial"] = spatial
    sys.modules.update({module.__name__: module for module in (scipy, spatial, distance)})
