"""BIDS: find the scans of a dataset and write results as a derivative."""
