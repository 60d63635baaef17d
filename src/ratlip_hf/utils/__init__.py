"""Small helpers that every part of the package may use; nothing here knows of models or training.
Owns error reporting for commands (`errors`) and all-or-nothing file writing (`files`)."""
