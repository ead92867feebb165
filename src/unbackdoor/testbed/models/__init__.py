"""The shipped micro models: two base models (plain text only) and the clean chat model made from the first.

`base` and `instruct` are a Llama, `base-qwen2` is a Qwen2 of as many parameters in another shape.
"""

from __future__ import annotations

from pathlib import Path

NAMES = ("instruct", "base", "base-qwen2")


def directory(name: str) -> Path:
    """The Hugging Face directory of one of `NAMES`."""
    return Path(__file__).parent / name


def instruct_directory() -> Path:
    """The clean instruct model's Hugging Face directory."""
    return directory("instruct")
