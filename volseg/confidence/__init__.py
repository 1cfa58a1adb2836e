"""How far a result can be trusted: expected Dice, volume intervals and uncertainty from calibrated probabilities."""
