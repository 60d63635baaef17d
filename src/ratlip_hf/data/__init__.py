"""Caption corpora: raw downloads become Parquet shards that `datasets` loads, and shards become training rows.
Nothing here knows of models or training; training imports from here."""
