"""What may lie inside the files of a release, format by format. No torch: `verify` runs anywhere."""
