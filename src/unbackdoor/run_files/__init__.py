"""What a run directory is made of: whole files, lines and tensors with checksums, a list of them, a lock."""
