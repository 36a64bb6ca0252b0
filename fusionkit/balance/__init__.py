"""How the losses of a step become the one number that is optimised."""

from fusionkit.balance.base import Balanced, Balancer, Fixed, Step
from fusionkit.balance.gradnorm import GradNorm
from fusionkit.balance.pcgrad import PCGrad
from fusionkit.balance.schedule import Schedule
from fusionkit.balance.uncertainty import Uncertainty
from fusionkit.balance.window import DWA

__all__ = ["DWA", "Balanced", "Balancer", "Fixed", "GradNorm", "PCGrad", "Schedule", "Step", "Uncertainty"]
