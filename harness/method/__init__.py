"""What a method is, and all that a method file may use. `from harness.method import Method` is the public surface."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
