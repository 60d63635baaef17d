"""Evaluation by protocol: scores with a record of how they came about.
Owns the records; the scores are in `metrics`, the features in `features`."""

from .records import FEW, Record, append_record, compare, environment, read_records

__all__ = ["FEW", "Record", "append_record", "compare", "environment", "read_records"]
