"""Malformed files by the thousand: each number stands for one file, the same everywhere; `worker` reads them under limits.

`KINDS` maps a name to its module. A module has `variant(rng)`, which gives (what was done, {file name: bytes}), and `read(folder)`, which does
with the files what a user of them does. The first variant of every module is the undamaged base.
"""
