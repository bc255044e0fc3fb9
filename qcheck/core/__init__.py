"""What everything stands on: errors, frozen values, digests, the cache, progress. No ML, no words of the project."""
