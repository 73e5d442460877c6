"""The results folder: what a result holds, how it is written, read, checked and scored again. Free of torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
