"""Conformance tests that every part inherits, and a table of what each part passes.

`python -m pmmrec.testing` prints the table. A test of a part of one's own is one line: see `conformance`.
"""

from pmmrec.testing.conformance import conformance

__all__ = ["conformance"]
