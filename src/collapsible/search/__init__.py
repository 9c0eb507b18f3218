"""Search: scaling by counting, NN-Mass, proxies; RAN-e by training (floor 7, torch).

``restructure`` is imported from its own module, as it needs the training engine.
"""

from collapsible.search.families import Family, Shape, find_family, list_bases
from collapsible.search.isometry import IsometryReport, measure_isometry
from collapsible.search.mass import Cell, Topology, nn_mass, topology
from collapsible.search.proxies import Proxy, find_proxy, list_proxies
from collapsible.search.report import Candidate, ScaleReport
from collapsible.search.scaling import scale

__all__ = [
    "Candidate",
    "Cell",
    "Family",
    "IsometryReport",
    "Proxy",
    "ScaleReport",
    "Shape",
    "Topology",
    "find_family",
    "find_proxy",
    "list_bases",
    "list_proxies",
    "measure_isometry",
    "nn_mass",
    "scale",
    "topology",
]
