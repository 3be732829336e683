"""Graphs rewritten on the fused ops: `fuse`, and the backend of `torch.compile`."""
