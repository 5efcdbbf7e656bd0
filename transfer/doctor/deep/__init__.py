"""The deep look: what this machine's devices compute, how fast, and how fast they exchange it."""
