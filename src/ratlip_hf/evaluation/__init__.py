"""Evaluation by protocol: scores of a model or of images, kept in records that say how they came about."""

from .records import FEW, ScoreRecord, append_record, compare_records, environment, read_records

__all__ = ["FEW", "ScoreRecord", "append_record", "compare_records", "environment", "read_records"]
