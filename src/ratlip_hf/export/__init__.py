"""A pipeline's networks in the formats of other programs, and what runs them there.
One target per group of modules; nothing else in the package knows of this folder."""
