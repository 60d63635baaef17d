"""The tables of the paper as experiments: the plan, its runs, and what their records say."""
