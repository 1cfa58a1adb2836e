"""Layers with the results and parameters of their torch counterparts, made fast on a CPU; and the memory for them."""
