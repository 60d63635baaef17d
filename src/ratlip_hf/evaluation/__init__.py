"""Evaluation by protocol: scores of a model or of images, kept in records that say how they came about."""

from .records import FEW, Record, append_record, compare, environment, read_records

__all__ = ["FEW", "Record", "append_record", "compare", "environment", "read_records"]
