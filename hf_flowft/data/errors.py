"""What other libraries raise, as a part of one sentence."""

from __future__ import annotations


def reason(error: BaseException) -> str:
    """What went wrong in the first place, in one line: the text of the error that caused the others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
