"""One bundle: the input of a pass that serves many cells, steps, evaluations, checkpoints, the results of its cells."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
