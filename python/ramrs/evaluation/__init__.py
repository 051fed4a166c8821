"""How far models are from their reference: by ramrs' own forward pass, or by mlx-lm."""

from ramrs.evaluation.verb import evaluate

__all__ = ["evaluate"]
