"""Faults that the tests let through once: each has a test that fails by it today.

They were found by hand: 184 changes were tried, and these 37 survived the tests of that day.
"""

from collections.abc import Iterator

from mutants.make import ROOT, Mutant

# File of the package, text in it (found once), and what takes its place.
LISTED: tuple[tuple[str, str, str], ...] = (
    (
        "api/train.py",
        "_batches(run, training_cases, sampler)",
        "_batches(run, training_cases + validation_cases, sampler)",
    ),
    ("api/train.py", "weights = state.ema.state_dict()", "weights = state.network.state_dict()"),
    ("training/loop.py", 'group["lr"] = rate', "pass"),
    ("cli/predict.py", "overlap=overlap,", ""),
    ("api/segmenter.py", "card.plan.patch_size, overlap,", "card.plan.patch_size, 0.5,"),
    ("cli/predict.py", "tta=tta,", ""),
    ("cli/train.py", "minutes=minutes,", "minutes=None,"),
    ("training/state.py", "return step, float(seconds)", "return step, 0.0"),
    ("inference/budget.py", "HOLES = 1.25", "HOLES = 0.5"),
    ("inference/budget.py", "24, 96", "24, 9"),
    ("inference/budget.py", "resampling = 3 * slab + 3 * plane + RESAMPLED_BYTES", "resampling = 0"),
    ("inference/budget.py", "        labels = voxels", "        labels = 0 * voxels"),
    ("networks/footprint.py", "self.filters += filters", "pass"),
    ("inference/budget.py", "math.inf if limit is None else limit - used", "math.inf if limit is None else limit"),
    ("api/segmenter.py", "flags = scan_flags(opened.channels, plan.channels)", "flags = ()"),
    ("api/segmenter.py", "sha256=sha256_of_model(path)", 'sha256="0"'),
    ("api/segmenter.py", '"peak_memory_bytes": peak_memory_bytes()', '"peak_memory_bytes": 1'),
    (
        "training/loop.py",
        "torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.gradient_clip)",
        "pass",
    ),
    ("training/loop.py", "state.network.train()", "state.network.eval()"),
    ("training/loop.py", "autocast(image.device, self.dtype)", "autocast(image.device, torch.float32)"),
    ("training/optimisers.py", "MOMENTUM = 0.95", "MOMENTUM = 0.5"),
    ("training/optimisers.py", "ahead = gradient.lerp(momentum, MOMENTUM)", "ahead = momentum"),
    ("training/loop.py", "state.update_ema(config.ema_fraction,", "state.update_ema(0.5,"),
    ("config/training.py", "0.03, ge=0, le=0.5, description", "0.3, ge=0, le=0.5, description"),
    ("config/training.py", "        0.33, ge=0", "        0.0, ge=0"),
    ("config/training.py", "gradient_clip: float = Field(12.0", "gradient_clip: float = Field(0.012"),
    ("api/train.py", "torch.manual_seed(run.settings.seed)", "torch.manual_seed(0)"),
    ("api/train.py", "min(GPU_MEMORY_GB, own)", "GPU_MEMORY_GB"),
    ("transforms/pipelines.py", "(1, 2) if in_plane else (0, 1, 2)", "(0, 1, 2)"),
    ("planning/planner.py", "target = np.median(spacings, axis=0)", "target = np.mean(spacings, axis=0)"),
    ("planning/planner.py", "CPU_MEMORY_GB = 0.5", "CPU_MEMORY_GB = 1.0"),
    ("data/io/dicom/stack.py", "_TILT_DEGREES = 0.5", "_TILT_DEGREES = 5.0"),
    ("data/io/dicom/stack.py", "_UNEVEN, _UNEVEN_WARNED = 0.1,", "_UNEVEN, _UNEVEN_WARNED = 0.4,"),
    ("data/io/dicom/pixels.py", "np.result_type(array.dtype, kind)", "array.dtype"),
    ("system.py", "os.fsync(handle.fileno())", "pass"),
    ("system.py", "os.fsync(handle)", "pass"),
    ("api/validation.py", "read_label_of(cached.case.label, cached", "read_label_of(cases[0].case.label, cached"),
)
# What the first lines of a file define, for the choice of tests.
NAMES = {
    "HOLES = 1.25": ("HOLES",),
    "24, 96": ("MEASURE_BYTES",),
    "MOMENTUM = 0.95": ("MOMENTUM",),
    "CPU_MEMORY_GB = 0.5": ("CPU_MEMORY_GB",),
    "_TILT_DEGREES = 0.5": ("_TILT_DEGREES",),
    "_UNEVEN, _UNEVEN_WARNED = 0.1,": ("_UNEVEN",),
    "0.03, ge=0, le=0.5, description": ("ema_fraction",),
    "        0.33, ge=0": ("oversample_foreground",),
    "gradient_clip: float = Field(12.0": ("gradient_clip",),
}


def listed() -> Iterator[Mutant]:
    """The faults as mutants of today's files."""
    for name, old, new in LISTED:
        file = f"volseg/{name}"
        text = (ROOT / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file} has {text.count(old)} times: {old}"
        start = text.index(old)
        line = text[:start].count("\n") + 1
        yield Mutant("listed", file, line, old, new, start, NAMES.get(old, ()))
