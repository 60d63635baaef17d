"""The paper's tables as experiments: which models, trained how, scored by which protocol.
Owns the plan, the runs and the reading of their records; training and scoring are those of the package."""
