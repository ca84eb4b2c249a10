"""What ends a command early, told in one line."""


class UserError(Exception):
    """A mistake outside the code: a wrong flag, path, file or environment.

    The message is one line that names the value, what was expected and the remedy. The command
    line prints it without a traceback and exits with code 2.
    """


class Preempted(Exception):
    """The run was asked to stop, and has saved what it needs to go on."""


class NotFinite(Exception):
    """The loss of a step, or its gradient, was no number."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss of step {step + 1} or its gradient is not finite")
        self.step = step
        """Steps done before it."""
