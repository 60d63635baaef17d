"""Captioned images: `prepare` turns raw downloads into Parquet shards, `read` turns shards into rows for training.
Nothing here imports models or training; they import from here."""
