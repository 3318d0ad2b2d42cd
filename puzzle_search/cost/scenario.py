"""The workload that a cost is for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from puzzle_search.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Input and output length of a request, in tokens."""

    input_len: int
    output_len: int

    def __str__(self) -> str:
        return f"{self.input_len}/{self.output_len}"

    @property
    def tokens(self) -> int:
        """Length of a request at its end."""
        return self.input_len + self.output_len

    @property
    def decode_steps(self) -> int:
        """Steps after prefill, which itself gives the first output token."""
        return self.output_len - 1

    @classmethod
    def parse(cls, text: str) -> Scenario:
        """Read ``input/output``, e.g. ``128/1024`` or ``64k/64k``, whose k is 1,024.

        Raises:
            InputError: the text has another form.
        """
        match = re.fullmatch(r"([1-9][0-9]{0,8})(k?)/([1-9][0-9]{0,8})(k?)", text)
        if match is None:
            raise InputError(
                f"scenario {text!r} is not INPUT/OUTPUT tokens",
                remedy="write for example 128/1024 or 64k/64k",
            )
        sizes = [int(match[n]) * (1024 if match[n + 1] else 1) for n in (1, 3)]
        return cls(input_len=sizes[0], output_len=sizes[1])
