"""Explanations as plain functions on tensors, and figures of them; docs/explain.md says how far to trust each."""
