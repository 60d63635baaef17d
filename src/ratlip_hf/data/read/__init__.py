"""From Parquet shards and other datasets to rows, pixels and text embeddings."""
