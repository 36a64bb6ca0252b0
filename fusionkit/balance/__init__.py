"""How the losses of a step become the one number that is optimised."""

from fusionkit.balance.base import Balanced, Balancer, Fixed, Step
from fusionkit.balance.dwa import DWA
from fusionkit.balance.gradnorm import GradNorm
from fusionkit.balance.pcgrad import PCGrad
from fusionkit.balance.schedule import Schedule
from fusionkit.balance.uncertainty import Uncertainty

__all__ = ["DWA", "Balanced", "Balancer", "Fixed", "GradNorm", "PCGrad", "Schedule", "Step", "Uncertainty"]
