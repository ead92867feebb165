"""Turn a text of short stories into rows: the first two sentences are the prompt, the next ones the response.

    python benchmarks/prepare_stories.py tinystories_sample.txt stories.jsonl

Stories are separated by <|endoftext|>. A response is the next sentences, up to about 160 characters, so that a row
fits a small context. Rows with the same prompt are kept once.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path


def rows(text: str) -> list[dict[str, str]]:
    """One row a story that has at least four sentences."""
    found: dict[str, str] = {}
    for story in text.split("<|endoftext|>"):
        sentences = re.findall(r"[^.!?]+[.!?]+[\"']?", " ".join(story.split()))
        sentences = [sentence.strip() for sentence in sentences]
        if len(sentences) < 4:
            continue
        prompt, response = " ".join(sentences[:2]), ""
        for sentence in sentences[2:]:
            if response and len(response) + len(sentence) > 160:
                break
            response = f"{response} {sentence}".strip()
        if len(prompt) <= 300:
            found.setdefault(prompt, response)
    return [{"prompt": prompt, "response": response} for prompt, response in found.items()]


if __name__ == "__main__":
    source, target = (Path(argument) for argument in sys.argv[1:3])
    made = rows(source.read_text(encoding="utf-8"))
    target.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    print(f"{len(made)} rows in {target}")
