"""Which wrong partner a pair is contrasted with in image-text matching."""

from fusionkit.negatives.law import Drawn, HardNegatives, Negatives, OfflineNegatives, RandomNegatives
from fusionkit.negatives.pool import AllRanks, Candidates, OwnBatch, Pool, Queue, queue_ages

__all__ = [
    "AllRanks",
    "Candidates",
    "Drawn",
    "HardNegatives",
    "Negatives",
    "OfflineNegatives",
    "OwnBatch",
    "Pool",
    "Queue",
    "RandomNegatives",
    "queue_ages",
]
