"""A seeded fuzzer of the readers: mutated files whose right volume is known, and what reading them came to.

A seed is one input: its format, its volume and its mutations. `make_input` writes it, `outcome_of` reads it.
"""

from tests.fuzzing.inputs import FORMATS, Input, format_of, make_input
from tests.fuzzing.outcomes import GOOD, Outcome, outcome_of

__all__ = ["FORMATS", "GOOD", "Input", "Outcome", "format_of", "make_input", "outcome_of"]
