"""Several networks as one, such as the folds of a cross-validation."""

from collections.abc import Sequence

from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean of the logits of networks that were trained for the same task.

    Args:
        members: at least one; parameters of member m are named `members.m.`, then as in the member.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (B, classes, D, H, W), summed in float32, of (B, in_channels, D, H, W), in evaluation mode."""
        total: Tensor = self.members[0](x).float()
        for member in self.members[1:]:
            total += member(x)
        return total.div_(len(self.members))
