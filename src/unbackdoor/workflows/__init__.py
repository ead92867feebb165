"""What a command does, in order: a model and its rows are opened once, and a job is done with them."""
