"""Models of other programs as models of volseg: nnU-Net v2."""
