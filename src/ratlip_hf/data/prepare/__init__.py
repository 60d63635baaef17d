"""From raw downloads to Parquet shards with a card and a manifest; their check, and their upload to the Hub."""
