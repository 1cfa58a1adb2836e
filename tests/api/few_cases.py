"""`python -m tests.api.few_cases ...` is `volseg ...`, but rules and calibration are made from however few cases."""

from volseg.cli import main
from volseg.confidence import fitting
from volseg.postprocessing import choosing

if __name__ == "__main__":
    choosing.ENOUGH_CASES, choosing.LARGEST_LOSS = 1, 1.0
    fitting.FEWEST_CASES = 1
    main()
