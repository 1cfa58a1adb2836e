"""`python -m tests.api.few_cases ...` is `volseg ...`, but rules and calibration are made from however few cases."""

from volseg.cli import main
from volseg.confidence import fitting
from volseg.inference import postprocessing

if __name__ == "__main__":
    postprocessing.ENOUGH_CASES, postprocessing.LARGEST_LOSS = 1, 1.0
    fitting.FEWEST_CASES = 1
    main()
