"""One model from two datasets: in the first only the balls were drawn, in the second only the rods."""

import json
from pathlib import Path

import nibabel
import numpy as np

import volseg
from volseg.data.cases.phantom import write_phantoms
from volseg.modelfile import read_card

for seed, (name, value) in enumerate({"ball": 1, "rod": 2}.items()):
    folder = Path(f"{name}s")
    write_phantoms(folder, count=5, seed=10 * seed, kind="mr")
    for path in (folder / "labelsTr").iterdir():
        image = nibabel.load(path)
        drawn = np.uint8(np.asarray(image.dataobj) == value)  # both datasets give their only label the value 1
        nibabel.save(nibabel.Nifti1Image(drawn, image.affine, image.header), path)
    index = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**index, "name": f"{name}s", "labels": {name: 1}}))

quick = ["plan.features=[4, 8]", "plan.patch_size=[16, 16, 16]", "training.dataset_shares=equal"]  # for a real run: []
run = volseg.train(["balls", "rods"], "runs/joined", steps=10, overrides=quick)
card = read_card(run / "model.safetensors")
labels = {label.name: label.value for label in card.plan.labels}
annotated = card.training["annotated_cases"]
scored = {name: mean["cases"] for name, mean in card.scores["labels"].items()}
print(f"values {labels}, annotated in {annotated} training cases, scored on {scored} validation cases")
