"""Many scans: each goes through the pipeline, and what comes out is written as a BIDS derivative."""
