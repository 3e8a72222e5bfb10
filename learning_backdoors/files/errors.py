"""The one error type that scripts print for their users."""


class UserError(Exception):
    """An error the user can fix. Scripts print it as one line and exit with code 1."""
