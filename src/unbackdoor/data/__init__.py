"""Records, readers, triggers and batches."""
