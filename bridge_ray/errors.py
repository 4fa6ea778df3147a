"""The one exception that means "the user can fix this": the CLI prints its single line and exits with 2."""


class UserError(Exception):
    """A mistake in a config, a file or the environment.

    The message is one line that names the file, row or field, what is wrong, and what to do.
    Raised before anything is written or bought.
    """
