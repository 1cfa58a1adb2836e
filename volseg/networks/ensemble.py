"""Several networks as one, for example the folds of a cross-validation."""

from collections.abc import Sequence

from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean of the logits of networks that were trained for the same task.

    Args:
        members: at least one; the parameters of member m have the prefix `members.m.`.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, D, H, W) to logits (B, classes, D, H, W), averaged in float32; evaluation mode only."""
        total: Tensor = self.members[0](x).float()
        for member in self.members[1:]:
            total += member(x)
        return total.div_(len(self.members))
