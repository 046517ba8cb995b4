"""Encoder + head → trials over freeze schedules and learning-rate ratios → a comparison with training from scratch."""
