"""How far a model is from its reference. Needs the extra ``ramrs[eval]``."""

from ramrs.evaluation.compare import evaluate

__all__ = ["evaluate"]
