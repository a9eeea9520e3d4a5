"""Where bytes come from: locations, listings and a verified local cache for s3:// and gs://."""
