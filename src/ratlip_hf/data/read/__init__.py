"""From Parquet shards and other datasets to training rows."""
