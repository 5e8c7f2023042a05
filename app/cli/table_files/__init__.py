"""Tables that commands read and write: scenarios from CSV, sweeps to CSV or Parquet."""
