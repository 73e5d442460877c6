"""The frozen network: loaded, quantised, embedded, decoded greedily; the arithmetic and memory of a step on it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
