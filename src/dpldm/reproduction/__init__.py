"""The rows of the paper's tables, run from public sets to a manifest, and set beside what others have published."""
