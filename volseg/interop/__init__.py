"""Import of models from other programs: nnU-Net v2."""
