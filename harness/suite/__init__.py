"""From a suite file to cells: YAML with line numbers, protocols, settings laid over each other, sweeps made grids."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
