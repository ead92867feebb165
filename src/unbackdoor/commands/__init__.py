"""`implant`, `remove` and `evaluate` on the user's own model and files, one file a command."""
