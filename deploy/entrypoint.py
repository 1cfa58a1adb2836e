"""Entry point of a container in the manner of Grand Challenge: images of /input to label images in /output.

    /input/images/<slug>/*.mha                          or any other format that volseg reads
    /output/images/<VOLSEG_SLUG>/*.mha                  a label image for each, under its name
    /output/results.json                                for each: input, output, error and the record of the result

Environment: VOLSEG_MODEL (a bundled name or the path of a model file), VOLSEG_SLUG, VOLSEG_INPUT, VOLSEG_OUTPUT,
VOLSEG_DEVICE. Exit code: 0 if every image was segmented, 3 if some failed, 2 if nothing could be started.
"""

import json
import logging
import os
import sys
from pathlib import Path

import volseg


def main() -> int:
    """Segment all images of the input."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    source, target = Path(os.environ.get("VOLSEG_INPUT", "/input")), Path(os.environ.get("VOLSEG_OUTPUT", "/output"))
    images = target / "images" / os.environ.get("VOLSEG_SLUG", "segmentation")
    model, device = os.environ.get("VOLSEG_MODEL", "hippocampus"), os.environ.get("VOLSEG_DEVICE", "auto")
    folders = sorted(path for path in (source / "images").glob("*") if path.is_dir())
    try:
        cases = [_case(one) for one in volseg.predict(folders, model, images, device=device, overwrite=True)]
    except volseg.VolsegError as error:
        logging.error("%s", error)
        return 2
    (target / "results.json").write_text(json.dumps(cases, indent=2) + "\n", encoding="utf-8")
    return 3 if any(case["error_messages"] for case in cases) else 0


def _case(done: volseg.Prediction) -> dict[str, object]:
    """What results.json says of a case; its record stands there, since the folder of images must hold nothing else."""
    if done.error:
        logging.error("%s: %s", done.name, done.error)
    else:
        done.output.with_name(f"{done.name}.json").unlink()
    return {
        "inputs": [{"type": "metaio_image", "filename": done.input.name}],
        "outputs": [] if done.error else [{"type": "metaio_image", "filename": done.output.name}],
        "error_messages": [str(done.error)] if done.error else [],
        "record": done.record,
    }


if __name__ == "__main__":
    sys.exit(main())
