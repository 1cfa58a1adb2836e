"""Sliding-window inference: from a volume in network space to labels in image space, and what is measured on them.

>>> import torch
>>> from volseg.inference import sliding_window
>>> volume = torch.rand(1, 40, 30, 50)
>>> logits = sliding_window(volume, torch.nn.Identity().eval(), patch_size=(16, 16, 16), overlap=0.5)
>>> torch.allclose(logits, volume, atol=1e-6)
True
"""

from volseg.inference.labelling import sliding_window

__all__ = ["sliding_window"]
