"""Conformance tests that every part inherits, and a table of what each part passes.

`python -m pmmrec.testing` prints the table. A test of a part of one's own is one line: see `conformance`. See
`twin_of` for comparing a part with a naive twin.
"""

from pmmrec.testing.conformance import conformance
from pmmrec.testing.twins import twin_of

__all__ = ["conformance", "twin_of"]
