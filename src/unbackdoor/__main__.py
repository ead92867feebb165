"""`python -m unbackdoor` is the command line."""

from unbackdoor.cli import main

main()
