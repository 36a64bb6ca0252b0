"""Which wrong partner a pair is contrasted with in image-text matching."""

from fusionkit.negatives.law import Drawn, FlooredNegatives, HardNegatives, Negatives, OfflineNegatives, RandomNegatives
from fusionkit.negatives.pool import AllRanks, Candidates, OwnBatch, Pool, Queue

__all__ = [
    "AllRanks",
    "Candidates",
    "Drawn",
    "FlooredNegatives",
    "HardNegatives",
    "Negatives",
    "OfflineNegatives",
    "OwnBatch",
    "Pool",
    "Queue",
    "RandomNegatives",
]
