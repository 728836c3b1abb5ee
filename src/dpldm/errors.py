"""What a user did that can be put right, in one sentence.

Anything raised as `UserError` reaches the terminal as that sentence alone, without a traceback, and
ends the process with exit code 2. Every other exception is a defect of ours.
"""


class UserError(Exception):
    """A mistake in what the user gave us: says what is wrong and what to change.

    The text is shown as it stands, so it must name the setting or file that was given, never the
    content of a private image or a count of private records.
    """


class MissingExtra(UserError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}: install it with  pip install 'dpldm[{extra}]'.")
