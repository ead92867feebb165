"""Everything known about a causal language model: load, save, chat format, layers, loss, generation."""
