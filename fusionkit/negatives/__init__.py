"""Which wrong partner a pair is contrasted with in image-text matching."""

from fusionkit.negatives.pool import AllRanks, Candidates, OwnBatch, Pool, Queue, queue_ages
from fusionkit.negatives.sampling import Drawn, HardNegatives, Negatives, OfflineNegatives, RandomNegatives

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
