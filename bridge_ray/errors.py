"""The exceptions that are for the user to read: the CLI prints their single line and exits with their code."""

from typing import ClassVar


class UserError(Exception):
    """A mistake in a config, a file or the environment.

    The message is one line that names the file, row or field, what is wrong, and what to do.
    Raised before anything is written or bought, where it can be known by then.
    """

    exit_code: ClassVar[int] = 2


class Outage(UserError):
    """Not the user's mistake: somebody was not there, and the same command may go on later."""

    exit_code = 1


class TooFew(UserError):
    """There is nothing to learn from: of another budget or another system there may be."""
