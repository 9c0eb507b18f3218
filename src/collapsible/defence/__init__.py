"""Pre-processing before a classifier, attacks on both, and an honest audit (floor 7, torch)."""

from collapsible.defence.audit import AuditReport, Check, audit
from collapsible.defence.classifier import DefendedClassifier
from collapsible.defence.errors import DefenceError
from collapsible.defence.evaluate import evaluate_defence
from collapsible.defence.networks import ClassifierSpec, read_classifier
from collapsible.defence.plan import AttackSpec, Plan, read_attack
from collapsible.defence.preprocessing import create_defence, list_stages
from collapsible.defence.report import DefenceReport
from collapsible.defence.stages import Pipeline, Stage

__all__ = [
    "AttackSpec",
    "AuditReport",
    "Check",
    "ClassifierSpec",
    "DefenceError",
    "DefenceReport",
    "DefendedClassifier",
    "Pipeline",
    "Plan",
    "Stage",
    "audit",
    "create_defence",
    "evaluate_defence",
    "list_stages",
    "read_attack",
    "read_classifier",
]
