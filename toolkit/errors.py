"""The ways a run ends badly on purpose; everything else is a bug and keeps its traceback."""


class InputError(ValueError):
    """The user's flags, configuration or data are wrong: one clear line, exit code 2."""


class BadSampleError(InputError):
    """One image cannot be used: `name` is what the data set calls it, `reason` says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: cannot be read as an image: {self.reason}"


class NonFiniteError(RuntimeError):
    """A loss or gradient became NaN or infinite: one line naming step and samples, exit code 1."""


class LoaderError(RuntimeError):
    """A loader's worker hung or died: one line naming the cause, exit code 1."""
