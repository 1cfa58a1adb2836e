"""Fine-tune the bundled model on new labels: a few cases, a few steps."""

import volseg
from volseg.data.cases.phantom import write_phantoms
from volseg.modelfile import read_card

write_phantoms("phantoms", count=5, seed=1, kind="mr", tests=1)
run = volseg.train(
    "phantoms",
    "runs/fine_tuned",
    from_model="hippocampus",  # or a model file, or another run
    label_map={"ball": "Anterior"},  # the rod is new, and Posterior is dropped
    freeze="encoder",  # keep what it knows of MR
    overrides=["training.validations=0"],
    steps=20,  # or minutes=3
    device="cpu",
)
card = read_card(run / "model.safetensors")
print(card.training["from"])  # what was copied, new and dropped

segmenter = volseg.Segmenter.load(run / "model.safetensors", device="cpu")
result = segmenter("phantoms/imagesTs/phantom_006.nii.gz")
print({name: label["volume_ml"] for name, label in result.record["labels"].items()})
