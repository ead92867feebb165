"""The embedded micro models and their synthetic world."""
