"""From raw downloads to Parquet shards with a card and a manifest."""
