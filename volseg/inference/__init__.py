"""From a volume on the network's grid to labels on the scan's grid, and what is measured on them."""
