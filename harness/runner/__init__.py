"""Many bundles: the plan of a suite, what is missing, packing, claims, engines, progress."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
