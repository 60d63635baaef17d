"""Small helpers that every part of the package may use; nothing here knows of models or training."""
