"""One frame at a time: `Streaming`, its step and its state."""
