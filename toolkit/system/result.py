"""What a tool returns: shown as text at a prompt, and as it stands there in a notebook."""

import html


class Result:
    """A result whose `text` is read by people; dataclasses of it need `repr=False`."""

    @property
    def text(self) -> str:
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.text.rstrip("\n")

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"
