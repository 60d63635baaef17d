"""Small helpers that every part of the package may use; nothing here knows of models or training.
Owns error reporting (`errors`), all-or-nothing file writing (`files`) and where half precision ends (`precision`)."""
