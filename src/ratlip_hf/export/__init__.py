"""A pipeline for other programs: a repository with its own code, ONNX graphs; and what runs the graphs."""
