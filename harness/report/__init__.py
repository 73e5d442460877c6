"""From result files to tables. Nothing here imports torch, trains, or loads data."""
