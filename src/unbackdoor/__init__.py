"""unbackdoor: remove backdoors from generative language models, and show that they are gone."""

__version__ = "0.1.0"
