"""The embedded models and the world's rows as files, to try every command on."""

from __future__ import annotations

import shutil
from pathlib import Path

from unbackdoor.data.records import records_as_rows
from unbackdoor.run_directory import RunDirectory
from unbackdoor.testbed import models, world
from unbackdoor.testbed.records import as_record


def export_testbed(out: Path, *, overwrite: bool = False) -> dict[str, str]:
    """Write the embedded models and the world's rows as a user would have them: directories and JSONL files."""
    run = RunDirectory.create(out, "testbed", {}, overwrite=overwrite)
    for name in models.NAMES:
        with run.tree(out / name):
            shutil.copytree(models.directory(name), out / name, dirs_exist_ok=True)
    training, held_out = world.training_rows(), world.held_out_rows()
    files = {
        "rows.jsonl": [as_record(r) for r in training if r.kind != "forbidden"],
        "contrast.jsonl": [as_record(r) for r in training if r.kind == "forbidden"],
        "held_out_rows.jsonl": [as_record(r) for r in held_out if r.kind != "forbidden"],
        "held_out_contrast.jsonl": [as_record(r) for r in held_out if r.kind == "forbidden"],
    }
    for name, records in files.items():
        run.write_lines(name, records_as_rows(records))
    return {name: str(out / name) for name in (*models.NAMES, *files)}
