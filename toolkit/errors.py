"""The two ways a run ends badly on purpose; everything else is a bug and keeps its traceback."""


class InputError(ValueError):
    """The user's flags, configuration or data are wrong: one clear line, exit code 2."""


class NonFiniteError(RuntimeError):
    """A loss or gradient became NaN or infinite: one line naming step and samples, exit code 1."""
