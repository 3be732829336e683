"""Where an unknown model's residual branches are: one traced run, searched for merges."""
