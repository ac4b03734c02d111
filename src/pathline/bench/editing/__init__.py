"""Editing out of distribution: the shipped emoji model repairs what it has never seen.

`python -m pathline.bench.editing` writes the table, its numbers and a gallery into benchmarks/.
"""
