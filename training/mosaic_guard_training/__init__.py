"""Training for mosaic-guard: traces become preferences, preferences train the guard model.

Importing this package loads nothing heavy; its modules need the extra `train` (`pip install "mosaic-guard[train]"`).
"""
