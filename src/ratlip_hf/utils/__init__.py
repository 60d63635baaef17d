"""Small helpers that every part of the package may use; nothing here knows of models or training.
Owns error reporting (`errors`), all-or-nothing file writing (`files`), identities (`fingerprints`), where half
precision ends (`precision`) and what saved configurations keep to themselves (`portable_config`)."""
