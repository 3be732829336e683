"""Shift a model in place: where, how the shift is held, and the check of the result."""
