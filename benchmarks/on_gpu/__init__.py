"""What `gpu.py` measures: a module for each stage, whose `measure` yields its figures one after the other."""
