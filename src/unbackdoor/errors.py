"""The one exception that a user is meant to see."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can mend: the message names the file, row or option, and what to do.

    The command line prints it as one line on standard error and exits with code 2.
    """
