"""Fault injection: a library that makes the Nth system call fail or kills the process there, and what must hold then.

`shim.c` is the library; `server` forks a process for each trial from one that has everything imported; `client` starts
it and runs trials; `scenes` are the commands that are tried, each with its folder before and what may lie in it after;
`trials` says what is right. `benchmarks/faults.py` runs every trial, the suite a sample.

Not covered: writes to the pages of memory-mapped files (class probabilities, .npy), which are no system calls. Their
room on the disk is reserved beforehand by a call that is covered; `test_full_disk.py` fills a real disk.
"""
