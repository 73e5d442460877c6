"""Rows, tasks and metrics: files to rows, rows to texts, splits, few-shot draws, token arrays, scores."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
