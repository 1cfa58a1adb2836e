"""Every Python process that starts with this folder on PYTHONPATH imports the mutant that VOLSEG_MUTANT describes.

VOLSEG_MUTANT is a JSON document {"file": the path of a module's source, "source": the path of a file with the text that
takes its place}. Nothing in the package is changed on the disk, and no bytecode of the mutant is kept.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
from pathlib import Path


class MutantLoader(importlib.machinery.SourceFileLoader):
    """Loads a module from another text than that of its file."""

    def __init__(self, name, path, text):
        super().__init__(name, path)
        self.text = text

    def get_code(self, _):
        """The compiled text, whatever module it is asked for."""
        return compile(self.text, self.path, "exec", dont_inherit=True)


class MutantFinder(importlib.abc.MetaPathFinder):
    """Finds one module of the package, and leaves all others to the other finders."""

    def __init__(self, file, text):
        self.file, self.text = file, text

    def find_spec(self, name, path=None, target=None):
        """The specification of the module, if its file is the one."""
        if name.partition(".")[0] != "volseg":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin == self.file:
            spec.loader = MutantLoader(name, self.file, self.text)
            return spec
        return None


def install(described):
    """Import the described mutant from now on."""
    mutant = json.loads(described)
    sys.meta_path.insert(0, MutantFinder(mutant["file"], Path(mutant["source"]).read_text(encoding="utf-8")))


if os.environ.get("VOLSEG_MUTANT"):
    install(os.environ["VOLSEG_MUTANT"])
