"""The papers' tables and figures, each a command (floor 8; torch only inside functions)."""

from collapsible.reproduce.registry import Request, Table, find_table, list_tables, reproduce
from collapsible.reproduce.report import Check, Column, Reproduction, Row, Section

__all__ = [
    "Check",
    "Column",
    "Reproduction",
    "Request",
    "Row",
    "Section",
    "Table",
    "find_table",
    "list_tables",
    "reproduce",
]
