"""What a run can be told: the schema, its checks, and what of it names a run."""
