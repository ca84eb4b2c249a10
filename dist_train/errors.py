"""What a user can mend, told in one line."""


class UserError(Exception):
    """A mistake outside the code: a wrong flag, path, file or environment.

    The message is one line that names the value, what was expected and the remedy. The command
    line prints it without a traceback and exits with code 2.
    """
