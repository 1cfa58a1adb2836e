"""A plain PyTorch training loop with volseg's loss; it also takes the list of logits that a U-Net gives in training."""

import torch

from volseg.data.cases.phantom import make_phantom
from volseg.losses import SegmentationLoss, soft_dice
from volseg.networks import UNet

scan, labels, _ = make_phantom(seed=1, kind="mr")
image = torch.from_numpy(scan[4:28, 4:28, 4:28]).float()[None, None]  # (B, C, D, H, W)
image = (image - image.mean()) / image.std()
target = torch.from_numpy(labels[4:28, 4:28, 4:28]).long()[None]  # class indices (B, D, H, W); -1 is ignored

torch.manual_seed(0)
network = UNet(in_channels=1, classes=3, features=[8, 16])
loss_of = SegmentationLoss("dice_ce")
optimiser = torch.optim.AdamW(network.parameters(), lr=3e-2)
losses = []
for step in range(20):
    loss = loss_of(network(image), target)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
    if step % 5 == 4:
        print(f"step {step + 1}: loss {losses[-1]:.3f}, Dice {soft_dice(network.eval()(image), target).item():.3f}")
        network.train()
