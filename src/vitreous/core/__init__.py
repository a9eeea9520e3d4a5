"""What every room shares: errors, fingerprints, atomic files, random streams and the common types."""
