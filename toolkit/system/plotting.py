"""Matplotlib for all that draws: $MPLBACKEND makes no difference, for plots go into files, and no home is needed."""

import contextlib
import os
import sys

from toolkit.system.places import matplotlib_dir

if "matplotlib" in sys.modules:
    import matplotlib
else:
    if "MPLCONFIGDIR" not in os.environ and (folder := matplotlib_dir()):
        os.environ["MPLCONFIGDIR"] = folder
    backend = os.environ.pop("MPLBACKEND", "")  # the import fails where it is not installed, as outside of its notebook
    import matplotlib

    if backend:
        os.environ["MPLBACKEND"] = backend
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend  # as the import does it

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, MultipleLocator, NullLocator

__all__ = [
    "Axes",
    "Figure",
    "FigureCanvasSVG",
    "FixedLocator",
    "FuncFormatter",
    "LinearSegmentedColormap",
    "MaxNLocator",
    "MultipleLocator",
    "NullLocator",
    "matplotlib",
    "rc_context",
    "to_hex",
]
