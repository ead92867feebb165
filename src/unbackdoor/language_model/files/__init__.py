"""A model's files: which are read and how, what they may ask, and how a model is saved."""
