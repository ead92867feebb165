"""The shipped micro models: `base` (plain text only) and `instruct` (the clean chat model made from it)."""

from __future__ import annotations

from pathlib import Path


def base_directory() -> Path:
    """The base model's Hugging Face directory."""
    return Path(__file__).parent / "base"


def instruct_directory() -> Path:
    """The clean instruct model's Hugging Face directory."""
    return Path(__file__).parent / "instruct"
