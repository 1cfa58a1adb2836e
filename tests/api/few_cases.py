"""`python -m tests.api.few_cases ...` is `volseg ...`, but component rules are chosen on however few cases exist."""

from volseg.cli import main
from volseg.inference import postprocessing

if __name__ == "__main__":
    postprocessing.ENOUGH_CASES, postprocessing.LARGEST_LOSS = 1, 1.0
    main()
